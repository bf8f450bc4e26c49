// SPDX-License-Identifier: LGPL-2.1-or-later
// copy-on-read in the simulation: what is read comes to lie in the filtered node and reads the same
// from then on, whatever guests write meanwhile, and whatever fails.
#include "driver-node.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim.h"
#include "memory-node.h"

enum { UNIT = 4096, N_UNITS = 32, SIZE = N_UNITS * UNIT };

// A layer over a base: units of its own, and what lies below for the rest.
typedef struct Overlay {
    MemoryNode memory; // first
    bool has[N_UNITS];
    unsigned n_writes;
} Overlay;

static Overlay *overlay_of(Node *node)
{
    return (Overlay *)node;
}

static int overlay_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                              IoBatch *batch)
{
    for (size_t done = 0; done < len;) {
        uint64_t at = off.v + done;
        size_t n = MIN(len - done, UNIT - at % UNIT);
        if (overlay_of(node)->has[at / UNIT])
            memcpy((uint8_t *)buf + done, overlay_of(node)->memory.data + at, n);
        else
            node_read(self, node->backing, guest_off(at), (uint8_t *)buf + done, n);
        done += n;
    }
    return 0;
}

static int overlay_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                         NodeIoFlags flags)
{
    Overlay *o = overlay_of(node);
    o->n_writes++;
    int r = memory_write(self, node, off, buf, 0, flags); // takes its time
    for (uint64_t unit = off.v / UNIT; r == 0 && unit < (off.v + len + UNIT - 1) / UNIT; unit++) {
        const uint8_t *below = ((MemoryNode *)node->backing)->data + unit * UNIT;
        if (!o->has[unit]) // copy-on-write
            memcpy(o->memory.data + unit * UNIT, below, UNIT);
        o->has[unit] = true;
    }
    if (r == 0)
        memcpy(o->memory.data + off.v, buf, len);
    return r;
}

static int overlay_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    const Overlay *o = overlay_of(node);
    uint64_t unit = off.v / UNIT, end = unit + 1;
    fiber_yield(self);
    while (end < N_UNITS && o->has[end] == o->has[unit])
        end++;
    *ret_extent = (NodeExtent){.len = MIN(len, end * UNIT - off.v),
                               .kind = o->has[unit] ? NODE_EXTENT_OPAQUE : NODE_EXTENT_BELOW,
                               .node = node};
    return 0;
}

static const NodeOps overlay_ops = {
    .driver = "overlay",
    .read_start = overlay_read_start,
    .write = overlay_write,
    .map = overlay_map,
    .close = memory_close,
};

typedef struct Scene {
    MemoryNode *base;
    Overlay *overlay;
    Node *filter;
    FiberWaitGroup fibers;
    unsigned next;
    Sim *sim;
} Scene;

static void scene_begin(Fiber *self, Scene *s)
{
    s->base = memory_node_new(fiber_loop(self), SIZE);
    s->base->n_yields = 2;
    for (unsigned i = 0; i < SIZE; i++)
        s->base->data[i] = (uint8_t)(i / UNIT + 1);
    memset(s->base->data + 5 * UNIT, 0, UNIT);
    s->overlay = g_new0(Overlay, 1);
    node_init(&s->overlay->memory.node, &overlay_ops, fiber_loop(self), "overlay", SIZE);
    s->overlay->memory.data = g_malloc0(SIZE);
    s->overlay->memory.n_yields = 2;
    node_set_backing(self, &s->overlay->memory.node, &s->base->node);
    node_unref_close(self, &s->base->node);
    s->filter = driver_node_make(self, "{'driver': 'copy-on-read'}", &s->overlay->memory.node);
    node_unref_close(self, &s->overlay->memory.node);
}

