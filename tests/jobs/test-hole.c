// SPDX-License-Identifier: LGPL-2.1-or-later
// A copy of a disk that is all hole, in virtual time: guests who write into it wait for a small
// part of the hole to be zeroed in the target, never for all of it.
#include "../node/on-sim.h"

#include "chain-core/fiber-sync.h"
#include "chain-core/switch.h"
#include "copy-nodes.h"
#include "filter-forward.h"

#define DISK_BYTES (UINT64_C(8) << 30)

enum {
    GRANULE_BITS = 16,
    BYTES_PER_NS = 1, // that the target zeroes
    MOST_NS = 100000000,
    N_WRITES = 200,
};

// -- nodes that are all zeros, whatever is written ------------------------------------------------

static int hole_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    *ret_extent = (NodeExtent){.kind = NODE_EXTENT_ZERO, .len = len};
    return 0;
}

static int hole_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    return 0;
}

static int hole_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    fiber_sleep(self, len / BYTES_PER_NS);
    return 0;
}

static void hole_close(Fiber *self, Node *node)
{
}

static const NodeOps hole_ops = {
    .driver = "hole",
    .map = hole_map,
    .write = hole_write,
    .zero = hole_zero,
    .close = hole_close,
};

static Node *hole_new(Fiber *self, const char *name)
{
    Node *node = g_new0(Node, 1);
    node_init(node, &hole_ops, fiber_loop(self), name, DISK_BYTES);
    return node;
}

// -- a copy ---------------------------------------------------------------------------------------

typedef struct Scene {
    Node *source, *target, *filter;
    CopyEngine *engine;
    RangeLock lock;
    Port guests, job;
    CopyNodes nodes;
    FiberWaitGroup running;
    uint64_t n_zeroed, slowest_ns;
} Scene;

static int find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    *ret_extent = (CopyExtent){.len = len, .is_work = true, .kind = WORK_METADATA};
    return 0;
}

static int copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Scene *s = arg;
    int r = copy_nodes_chunk(self, &s->nodes, chunk);
    s->n_zeroed += r == 0 ? chunk->len : 0;
    return r;
}

static const CopyEngineOps ops = {.find = find, .copy = copy};

static void guest(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t data[512] = {1};
    for (uint64_t i = 0; i < N_WRITES; i++) {
        uint64_t begun_ns = loop_now_ns(fiber_loop(self));
        GuestOff off = guest_off((i * 7919 + 13) % N_WRITES * (DISK_BYTES / N_WRITES / 512 * 512));
        Node *node = port_enter(self, &s->guests, REQUEST_WRITE);
        fiber_assert_equal(node_write(self, node, off, data, sizeof(data), 0), 0);
        port_leave(&s->guests, REQUEST_WRITE);
        s->slowest_ns = MAX(s->slowest_ns, loop_now_ns(fiber_loop(self)) - begun_ns);
        fiber_sleep(self, 20000000);
    }
    fiber_wait_group_done(&s->running);
}

static void begin(Fiber *self, Scene *s)
{
    s->source = hole_new(self, "source");
    s->target = hole_new(self, "target");
    CopyEngineConfig engine = {.size_bytes = DISK_BYTES,
                               .granularity_bits = GRANULE_BITS,
                               .chunk_bytes = 1 << 20,
                               .window_bytes = 16 << 20,
                               .ops = &ops,
                               .arg = s};
    s->engine = copy_engine_new(fiber_loop(self), &engine);
    port_init(&s->guests, s->source, "guests");
    ForwardConfig config = {.name = "forward",
                            .source = s->source,
                            .target = s->target,
                            .engine = s->engine,
                            .lock = &s->lock,
                            .mode = FORWARD_WRITE_BLOCKING};
    s->filter = filter_forward_new(&config);
    node_insert_filter(self, s->source, s->filter);
    port_init(&s->job, s->filter, "job");
    s->nodes =
        (CopyNodes){.source = s->source, .target = s->target, .port = &s->job, .lock = &s->lock};
}

static void end(Fiber *self, Scene *s)
{
    port_done(self, &s->job);
    port_done(self, &s->guests);
    node_unref_close(self, s->filter);
    node_unref_close(self, s->source);
    node_unref_close(self, s->target);
    copy_engine_free(s->engine);
}

SIM_TEST(guests_do_not_wait_for_all_of_a_hole)
{
    Scene s = {0};
    begin(self, &s);
    fiber_wait_group_add(&s.running, 1);
    fiber_assert(fiber_spawn(fiber_loop(self), "guest", guest, &s, NULL) == 0);
    fiber_assert_equal(copy_engine_run(self, s.engine), 0);
    fiber_wait_group_wait(self, &s.running);
    fiber_assert(s.n_zeroed >= DISK_BYTES - N_WRITES * (UINT64_C(1) << GRANULE_BITS));
    if (s.slowest_ns > MOST_NS)
        g_error("a guest waited for %" G_GUINT64_FORMAT " ms", s.slowest_ns / 1000000);
    end(self, &s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guests_do_not_wait_for_all_of_a_hole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
