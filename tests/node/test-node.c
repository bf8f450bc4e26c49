// SPDX-License-Identifier: LGPL-2.1-or-later
// Requests to nodes: write hooks, read-only nodes, what drivers without an operation get, status
// over several layers; the raw driver on files of odd sizes; accounts of memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/raw.h"
#include "memory-node.h"
#include "on-loop.h"
#include "pass-filter.h"

enum { SIZE = 1 << 20 };

typedef struct CountingHook {
    NodeWriteHook hook;
    unsigned n_calls;
    uint64_t off, len;
} CountingHook;

static void count_call(NodeWriteHook *hook, GuestOff off, uint64_t len)
{
    CountingHook *c = (CountingHook *)hook;
    c->n_calls++;
    c->off = off.v;
    c->len = len;
}

// -- modes ----------------------------------------------------------------------------------------

typedef struct Calls {
    Node node; // first
    unsigned n_writes, n_zeroes, n_discards, n_flushes;
    NodeIoFlags flags; // of the last one
} Calls;

static int calls_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                       NodeIoFlags flags)
{
    ((Calls *)node)->n_writes++;
    return 0;
}

static int calls_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    ((Calls *)node)->n_zeroes++;
    ((Calls *)node)->flags = flags;
    return 0;
}

static int calls_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    ((Calls *)node)->n_discards++;
    return 0;
}

static int calls_flush(Fiber *self, Node *node)
{
    ((Calls *)node)->n_flushes++;
    return 0;
}

static const NodeOps calls_ops = {
    .driver = "calls",
    .write = calls_write,
    .zero = calls_zero,
    .discard = calls_discard,
    .flush = calls_flush,
};

static void ignore_discards(Fiber *self, void *arg)
{
    Calls *c = g_new0(Calls, 1);
    node_init(&c->node, &calls_ops, fiber_loop(self), "calls", SIZE);
    assert_int_equal(node_discard(self, &c->node, guest_off(0), 4096, 0), 0);
    assert_int_equal(c->n_discards, 1);
    c->node.ignores_discards = true;
    assert_int_equal(node_discard(self, &c->node, guest_off(0), 4096, 0), 0);
    assert_int_equal(c->n_discards, 1);
    assert_int_equal(node_discard(self, &c->node, guest_off(0), 4096, NODE_IO_FUA), 0);
    assert_int_equal(c->n_flushes, 1);
    assert_int_equal(node_zero(self, &c->node, guest_off(0), 4096, NODE_IO_FUA), 0);
    assert_int_equal(c->flags, NODE_IO_FUA | NODE_IO_NO_UNMAP);
    node_unref_close(self, &c->node);
}

static void discards_end_at_a_node_that_ignores_them(void **state)
{
    on_loop(ignore_discards, NULL);
}

static void detect_zeroes(Fiber *self, void *arg)
{
    Calls *c = g_new0(Calls, 1);
    uint8_t zeroes[512] = {0}, nearly[512] = {[511] = 1};
    node_init(&c->node, &calls_ops, fiber_loop(self), "calls", SIZE);
    assert_int_equal(node_write(self, &c->node, guest_off(0), zeroes, 512, 0), 0);
    assert_int_equal(c->n_writes, 1);
    c->node.zero_detection = NODE_ZEROES_ALLOCATED;
    assert_int_equal(node_write(self, &c->node, guest_off(0), nearly, 512, 0), 0);
    assert_int_equal(c->n_writes, 2);
    assert_int_equal(node_write(self, &c->node, guest_off(0), zeroes, 512, NODE_IO_FUA), 0);
    assert_int_equal(c->n_writes, 2);
    assert_int_equal(c->n_zeroes, 1);
    assert_int_equal(c->flags, NODE_IO_FUA | NODE_IO_NO_UNMAP);
    c->node.zero_detection = NODE_ZEROES_UNMAPPED;
    assert_int_equal(node_write(self, &c->node, guest_off(0), zeroes, 512, 0), 0);
    assert_int_equal(c->flags, 0);
    c->node.ignores_discards = true;
    assert_int_equal(node_write(self, &c->node, guest_off(0), zeroes, 512, 0), 0);
    assert_int_equal(c->flags, NODE_IO_NO_UNMAP);
    node_unref_close(self, &c->node);
}

static void written_zeroes_are_detected_where_that_is_wanted(void **state)
{
    on_loop(detect_zeroes, NULL);
}

