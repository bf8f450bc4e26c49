// SPDX-License-Identifier: LGPL-2.1-or-later
// Plans against a count cell by cell, and against what a fill really moves and takes.
#include "chain-core/chain-plan.h"

#include <inttypes.h>

#include "chain-core/chain-range.h"
#include "chain-core/node-fill.h"
#include "random-chain.h"

static NodeExtentKind kind_of_cell(Fiber *self, Node *layer, uint64_t off)
{
    NodeExtentKind kind;
    uint64_t len;
    if (off >= layer->size_bytes)
        return NODE_EXTENT_ZERO;
    fiber_assert_equal(node_find_kind(self, layer, guest_off(off), CELL, &kind, &len), 0);
    return kind;
}

// What the topmost of layers [first, end) that has anything there has; they are in order from the
// lowest.
static NodeExtentKind shown(Fiber *self, Node **layers, unsigned first, unsigned end, uint64_t off)
{
    NodeExtentKind kind = NODE_EXTENT_BELOW;
    while (end-- > first && kind == NODE_EXTENT_BELOW)
        kind = kind_of_cell(self, layers[end], off);
    return kind;
}

// Granule by granule, for layers[stays].
static ChainPlanCost count(Fiber *self, Node **layers, unsigned n, unsigned stays)
{
    ChainPlanCost cost = {0};
    uint64_t size = 0, granule = MAX(node_fill_granularity(layers[stays]), CELL);
    for (unsigned i = 0; i < n; i++)
        size = MAX(size, layers[i]->size_bytes);
    uint64_t until = 0; // counted as streamed
    for (uint64_t off = 0; off < size; off += CELL) {
        NodeExtentKind own = kind_of_cell(self, layers[stays], off);
        NodeExtentKind above = shown(self, layers, stays + 1, n, off);
        if (above == NODE_EXTENT_DATA)
            cost.commit_bytes += CELL;
        if (above != NODE_EXTENT_BELOW || own != NODE_EXTENT_BELOW || off < until ||
            shown(self, layers, 0, stays, off) != NODE_EXTENT_DATA)
            continue;
        uint64_t start = off - off % granule;
        until = start + granule;
        cost.stream_bytes += MIN(until, layers[stays]->size_bytes) - start;
    }
    return cost;
}

// As a stream does it: *ret_taken is what the file got larger by.
static uint64_t stream(Fiber *self, Node *into, Node *top, Node *base, uint64_t *ret_taken)
{
    ChainLayers layers = {into, top, base};
    NodeFillResult result = {0};
    File *file = node_file(into);
    uint64_t before = file_size(file);
    for (uint64_t off = 0; off < into->size_bytes;) {
        ChainRange range;
        uint64_t left = into->size_bytes - off;
        fiber_assert_equal(chain_range_find(self, &layers, guest_off(off), left, &range), 0);
        if (range.is_owned && !range.is_zero)
            fiber_assert_equal(node_fill(self, into, guest_off(off), range.len, 0, &result), 0);
        off += range.len;
    }
    fiber_assert_equal(node_flush(self, into), 0);
    *ret_taken = file_size(file) - before;
    return result.copied_bytes;
}

static uint64_t n_moved; // of all runs

SIM_TEST(plans_are_what_a_count_says_and_a_stream_does)
{
    for (uint64_t i = 0; i < 3; i++) {
        Chain c;
        Node *layers[MAX_LAYERS];
        ChainPlanCost costs[MAX_LAYERS];
        make_chain(self, &c, loop_now_ns(fiber_loop(self)) + i);
        unsigned first = (unsigned)below(&c, c.n_layers - 1); // that is planned for, from the top
        unsigned n = 2 + (unsigned)below(&c, c.n_layers - 1 - first);
        for (unsigned k = 0; k < n; k++)
            layers[n - 1 - k] = c.layers[first + k];
        fiber_assert_equal(chain_plan(self, layers, n, costs), 0);
        for (unsigned stays = 0; stays < n; stays++) {
            ChainPlanCost cost = count(self, layers, n, stays);
            fiber_assert_equal(costs[stays].commit_bytes, cost.commit_bytes);
            fiber_assert_equal(costs[stays].stream_bytes, cost.stream_bytes);
        }
        Node *base = first + n < c.n_layers ? c.layers[first + n] : NULL;
        uint64_t taken, moved = stream(self, layers[n - 1], layers[n - 2], base, &taken);
        fiber_assert_equal(moved, costs[n - 1].stream_bytes);
        n_moved += moved;
        if (taken > costs[n - 1].stream_space)
            g_error("it takes %" PRIu64 " bytes of %" PRIu64, taken, costs[n - 1].stream_space);
        free_chain(self, &c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_what_a_count_says_and_a_stream_does),
    };
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    assert_true(n_moved > 0);
    return r;
}
