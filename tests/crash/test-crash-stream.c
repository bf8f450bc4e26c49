// SPDX-License-Identifier: LGPL-2.1-or-later
// Chains are shortened by streams under load, with power cuts and errors at every operation, and
// cancelled at any moment (docs/ordering.md §17, and §16, §11 for what it stands on). Once a stream
// has ended well the file of the layer that left is deleted. Nobody sees a difference at any time,
// and nothing acknowledged is lost.
#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "crash-qcow2-image.h"
#include "jobs/block-stream.h"
#include "jobs/job.h"
#include "sim/sim-private.h"

enum { MAX_PAUSE_NS = 3000000, MEMORY_BYTES = 32 << 20 };

typedef struct StreamCase {
    CrashQcow2 qcow2; // first
    bool keeps_base;  // only the layer between goes
} StreamCase;

// Of one opened chain.
typedef struct Streaming {
    const StreamCase *c;
    MapMemory *memory;
    Port port; // of the workload
    JobTable *table;
    BlockStream *stream;
    bool is_done;
    FiberWaitGroup cancels;
} Streaming;

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    Streaming *s = work;
    fiber_sleep(self, sim_random(sim_of_loop(fiber_loop(self)), MAX_PAUSE_NS));
    return block_stream_run(self, s->stream, control, JOB_ON_ERROR_REPORT, error);
}

static int prepare(Fiber *self, void *work, GError **error)
{
    Streaming *s = work;
    BlockStreamBacking backing = {0};
    if (s->c->keeps_base)
        backing = (BlockStreamBacking){"base", s->c->qcow2.base_format};
    return block_stream_switch(self, s->stream, &backing, error);
}

static void commit(Fiber *self, void *work)
{
    ((Streaming *)work)->is_done = true;
}

static void clean(Fiber *self, void *work)
{
    Streaming *s = work;
    block_stream_free(self, s->stream);
    if (s->is_done)
        file_unlink(self, s->c->keeps_base ? "/middle" : "/base", NULL);
}

static void cancel_fiber(Fiber *self, void *arg)
{
    Streaming *s = arg;
    fiber_sleep(self, sim_random(sim_of_loop(fiber_loop(self)), 2 * MAX_PAUSE_NS));
    Job *job = job_table_get(s->table, "stream", NULL);
    if (job)
        job_cancel(self, job, true, NULL);
    fiber_wait_group_done(&s->cancels);
}

static void nothing(void *arg, const Job *job, const JobEvent *event)
{
}

static void start(Fiber *self, Streaming *s, Node *top)
{
    static const JobKind kind = {
        .type = "stream", .run = run, .prepare = prepare, .commit = commit, .clean = clean};
    Node *bottom = chain_backing(top);
    JobSpec spec = {.id = "stream", .kind = &kind, .work = s};
    if (!bottom || (s->c->keeps_base && !chain_backing(bottom)))
        return; // it was done before
    s->stream = block_stream_new(top, bottom, s->memory, "stream");
    job_start(self, job_new(s->table, &spec, NULL), fiber_loop(self));
    if (sim_random(sim_of_loop(fiber_loop(self)), 4) == 0) {
        fiber_wait_group_add(&s->cancels, 1);
        fiber_spawn_reserve(fiber_loop(self), "cancel", cancel_fiber, s);
    }
}

static int open_streamed(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error)
{
    Streaming *s = g_new0(Streaming, 1);
    s->c = c->data;
    s->memory = map_memory_new(MEMORY_BYTES);
    LayerOptions options = {.format = "qcow2", .memory = s->memory};
    int r = chain_open(self, "/top", &options, &ret_image->node, NULL, error);
    if (r < 0) {
        map_memory_free(s->memory);
        g_free(s);
        return r;
    }
    port_init(&s->port, ret_image->node, "workload");
    ret_image->port = &s->port;
    ret_image->data = s;
    s->table = job_table_new(nothing, NULL);
    start(self, s, ret_image->node);
    return 0;
}

static void close_streamed(Fiber *self, const CrashCase *c, CrashImage *image)
{
    Streaming *s = image->data;
    while (job_table_all(s->table)->len)
        fiber_sleep(self, 100000);
    fiber_wait_group_wait(self, &s->cancels);
    job_table_free(s->table);
    port_done(self, &s->port);
    node_unref_close(self, image->node);
    map_memory_free(s->memory);
    g_free(s);
}

#define OVER(name, below, format, options)                                                         \
    "qemu-img create -f qcow2 -o " options " -b " below " -F " format " " name " $SIZE"
// What the layer between shows lies in part below it; where it does not, something else is there.
#define MIDDLE(options)                                                                            \
    "qemu-io -f qcow2 -c 'write -P 0x55 64k 400k' base && " OVER(                                  \
        "middle", "base", "qcow2",                                                                 \
        options) " && dd if=content of=part bs=1k skip=64 2>/dev/null"                             \
                 " && qemu-io -f qcow2 -c 'write -s part 64k 448k' middle"
#define CONTENT(name, options) "qemu-img convert -f raw -O qcow2 -o " options " content " name

#define CASE                                                                                       \
    .rules = "§17", .n_fibers = 3, .n_requests = 10, .n_write = 40, .n_zero = 10, .n_discard = 15, \
    .n_flush = 20, .n_read = 15, .fua_percent = 10, .size_bytes = 512 * 1024,                      \
    .discard_bytes = 4096, .max_request_bytes = 24 * 1024, .prepare = crash_qcow2_prepare,         \
    .open = open_streamed, .close = close_streamed, .check = crash_qcow2_check,                    \
    .image_path = "/top", .export_format = "qcow2"

static const CrashCase cases[] = {
    {.name = "all of a raw base, shorter than the disk",
     CASE,
     .data =
         &(StreamCase){.qcow2 = {"cp content base; " OVER("top", "base", "raw", "cluster_size=4k"),
                                 "raw", .base_bytes = 300 * 1024 + 512}}},
    {.name = "all of a base of smaller clusters",
     CASE,
     .data = &(StreamCase){.qcow2 = {CONTENT("base", "cluster_size=1k") "; " OVER(
                                         "top", "base", "qcow2", "cluster_size=4k"),
                                     "qcow2"}}},
    {.name = "a layer between",
     CASE,
     .data = &(StreamCase){.qcow2 = {CONTENT("base", "cluster_size=4k") "; " MIDDLE(
                                         "cluster_size=4k") "; " OVER("top", "middle", "qcow2",
                                                                      "cluster_size=4k"),
                                     "qcow2"},
                           .keeps_base = true}},
};

int main(int argc, char **argv)
{
    CrashOptions options = {.seed = 1, .n_points = 1500};
    return crash_main(cases, G_N_ELEMENTS(cases), options, argc, argv);
}