// -- hooks ----------------------------------------------------------------------------------------

static void hooks_run(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    CountingHook hook = {.hook = {.fn = count_call}};
    uint8_t buf[512] = {1};
    node_add_write_hook(&m->node, &hook.hook);
    assert_int_equal(node_write(self, &m->node, guest_off(1024), buf, 512, 0), 0);
    assert_int_equal(hook.n_calls, 1);
    assert_int_equal(hook.off, 1024);
    assert_int_equal(hook.len, 512);
    assert_int_equal(node_zero(self, &m->node, guest_off(0), SIZE, 0), 0);
    assert_int_equal(hook.n_calls, 2);
    assert_int_equal(hook.len, SIZE);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), 4096, 0), 0);
    assert_int_equal(hook.n_calls, 3);
    m->fail_writes = -ENOSPC;
    assert_int_equal(node_write(self, &m->node, guest_off(0), buf, 512, 0), -ENOSPC);
    assert_int_equal(hook.n_calls, 4);
    assert_int_equal(node_zero(self, &m->node, guest_off(0), 512, 0), -ENOSPC);
    assert_int_equal(hook.n_calls, 5);
    assert_int_equal(node_read(self, &m->node, guest_off(0), buf, 512), 0);
    assert_int_equal(hook.n_calls, 5);
    node_remove_write_hook(&m->node, &hook.hook);
    m->fail_writes = 0;
    assert_int_equal(node_write(self, &m->node, guest_off(0), buf, 512, 0), 0);
    assert_int_equal(hook.n_calls, 5);
    node_unref_close(self, &m->node);
}

static void write_hooks_run_after_every_change_also_a_failed_one(void **state)
{
    on_loop(hooks_run, NULL);
}

static void fallbacks(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    memset(m->data, 7, SIZE);
    assert_int_equal(node_zero(self, &m->node, guest_off(100), 200000, NODE_IO_FAST_ZERO),
                     -ENOTSUP);
    assert_int_equal(m->data[100], 7);
    assert_int_equal(node_zero(self, &m->node, guest_off(100), 200000, 0), 0);
    assert_int_equal(m->data[99], 7);
    assert_int_equal(m->data[100], 0);
    assert_int_equal(m->data[200099], 0);
    assert_int_equal(m->data[200100], 7);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), SIZE, NODE_IO_FUA), 0);
    assert_int_equal(m->n_flushes, 1);
    NodeExtent extent;
    assert_int_equal(node_map(self, &m->node, guest_off(5), 10, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
    assert_ptr_equal(extent.node, &m->node);
    m->node.read_only = true;
    assert_int_equal(node_write(self, &m->node, guest_off(0), m->data, 1, 0), -EROFS);
    assert_int_equal(node_zero(self, &m->node, guest_off(0), 1, 0), -EROFS);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), 1, 0), -EROFS);
    node_unref_close(self, &m->node);
}

static void what_a_driver_lacks_is_made_up_for(void **state)
{
    on_loop(fallbacks, NULL);
}

static void long_chain(Fiber *self, void *arg)
{
    unsigned n_closed = 0;
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    m->ret_n_closed = &n_closed;
    Node *top = &m->node;
    for (int i = 0; i < 50000; i++) {
        Node *filter = pass_filter_new(fiber_loop(self), "pass", SIZE);
        node_set_backing(self, filter, top);
        node_unref_close(self, top);
        top = filter;
    }
    NodeExtent extent;
    assert_int_equal(node_status(self, top, guest_off(0), SIZE, &extent), 0);
    assert_ptr_equal(extent.node, &m->node);
    assert_int_equal(extent.depth, 0);
    node_unref_close(self, top);
    assert_int_equal(n_closed, 1);
}

static void a_very_long_chain_is_closed_without_recursion(void **state)
{
    on_loop(long_chain, NULL);
}

// -- raw ----------------------------------------------------------------------------------------

typedef struct RawTest {
    char *path;
    uint64_t size;
} RawTest;

static Node *open_raw(Fiber *self, const char *path, FileOpenFlags flags)
{
    File *file;
    Node *node;
    g_autoptr(GError) error = NULL;
    if (file_open(self, path, flags, &file, &error) < 0)
        fail_msg("%s", error->message);
    assert_int_equal(raw_node_new(self, file, &node, NULL), 0);
    return node;
}

