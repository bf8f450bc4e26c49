// SPDX-License-Identifier: LGPL-2.1-or-later
// Power cuts and errors at every operation of workloads on qcow2 images of many kinds. `rules` are
// the paragraphs of docs/ordering.md that a case is there for: it was seen to fail without them. §9
// belongs to every case's faults; §8 is tests/qcow2/test-power.c; §4 also test-reuse-race.c.
#include "crash-qcow2-image.h"

#define CREATE(options) "qemu-img create -f qcow2 -o " options " top $SIZE"
#define CONVERT(options) "qemu-img convert -f raw -O qcow2 -o " options " content top"
#define OVERLAY(options, format)                                                                   \
    "qemu-img create -f qcow2 -o " options " -b base -F " format " top $SIZE"

#define SNAPSHOT "qemu-img snapshot -c one top"
// Two, so that marking one is not enough.
#define BITMAPS "qemu-img bitmap --add top one; qemu-img bitmap --add -g 8k --disable top two"
// A program that dies without closing: the dirty bit stays, and refcounts were never written.
#define ABORTED_WRITE                                                                              \
    "sh -c 'ulimit -c 0; qemu-io -f qcow2 -c \"write -s content 0 $0\" -c flush -c abort top; :' " \
    "$SIZE 2>/dev/null"

#define QCOW2_CASE                                                                                 \
    .prepare = crash_qcow2_prepare, .open = crash_qcow2_open, .close = crash_qcow2_close,          \
    .check = crash_qcow2_check, .image_path = "/top", .export_format = "qcow2"

// Weights of the usual workload.
#define MIXED                                                                                      \
    .n_fibers = 4, .n_requests = 12, .n_write = 50, .n_zero = 10, .n_discard = 10, .n_flush = 15,  \
    .n_read = 15, .fua_percent = 10
#define DISCARDS                                                                                   \
    .n_fibers = 6, .n_requests = 10, .n_write = 40, .n_zero = 5, .n_discard = 35, .n_flush = 15,   \
    .n_read = 5, .fua_percent = 5

