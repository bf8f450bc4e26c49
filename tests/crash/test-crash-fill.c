// SPDX-License-Identifier: LGPL-2.1-or-later
// Overlays are filled under load, with power cuts and errors at every operation (docs/ordering.md
// §16, and §1, §2 for what fills share with guests' writes): nobody sees a difference at any time,
// nothing acknowledged is lost, and the images stay consistent.
#include "chain-core/fiber-sync.h"
#include "chain-core/node-fill.h"
#include "chain-core/port.h"
#include "crash-qcow2-image.h"
#include "sim/sim-private.h"

enum { N_FILLERS = 2, N_FILLS = 5, MAX_FILL_BYTES = 96 << 10, MAX_PAUSE_NS = 300000 };

// What fills one opened image.
typedef struct Filler Filler;
struct Filler {
    Node *node;
    Sim *sim;
    Port port;
    FiberWaitGroup group;
    Filler *next;
};

static Filler *fillers; // simulations nest, and each may have an image open

static void fill_fiber(Fiber *self, void *arg)
{
    Filler *f = arg;
    NodeFillResult result = {0};
    for (unsigned i = 0; i < N_FILLS; i++) {
        uint64_t len = 1 + sim_random(f->sim, MAX_FILL_BYTES);
        uint64_t off = sim_random(f->sim, f->node->size_bytes - len + 1);
        NodeFillFlags flags = sim_random(f->sim, 4) ? 0 : NODE_FILL_ZEROS_STAY;
        fiber_sleep(self, sim_random(f->sim, MAX_PAUSE_NS));
        Node *node = port_enter(self, &f->port, REQUEST_WRITE);
        node_fill(self, node, guest_off(off), len, flags, &result); // may fail
        port_leave(&f->port, REQUEST_WRITE);
    }
    fiber_wait_group_done(&f->group);
}

static int open_filled(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error)
{
    int r = crash_qcow2_open(self, c, ret_image, error);
    if (r < 0)
        return r;
    Filler *f = g_new0(Filler, 1);
    f->node = ret_image->node;
    f->sim = sim_of_loop(fiber_loop(self));
    f->next = fillers;
    fillers = f;
    port_init(&f->port, f->node, "fill");
    for (unsigned i = 0; i < N_FILLERS; i++) {
        fiber_wait_group_add(&f->group, 1);
        if (fiber_spawn(fiber_loop(self), "fill", fill_fiber, f, NULL) < 0)
            fiber_wait_group_done(&f->group);
    }
    return 0;
}

static void close_filled(Fiber *self, const CrashCase *c, CrashImage *image)
{
    Filler **at = &fillers;
    while ((*at)->node != image->node)
        at = &(*at)->next;
    Filler *f = *at;
    fiber_wait_group_wait(self, &f->group);
    *at = f->next;
    port_done(self, &f->port);
    g_free(f);
    crash_qcow2_close(self, c, image);
}

#define COMPRESSED(options) "qemu-img convert -c -f raw -O qcow2 -o " options " content base; "
#define OVER(format, options)                                                                      \
    "qemu-img create -f qcow2 -o " options " -b base -F " format " top $SIZE"
// What the snapshot shares is the same content as lies below.
#define SNAPSHOT                                                                                   \
    "dd if=content of=part bs=1k skip=32 count=60 2>/dev/null; "                                   \
    "qemu-io -f qcow2 -c \"write -s part 32k 60k\" top; qemu-img snapshot -c one top"

#define CASE                                                                                       \
    .n_fibers = 3, .n_requests = 8, .n_write = 40, .n_zero = 10, .n_discard = 15, .n_flush = 20,   \
    .n_read = 15, .fua_percent = 10, .prepare = crash_qcow2_prepare, .open = open_filled,          \
    .close = close_filled, .check = crash_qcow2_check, .image_path = "/top"
#define ONE_FILE_CASE CASE, .export_format = "qcow2"

static const CrashCase cases[] = {
    {.name = "clusters of 4K over raw, shorter than the disk",
     .rules = "§16",
     .size_bytes = 512 * 1024 + 512,
     .discard_bytes = 4096,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){"mv content base; " OVER("raw", "cluster_size=4k"), "raw",
                           .base_bytes = 300 * 1024 + 512}},
    {.name = "clusters of 4K over compressed ones, direct",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .uses_direct_io = true,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data =
         &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o cluster_size=8k content base; " OVER(
                           "qcow2", "cluster_size=4k"),
                       "qcow2"}},
    {.name = "a snapshot of the overlay",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data =
         &(CrashQcow2){"cp content base; " OVER("raw", "cluster_size=4k") "; " SNAPSHOT, "raw"}},
    {.name = "subclusters",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data =
         &(CrashQcow2){"mv content base; " OVER("raw", "cluster_size=16k,extended_l2=on"), "raw"}},
    {.name = "subclusters, and a snapshot",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){"cp content base; " OVER(
                               "raw", "cluster_size=16k,extended_l2=on") "; " SNAPSHOT,
                           "raw"}},
    {.name = "compressed clusters as they are",
     .rules = "§2 §16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data =
         &(CrashQcow2){COMPRESSED("cluster_size=4k") OVER("qcow2", "cluster_size=4k"), "qcow2"}},
    {.name = "compressed clusters as they are, direct",
     .rules = "§2 §16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .uses_direct_io = true,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){COMPRESSED("cluster_size=4k,compression_type=zstd")
                               OVER("qcow2", "cluster_size=4k,compression_type=zstd"),
                           "qcow2"}},
    {.name = "compressed clusters as they are, a snapshot, refcounts of 2 bits",
     .rules = "§2 §16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){COMPRESSED("cluster_size=4k")
                               OVER("qcow2", "cluster_size=4k,refcount_bits=2") "; " SNAPSHOT,
                           "qcow2"}},
    {.name = "compressed clusters as they are, subclusters",
     .rules = "§2 §16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){COMPRESSED("cluster_size=16k")
                               OVER("qcow2", "cluster_size=16k,extended_l2=on"),
                           "qcow2"}},
    {.name = "compressed clusters as they are, a host that is full",
     .rules = "§10 §16",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .space_bytes = 300 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data =
         &(CrashQcow2){COMPRESSED("cluster_size=4k") OVER("qcow2", "cluster_size=4k"), "qcow2"}},
    {.name = "a data file of its own",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 24 * 1024,
     CASE,
     .data =
         &(CrashQcow2){"mv content base; " OVER("raw", "cluster_size=4k,data_file=data"), "raw"}},
    {.name = "version 2",
     .rules = "§16",
     .size_bytes = 512 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){"mv content base; " OVER("raw", "cluster_size=4k,compat=0.10"), "raw"}},
    {.name = "a host that is full",
     .rules = "§10 §16",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .space_bytes = 1300 * 1024,
     .max_request_bytes = 24 * 1024,
     ONE_FILE_CASE,
     .data = &(CrashQcow2){"mv content base; " OVER("raw", "cluster_size=4k"), "raw"}},
};

int main(int argc, char **argv)
{
    CrashOptions options = {.seed = 1, .n_points = 1500};
    return crash_main(cases, G_N_ELEMENTS(cases), options, argc, argv);
}
