// SPDX-License-Identifier: LGPL-2.1-or-later
// Which layers own a range, against a look at each layer's map, for chains of images of all kinds;
// and that what has no tables costs next to nothing.
#include "chain-core/chain-range.h"

#include <inttypes.h>
#include <string.h>

#include "random-chain.h"

// What the layer's map says about the cell.
static NodeExtentKind kind_of_cell(Fiber *self, Node *layer, uint64_t off)
{
    NodeExtent e;
    if (off >= layer->size_bytes)
        return NODE_EXTENT_ZERO;
    fiber_assert_equal(node_map(self, layer, guest_off(off), CELL, &e), 0);
    fiber_assert_equal(e.len, CELL);
    return e.kind;
}

static void expect_cell(Fiber *self, Chain *c, const ChainLayers *layers, uint64_t off,
                        const ChainRange *found)
{
    Node *owner = NULL;
    NodeExtentKind kind = NODE_EXTENT_BELOW;
    if (!layers->above || kind_of_cell(self, layers->above, off) == NODE_EXTENT_BELOW)
        for (Node *n = layers->top; n && n != layers->base && !owner; n = chain_backing(n)) {
            kind = kind_of_cell(self, n, off);
            owner = kind == NODE_EXTENT_BELOW ? NULL : n;
        }
    bool is_data = kind == NODE_EXTENT_DATA || kind == NODE_EXTENT_OPAQUE;
    if (found->is_owned != (owner != NULL) || found->owner != owner ||
        (owner && found->is_zero == is_data))
        g_error("%" PRIu64 ": owned %d, zeros %d", off, found->is_owned, found->is_zero);
}

static void look_at(Fiber *self, Chain *c, const ChainLayers *layers, uint64_t off, uint64_t len)
{
    while (len) {
        ChainRange range;
        fiber_assert_equal(chain_range_find(self, layers, guest_off(off), len, &range), 0);
        fiber_assert(range.len > 0 && range.len <= len && range.len % CELL == 0);
        for (uint64_t at = off; at < off + range.len; at += CELL)
            expect_cell(self, c, layers, at, &range);
        off += range.len;
        len -= range.len;
    }
}

SIM_TEST(ranges_are_those_that_the_maps_of_the_layers_tell)
{
    for (uint64_t i = 0; i < 3; i++) {
        Chain c;
        make_chain(self, &c, loop_now_ns(fiber_loop(self)) + i);
        for (unsigned first = 0; first + 1 < c.n_layers; first++)
            for (unsigned end = first + 1; end <= c.n_layers; end++) {
                Node *base = end < c.n_layers ? c.layers[end] : NULL;
                ChainLayers of_commit = {NULL, c.layers[first], base};
                ChainLayers of_stream = {c.layers[first], c.layers[first + 1], base};
                uint64_t size = c.layers[first]->size_bytes;
                uint64_t off = below(&c, size / CELL) * CELL;
                look_at(self, &c, &of_commit, off, size - off);
                if (end > first + 1)
                    look_at(self, &c, &of_stream, 0, size);
            }
        free_chain(self, &c);
    }
}

// 30 TiB, with data here and there.
SIM_TEST(what_has_no_tables_costs_next_to_nothing)
{
    static const uint8_t data[CELL] = {1};
    const uint64_t size = UINT64_C(30) << 40, offs[] = {0, size / 3, size - CELL};
    MapMemory *memory = map_memory_new(1 << 20);
    Chain c = {.memory = memory};
    Qcow2CreateOptions options = {.size_bytes = size};
    fiber_assert_equal(qcow2_create(self, "/base", &options, NULL), 0);
    fiber_assert_equal(qcow2_create(self, "/top", &options, NULL), 0);
    Node *base = open_image(self, &c, "/base", "qcow2"),
         *top = open_image(self, &c, "/top", "qcow2");
    chain_set_backing(self, top, base, memory);
    for (unsigned i = 0; i < G_N_ELEMENTS(offs); i++)
        fiber_assert_equal(node_write(self, i % 2 ? base : top, guest_off(offs[i]), data, CELL, 0),
                           0);
    ChainLayers layers = {NULL, top, NULL};
    unsigned n_looks = 0, n_owned = 0;
    for (uint64_t off = 0; off < size; n_looks++) {
        ChainRange range;
        fiber_assert_equal(chain_range_find(self, &layers, guest_off(off), size - off, &range), 0);
        n_owned += range.is_owned;
        off += range.len;
    }
    fiber_assert_equal(n_owned, G_N_ELEMENTS(offs));
    fiber_assert(n_looks < 64);
    node_unref_close(self, top);
    node_unref_close(self, base);
    map_memory_free(memory);
    file_unlink(self, "/base", NULL);
    file_unlink(self, "/top", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_those_that_the_maps_of_the_layers_tell),
        cmocka_unit_test(what_has_no_tables_costs_next_to_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