static void assert_reads(Fiber *self, Node *node, uint64_t off, size_t len)
{
    g_autofree uint8_t *buf = g_malloc(len);
    assert_int_equal(node_read(self, node, guest_off(off), buf, len), 0);
    for (size_t i = 0; i < len; i++) {
        uint64_t unit = (off + i) / UNIT;
        assert_int_equal(buf[i], unit == 5 ? 0 : unit + 1);
    }
}

static void copy_what_is_read(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    assert_reads(self, s->filter, 3 * UNIT + 100, 2 * UNIT);
    for (unsigned i = 0; i < N_UNITS; i++)
        assert_int_equal(s->overlay->has[i], i >= 3 && i <= 5);
    memset(s->base->data, 0xee, SIZE); // nobody asks it again
    assert_reads(self, s->filter, 3 * UNIT, 3 * UNIT);
    unsigned n_writes = s->overlay->n_writes;
    assert_reads(self, s->filter, 3 * UNIT, 3 * UNIT);
    assert_int_equal(s->overlay->n_writes, n_writes);
    node_unref_close(self, s->filter);
}

static void fail_to_copy(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    s->overlay->memory.fail_writes = -ENOSPC;
    assert_reads(self, s->filter, 0, SIZE);
    s->overlay->memory.fail_writes = 0;
    s->overlay->memory.node.read_only = true;
    assert_reads(self, s->filter, 0, SIZE);
    for (unsigned i = 0; i < N_UNITS; i++)
        assert_false(s->overlay->has[i]);
    node_unref_close(self, s->filter);
}

// Each has a sector of its own in every unit.
static void guest(Fiber *self, void *arg)
{
    enum { SECTOR = 512 };
    Scene *s = arg;
    uint64_t mine = s->next++ * SECTOR;
    for (unsigned round = 0; round < 40; round++) {
        GuestOff off = guest_off(sim_random(s->sim, N_UNITS) * UNIT + mine);
        uint8_t written[SECTOR], got[SECTOR];
        memset(written, (int)(100 + round), sizeof written);
        assert_int_equal(node_write(self, s->filter, off, written, SECTOR, 0), 0);
        assert_int_equal(node_read(self, s->filter, off, got, SECTOR), 0);
        assert_memory_equal(got, written, SECTOR);
    }
    fiber_wait_group_done(&s->fibers);
}

static void reader(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autofree uint8_t *buf = g_malloc(SIZE);
    for (unsigned round = 0; round < 40; round++) {
        uint64_t off = sim_random(s->sim, SIZE);
        size_t wanted = 1 + sim_random(s->sim, 4 * UNIT), len = MIN(SIZE - off, wanted);
        assert_int_equal(node_read(self, s->filter, guest_off(off), buf, len), 0);
    }
    fiber_wait_group_done(&s->fibers);
}

static void write_beside_copies(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    for (unsigned i = 0; i < 8; i++) {
        fiber_wait_group_add(&s->fibers, 1);
        assert_int_equal(fiber_spawn(fiber_loop(self), "guest", i % 2 ? guest : reader, s, NULL),
                         0);
    }
    fiber_wait_group_wait(self, &s->fibers);
    node_unref_close(self, s->filter);
}

static void run(FiberFn *fn, unsigned n_seeds)
{
    for (uint64_t seed = 1; seed <= n_seeds; seed++) {
        Scene scene = {.sim = sim_new(&(SimConfig){.seed = seed})};
        assert_true(sim_run(scene.sim, fn, &scene));
        sim_free(scene.sim);
    }
}

static void what_is_read_is_copied_once(void **state)
{
    run(copy_what_is_read, 1);
}

static void a_read_does_not_fail_with_its_copy(void **state)
{
    run(fail_to_copy, 1);
}

static void old_data_never_lands_on_what_a_guest_wrote(void **state)
{
    run(write_beside_copies, 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_read_is_copied_once),
        cmocka_unit_test(a_read_does_not_fail_with_its_copy),
        cmocka_unit_test(old_data_never_lands_on_what_a_guest_wrote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