static const CrashCase cases[] = {
    {.name = "cluster 512, refcount 1",
     .rules = "§2 §6",
     .size_bytes = 512 * 1024,
     .discard_bytes = 512,
     .max_request_bytes = 16 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=512,refcount_bits=1"), .is_empty = true}},
    {.name = "cluster 4K, refcount 16",
     .rules = "§2",
     .size_bytes = 2 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k"), .is_empty = true}},
    {.name = "cluster 64K",
     .rules = "§1 §2",
     .size_bytes = 4 << 20,
     .discard_bytes = 64 * 1024,
     .max_request_bytes = 200 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=64k"), .is_empty = true}},
    {.name = "cluster 4K, pieces of sectors, direct",
     .rules = "§1",
     .size_bytes = 256 * 1024,
     .cell_bytes = 64,
     .discard_bytes = 4096,
     .uses_direct_io = true,
     .max_request_bytes = 6000 / 64 * 64,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k"), .is_empty = true}},
    {.name = "raw backing, shorter than the disk",
     .rules = "§1",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){"mv content base; " OVERLAY("cluster_size=4k", "raw"), "raw",
                           .base_bytes = 700 * 1024 + 512}},
    {.name = "compressed backing",
     .rules = "§1 §6",
     .size_bytes = 1 << 20,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 40 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 content base; " OVERLAY(
                               "cluster_size=16k", "qcow2"),
                           "qcow2"}},
    {.name = "compressed clusters overwritten",
     .rules = "§1 §4",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k content top"}},
    {.name = "internal snapshot",
     .rules = "§4",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k") "; " SNAPSHOT}},
    {.name = "extended L2 over raw backing",
     .rules = "§1",
     .size_bytes = 1 << 20,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 40 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){"mv content base; " OVERLAY("cluster_size=16k,extended_l2=on", "raw"),
                           "raw"}},
    {.name = "extended L2 with a snapshot",
     .rules = "§1 §4",
     .size_bytes = 1 << 20,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 40 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=16k,extended_l2=on") "; " SNAPSHOT}},
    {.name = "little map memory",
     .rules = "§1 §4 §6",
     .size_bytes = 2 << 20,
     .discard_bytes = 512,
     .max_request_bytes = 8 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=512"), .map_memory_bytes = 16 * 1024}},
    {.name = "a host that is full",
     .rules = "§2 §10",
     .size_bytes = 16 << 20,
     .discard_bytes = 4096,
     .space_bytes = 240 * 1024,
     .max_request_bytes = 32 * 1024,
     DISCARDS,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k,refcount_bits=1"), .is_empty = true}},
    {.name = "a host that is full, small clusters, no punch",
     .rules = "§2 §3 §10",
     .size_bytes = 1 << 20,
     .discard_bytes = 512,
     .has_no_punch = true,
     .space_bytes = 160 * 1024,
     .max_request_bytes = 32 * 1024,
     .hot_bytes = 64 * 1024,
     DISCARDS,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=512,refcount_bits=64"), .is_empty = true}},
    {.name = "discard and reuse",
     .rules = "§4",
     .size_bytes = 256 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     .hot_bytes = 64 * 1024,
     DISCARDS,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=4k"), .is_empty = true}},
    {.name = "discard and reuse, no punch, refcount 64",
     .rules = "§3 §4",
     .size_bytes = 128 * 1024,
     .discard_bytes = 512,
     .has_no_punch = true,
     .max_request_bytes = 16 * 1024,
     DISCARDS,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=512,refcount_bits=64")}},
    {.name = "growing refcount table", // the first one counts 2 MiB
     .rules = "§3 §5 §6",
     .size_bytes = 8 << 20,
     .discard_bytes = 512,
     .max_request_bytes = 192 * 1024,
     MIXED,
     QCOW2_CASE,
     .data =
         &(CrashQcow2){CREATE("cluster_size=512,refcount_bits=64") "; qemu-io -f qcow2 -c 'write "
                                                                   "-P 0 4M 1700k' top",
                       .is_empty = true}},
    {.name = "refcount 2, internal snapshot",
     .rules = "§4 §6",
     .size_bytes = 256 * 1024,
     .discard_bytes = 512,
     .max_request_bytes = 16 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=512,refcount_bits=2") "; " SNAPSHOT}},
    {.name = "refcount 4, compressed clusters overwritten",
     .rules = "§1 §4",
     .size_bytes = 512 * 1024,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data =
         &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o cluster_size=16k,refcount_bits=4 "
                       "content top"}},
    {.name = "refcount 8, internal snapshots",
     .rules = "§4",
     .size_bytes = 512 * 1024,
     .discard_bytes = 1024,
     .max_request_bytes = 16 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=1k,refcount_bits=8") "; " SNAPSHOT
                                                                      "; qemu-io -f qcow2 -c "
                                                                      "'write -P 0 500k 4k' top; "
                                                                      "qemu-img snapshot -c two "
                                                                      "top"}},
    {.name = "refcount 32, discard and reuse", // a block counts only 128 clusters
     .rules = "§3 §4 §6",
     .size_bytes = 512 * 1024,
     .discard_bytes = 512,
     .max_request_bytes = 32 * 1024,
     DISCARDS,
     QCOW2_CASE,
     .data = &(CrashQcow2){CREATE("cluster_size=512,refcount_bits=32"), .is_empty = true}},
    {.name = "zstd clusters overwritten",
     .rules = "§1 §4",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o "
                           "cluster_size=4k,compression_type=zstd content top"}},
    {.name = "lazy refcounts",
     .rules = "§1 §4",
     .size_bytes = 1 << 20,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k,lazy_refcounts=on")}},
    {.name = "dirty, refcounts too low",
     .rules = "§7",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .is_checked_again = true,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .export_options = "-r all", // which QEMU would do at a writable open, too
     .data = &(CrashQcow2){CREATE("cluster_size=4k,lazy_refcounts=on") "; " ABORTED_WRITE,
                           .is_dirty = true}},
    {.name = "dirty, small clusters, refcounts too low",
     .rules = "§7",
     .size_bytes = 256 * 1024,
     .discard_bytes = 512,
     .is_checked_again = true,
     .max_request_bytes = 8 * 1024,
     MIXED,
     QCOW2_CASE,
     .export_options = "-r all",
     .data =
         &(CrashQcow2){
             CREATE("cluster_size=512,refcount_bits=64,lazy_refcounts=on") "; " ABORTED_WRITE,
             .is_dirty = true}},
    {.name = "persistent bitmaps",
     .rules = "§7",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k") "; " BITMAPS, .has_marks = true}},
    {.name = "persistent bitmaps and an unknown autoclear bit",
     .rules = "§7",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k") "; " BITMAPS
                                                      "; printf '\\041' | dd of=top bs=1 seek=95 "
                                                      "conv=notrunc status=none",
                           .has_marks = true}},
    {.name = "version 2 over raw backing",
     .rules = "§1 §6",
     .size_bytes = 1 << 20,
     .max_request_bytes = 32 * 1024,
     MIXED,
     QCOW2_CASE,
     .data =
         &(CrashQcow2){"mv content base; " OVERLAY("cluster_size=4k,compat=0.10", "raw"), "raw"}},
};

int main(int argc, char **argv)
{
    CrashOptions options = {.seed = 1, .n_points = 800};
    return crash_main(cases, G_N_ELEMENTS(cases), options, argc, argv);
}
