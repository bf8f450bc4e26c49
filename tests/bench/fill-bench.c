// SPDX-License-Identifier: LGPL-2.1-or-later
// What it costs to fill an overlay from what lies below it, without anything else of a job: prints
// processor time and time, and how the bytes came up. Both images are used as they are; the overlay
// is written.
//
// usage: fill-bench OVERLAY [CHUNK-KIB [IN-FLIGHT]]
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/io-buffers.h"
#include "chain-core/node-fill.h"
#include "chain-core/port.h"

typedef struct Bench {
    const char *path;
    uint64_t chunk_bytes, next;
    unsigned n_workers;
    Port port;
    Node *node;
    NodeFillResult result;
    FiberWaitGroup workers;
} Bench;

static double processor_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void worker(Fiber *self, void *arg)
{
    Bench *b = arg;
    while (b->next < b->node->size_bytes) {
        uint64_t off = b->next, len = MIN(b->chunk_bytes, b->node->size_bytes - off);
        b->next += len;
        Node *node = port_enter(self, &b->port, REQUEST_WRITE);
        int r = node_fill(self, node, guest_off(off), len, NODE_FILL_ZEROS_STAY, &b->result);
        port_leave(&b->port, REQUEST_WRITE);
        if (r < 0) {
            printf("at %" PRIu64 ": %s\n", off, g_strerror(-r));
            exit(1);
        }
    }
    fiber_wait_group_done(&b->workers);
}

static void bench_fiber(Fiber *self, void *arg)
{
    Bench *b = arg;
    MapMemory *memory = map_memory_new(64 << 20);
    LayerOptions options = {.memory = memory};
    ChainInfo info;
    g_autoptr(GError) error = NULL;
    if (chain_open(self, b->path, &options, &b->node, &info, &error) < 0) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    port_init(&b->port, b->node, "bench");
    io_buffers_hold(fiber_loop(self));
    double cpu = processor_s(), start = (double)g_get_monotonic_time() / 1e6;
    fiber_wait_group_add(&b->workers, b->n_workers);
    for (unsigned i = 0; i < b->n_workers; i++)
        fiber_spawn(fiber_loop(self), "fill", worker, b, NULL);
    fiber_wait_group_wait(self, &b->workers);
    double moved = (double)(b->result.copied_bytes + b->result.shared_bytes) / (1 << 30);
    cpu = processor_s() - cpu;
    double wall = (double)g_get_monotonic_time() / 1e6 - start;
    int r = node_flush(self, b->node);
    printf("%.3f GiB (%.3f shared), zeros %.3f GiB: %.3f s of processor a GiB, %.3f s a GiB; flush "
           "%.3f s%s\n",
           moved, (double)b->result.shared_bytes / (1 << 30),
           (double)b->result.zero_bytes / (1 << 30), cpu / moved, wall / moved,
           (double)g_get_monotonic_time() / 1e6 - start - wall, r < 0 ? " (failed)" : "");
    io_buffers_release(fiber_loop(self));
    port_done(self, &b->port);
    node_unref_close(self, b->node);
    map_memory_free(memory);
    loop_stop(fiber_loop(self));
}

int main(int argc, char **argv)
{
    Bench b = {.path = argc > 1 ? argv[1] : NULL, .chunk_bytes = 1 << 20, .n_workers = 4};
    if (argc < 2) {
        fprintf(stderr, "usage: %s OVERLAY [CHUNK-KIB [IN-FLIGHT]]\n", argv[0]);
        return 1;
    }
    if (argc > 2)
        b.chunk_bytes = strtoull(argv[2], NULL, 10) << 10;
    if (argc > 3)
        b.n_workers = (unsigned)strtoul(argv[3], NULL, 10);
    GError *error = NULL;
    Loop *loop = loop_new(&(LoopConfig){0}, &error);
    if (!loop) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    fiber_spawn(loop, "bench", bench_fiber, &b, NULL);
    loop_run(loop);
    loop_free(loop);
    return 0;
}
