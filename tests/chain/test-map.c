// SPDX-License-Identifier: LGPL-2.1-or-later
// Maps of who owns what, against a count cell by cell.
#include "chain-core/chain-map.h"

#include "random-chain.h"

// layers[i], from the lowest; past its end a layer is zeros.
static NodeExtentKind kind_of_cell(Fiber *self, Node *layer, uint64_t off)
{
    NodeExtentKind kind;
    uint64_t len;
    if (off >= layer->size_bytes)
        return NODE_EXTENT_ZERO;
    fiber_assert_equal(node_find_kind(self, layer, guest_off(off), CELL, &kind, &len), 0);
    return kind;
}

static void count_cell(Fiber *self, Node **layers, unsigned n, uint64_t off, uint64_t part_bytes,
                       ChainMapLayer *counts)
{
    bool is_hidden = false;
    for (unsigned i = n; i-- > 0;) {
        NodeExtentKind kind = kind_of_cell(self, layers[i], off);
        if (kind == NODE_EXTENT_DATA) {
            counts[i].data_bytes += CELL;
            counts[i].shown_bytes += is_hidden ? 0 : CELL;
            counts[i].parts[off / part_bytes] += is_hidden ? 0 : CELL;
        }
        is_hidden |= kind != NODE_EXTENT_BELOW;
    }
}

static uint64_t n_shown; // of all runs

SIM_TEST(maps_are_what_a_count_says)
{
    enum { MAX_PARTS = 40 };
    for (uint64_t run = 0; run < 3; run++) {
        Chain c;
        Node *layers[MAX_LAYERS];
        ChainMapLayer found[MAX_LAYERS] = {0}, counted[MAX_LAYERS] = {0};
        uint64_t parts[2][MAX_LAYERS][MAX_PARTS] = {0}, size = 0;
        make_chain(self, &c, loop_now_ns(fiber_loop(self)) + run);
        unsigned n = c.n_layers;
        for (unsigned i = 0; i < n; i++) {
            layers[i] = c.layers[n - 1 - i];
            found[i].parts = parts[0][i];
            counted[i].parts = parts[1][i];
            size = MAX(size, layers[i]->size_bytes);
        }
        uint64_t part_bytes = chain_map_part_bytes(layers, n, 1 + (unsigned)below(&c, MAX_PARTS));
        g_assert((size + part_bytes - 1) / part_bytes <= MAX_PARTS);
        fiber_assert_equal(chain_map(self, layers, n, part_bytes, found), 0);
        for (uint64_t off = 0; off < size; off += CELL)
            count_cell(self, layers, n, off, part_bytes, counted);
        for (unsigned i = 0; i < n; i++) {
            fiber_assert_equal(found[i].data_bytes, counted[i].data_bytes);
            fiber_assert_equal(found[i].shown_bytes, counted[i].shown_bytes);
            g_assert(memcmp(parts[0][i], parts[1][i], sizeof(parts[0][i])) == 0);
            n_shown += found[i].shown_bytes;
        }
        free_chain(self, &c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_are_what_a_count_says),
    };
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    assert_true(n_shown > 0);
    return r;
}