static void raw_any_size(Fiber *self, void *arg)
{
    const RawTest *t = arg;
    Node *node = open_raw(self, t->path, FILE_WRITABLE);
    assert_int_equal(node->size_bytes, t->size);
    assert_false(node->read_only);
    if (t->size > 600) {
        uint8_t buf[600], back[600];
        memset(buf, 0x5a, sizeof buf);
        GuestOff tail = guest_off(t->size - sizeof buf);
        assert_int_equal(node_write(self, node, tail, buf, sizeof buf, NODE_IO_FUA), 0);
        assert_int_equal(node_read(self, node, tail, back, sizeof back), 0);
        assert_memory_equal(buf, back, sizeof buf);
        assert_int_equal(node_zero(self, node, guest_off(t->size - 10), 10, 0), 0);
        assert_int_equal(node_read(self, node, tail, back, sizeof back), 0);
        assert_int_equal(back[589], 0x5a);
        assert_int_equal(back[590], 0);
        assert_int_equal(node_discard(self, node, guest_off(0), t->size, 0), 0);
    }
    assert_int_equal(node_zero(self, node, guest_off(t->size), 0, NODE_IO_FUA), 0);
    assert_int_equal(node_flush(self, node), 0);
    assert_int_equal(node->size_bytes, t->size);
    node_unref_close(self, node);
    node = open_raw(self, t->path, 0);
    assert_int_equal(node->size_bytes, t->size);
    assert_true(node->read_only);
    node_unref_close(self, node);
}

static char *make_file(uint64_t size)
{
    char *path = NULL;
    int fd = g_file_open_tmp("chaind-test-raw-XXXXXX", &path, NULL);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
    return path;
}

static void raw_files_may_have_any_size(void **state)
{
    static const uint64_t sizes[] = {0, 1, 511, 512, 1000, 65537, 1048576};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        RawTest t = {.path = make_file(sizes[i]), .size = sizes[i]};
        on_loop(raw_any_size, &t);
        unlink(t.path);
        g_free(t.path);
    }
}

static void raw_map(Fiber *self, void *arg)
{
    const RawTest *t = arg;
    Node *node = open_raw(self, t->path, FILE_WRITABLE);
    static uint8_t buf[65536]; // too large for a fiber's stack
    memset(buf, 1, sizeof buf);
    assert_int_equal(node_write(self, node, guest_off(1 << 20), buf, sizeof buf, 0), 0);
    uint64_t n_data = 0;
    for (uint64_t off = 0; off < t->size;) {
        NodeExtent extent;
        assert_int_equal(node_status(self, node, guest_off(off), t->size - off, &extent), 0);
        if (extent.kind == NODE_EXTENT_DATA) {
            assert_int_equal(extent.host.v, off);
            n_data += extent.len;
        } else {
            assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
            assert_true(off + extent.len <= 1 << 20 || off >= (1 << 20) + sizeof buf);
        }
        off += extent.len;
    }
    assert_true(n_data >= sizeof buf);
    node_unref_close(self, node);
}

static void raw_holes_are_zeros_and_data_is_where_it_is(void **state)
{
    RawTest t = {.path = make_file(4 << 20), .size = 4 << 20};
    on_loop(raw_map, &t);
    unlink(t.path);
    g_free(t.path);
}

// -- memory -------------------------------------------------------------------------------------

static void shares_of_memory(void **state)
{
    MapMemory *m = map_memory_new(1000);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_SLICES), 0);
    map_memory_add(m, MAP_MEMORY_SLICES, 1000);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_SLICES), 0);
    map_memory_add(m, MAP_MEMORY_REGIONS, 300);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_SLICES), 300);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_REGIONS), 0);
    map_memory_add(m, MAP_MEMORY_REGIONS, 300);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_REGIONS), 100);
    assert_int_equal(map_memory_excess(m, MAP_MEMORY_SLICES), 500);
    map_memory_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_hooks_run_after_every_change_also_a_failed_one),
        cmocka_unit_test(discards_end_at_a_node_that_ignores_them),
        cmocka_unit_test(written_zeroes_are_detected_where_that_is_wanted),
        cmocka_unit_test(what_a_driver_lacks_is_made_up_for),
        cmocka_unit_test(a_very_long_chain_is_closed_without_recursion),
        cmocka_unit_test(raw_files_may_have_any_size),
        cmocka_unit_test(raw_holes_are_zeros_and_data_is_where_it_is),
        cmocka_unit_test(shares_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
