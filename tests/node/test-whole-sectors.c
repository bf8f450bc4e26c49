// SPDX-License-Identifier: LGPL-2.1-or-later
// A node of an odd size, shown as whole sectors.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/whole-sectors.h"
#include "memory-node.h"
#include "on-loop.h"

enum { SIZE = 1000, ROUNDED = 1024 };

static uint8_t buf[ROUNDED];

static bool is_all(const uint8_t *bytes, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

static void tail_is_read(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Node *whole = whole_sectors_new(self, &m->node);
    memset(m->data, 7, SIZE);
    assert_int_equal(whole->size_bytes, ROUNDED);
    memset(buf, 0xff, sizeof buf);
    assert_int_equal(node_read(self, whole, guest_off(512), buf, 512), 0);
    assert_true(is_all(buf, SIZE - 512, 7));
    assert_true(is_all(buf + SIZE - 512, ROUNDED - SIZE, 0));
    memset(buf, 0xff, sizeof buf);
    assert_int_equal(node_read(self, whole, guest_off(SIZE), buf, ROUNDED - SIZE), 0);
    assert_true(is_all(buf, ROUNDED - SIZE, 0));
    node_unref_close(self, whole);
    node_unref_close(self, &m->node);
}

static void the_tail_reads_as_zeros(void **state)
{
    on_loop(tail_is_read, NULL);
}

static void tail_is_written(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Node *whole = whole_sectors_new(self, &m->node);
    memset(buf, 0, sizeof buf);
    memset(buf, 9, SIZE - 512);
    assert_int_equal(node_write(self, whole, guest_off(512), buf, 512, 0), 0);
    assert_true(is_all(m->data + 512, SIZE - 512, 9));
    assert_int_equal(node_write(self, whole, guest_off(SIZE), buf + SIZE, 24, NODE_IO_FUA), 0);
    assert_int_equal(m->n_flushes, 1); // FUA covers what was written before, too

    memset(buf, 3, SIZE - 512);
    buf[511] = 1; // the last byte of all
    assert_int_equal(node_write(self, whole, guest_off(512), buf, 512, 0), -ENOSPC);
    assert_true(is_all(m->data + 512, SIZE - 512, 9));
    assert_int_equal(node_zero(self, whole, guest_off(0), ROUNDED, 0), 0);
    assert_true(is_all(m->data, SIZE, 0));
    assert_int_equal(node_zero(self, whole, guest_off(SIZE), ROUNDED - SIZE, 0), 0);
    assert_int_equal(node_discard(self, whole, guest_off(0), ROUNDED, 0), 0);
    assert_int_equal(node_flush(self, whole), 0);
    assert_int_equal(m->n_flushes, 2);
    node_unref_close(self, whole);
    node_unref_close(self, &m->node);
}

static void the_tail_takes_zeros_and_has_no_space_for_more(void **state)
{
    on_loop(tail_is_written, NULL);
}

static void tail_has_a_status(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Node *whole = whole_sectors_new(self, &m->node);
    NodeExtent extent;
    assert_int_equal(node_status(self, whole, guest_off(0), ROUNDED, &extent), 0);
    assert_int_equal(extent.len, SIZE);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
    assert_int_equal(extent.depth, 0);
    assert_int_equal(node_status(self, whole, guest_off(SIZE), ROUNDED - SIZE, &extent), 0);
    assert_int_equal(extent.len, ROUNDED - SIZE);
    assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
    node_unref_close(self, whole);
    node_unref_close(self, &m->node);
}

static void the_tail_is_a_hole_of_zeros(void **state)
{
    on_loop(tail_has_a_status, NULL);
}

static void sizes_are_rounded(Fiber *self, void *arg)
{
    for (uint64_t size = 511; size <= 513; size++) {
        MemoryNode *m = memory_node_new(fiber_loop(self), size);
        m->node.read_only = size == 513;
        Node *whole = whole_sectors_new(self, &m->node);
        assert_int_equal(whole->size_bytes, size == 513 ? 1024 : 512);
        assert_int_equal(whole->read_only, size == 513);
        node_unref_close(self, whole);
        node_unref_close(self, &m->node);
    }
}

static void sizes_are_rounded_up_to_sectors(void **state)
{
    on_loop(sizes_are_rounded, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tail_reads_as_zeros),
        cmocka_unit_test(the_tail_takes_zeros_and_has_no_space_for_more),
        cmocka_unit_test(the_tail_is_a_hole_of_zeros),
        cmocka_unit_test(sizes_are_rounded_up_to_sectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
