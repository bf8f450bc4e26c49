// SPDX-License-Identifier: LGPL-2.1-or-later
// What guests write is compressed where it is whole clusters, with power cuts and errors at every
// operation (docs/ordering.md §1, §2, §4, for clusters that share host clusters): nothing
// acknowledged is lost, whatever replaces what, and the images stay consistent.
#include "chain-core/node-drivers.h"
#include "crash-qcow2-image.h"

static int open_compressed(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error)
{
    CrashImage *image = g_new0(CrashImage, 1); // under the filter
    DriverOptions options = {.name = "compress", .is_writable = true};
    Node *filter;
    int r = crash_qcow2_open(self, c, image, error);
    if (r < 0) {
        g_free(image);
        return r;
    }
    r = compress_driver.make(self, &options, image->node, &filter, error);
    g_assert(r == 0);
    *ret_image = (CrashImage){.node = filter, .data = image};
    return 0;
}

static void close_compressed(Fiber *self, const CrashCase *c, CrashImage *image)
{
    CrashImage *below = image->data;
    node_set_backing(self, image->node, NULL);
    crash_qcow2_close(self, c, below);
    node_unref_close(self, image->node); // last: the harness looks at it until then
    g_free(below);
}

#define CASE                                                                                       \
    .size_bytes = 256 * 1024, .discard_bytes = 4096, .n_fibers = 4, .n_requests = 16,              \
    .n_write = 60, .n_zero = 5, .n_discard = 10, .n_flush = 20, .n_read = 10, .fua_percent = 10,   \
    .max_request_bytes = 32 * 1024, .hot_bytes = 64 * 1024, .prepare = crash_qcow2_prepare,        \
    .open = open_compressed, .close = close_compressed, .check = crash_qcow2_check,                \
    .image_path = "/top", .export_format = "qcow2"
#define CREATE(options) "qemu-img create -f qcow2 -o " options " top $SIZE"
#define OVER(options) "qemu-img create -f qcow2 -o " options " -b base -F raw top $SIZE"

static const CrashCase cases[] = {
    {.name = "an empty image",
     .rules = "§1 §2 §4",
     CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k"), .is_empty = true}},
    {.name = "over a base, direct, zstd",
     .rules = "§1 §2 §4",
     .uses_direct_io = true,
     CASE,
     .data =
         &(CrashQcow2){"cp content base; " OVER("cluster_size=4k,compression_type=zstd"), "raw"}},
    {.name = "refcounts of 2 bits",
     .rules = "§1 §2 §4",
     CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=512,refcount_bits=2"), .is_empty = true}},
    {.name = "a compressed image with a snapshot",
     .rules = "§1 §2 §4",
     CASE,
     .data = &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k content top; "
                           "qemu-img snapshot -c one top"}},
    {.name = "a host that is full",
     .rules = "§10",
     .space_bytes = 90 * 1024,
     CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k"), .is_empty = true}},
};

int main(int argc, char **argv)
{
    CrashOptions options = {.seed = 1, .n_points = 1500};
    return crash_main(cases, G_N_ELEMENTS(cases), options, argc, argv);
}
