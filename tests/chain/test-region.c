// SPDX-License-Identifier: LGPL-2.1-or-later
// Regions: layers laid over each other, against a table that holds one entry per byte.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/node.h"
#include "chain/region.h"

enum { LEN = 4096, MAX_PIECES = 64 };

typedef struct Byte {
    uint64_t host;
    int layer; // -1: open
    uint8_t kind;
} Byte;

static uint64_t seed = 20240811;

static uint32_t random_below(GRand *rand, uint32_t n)
{
    return (uint32_t)g_rand_int_range(rand, 0, (gint32)n);
}

// Sorted, disjoint pieces of one layer, at a granule of its own; some touch each other.
static unsigned make_pieces(GRand *rand, uint16_t layer, Piece *pieces)
{
    uint32_t granule = 1u << random_below(rand, 11), at = 0;
    unsigned n = 0;
    uint64_t host = random_below(rand, 1 << 20);
    while (n < MAX_PIECES) {
        at += granule * random_below(rand, 4);
        uint32_t len = granule * (1 + random_below(rand, 4));
        if (at >= LEN)
            break;
        static const uint8_t kinds[] = {NODE_EXTENT_DATA, NODE_EXTENT_DATA, NODE_EXTENT_ZERO,
                                        NODE_EXTENT_ZERO_ALLOCATED, NODE_EXTENT_OPAQUE};
        Piece piece = {.span = {at, MIN(at + len, LEN)}};
        piece.run.layer = layer;
        piece.run.kind = kinds[random_below(rand, G_N_ELEMENTS(kinds))];
        piece.run.host = random_below(rand, 3) ? host : host + 777;
        host = piece.run.host + (piece.span.end - piece.span.start);
        pieces[n++] = piece;
        at += len;
    }
    return n;
}

static void lay_over(Byte *bytes, const Piece *pieces, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t at = pieces[i].span.start; at < pieces[i].span.end; at++) {
            if (bytes[at].layer < 0)
                bytes[at] = (Byte){.host = pieces[i].run.host + at - pieces[i].span.start,
                                   .layer = pieces[i].run.layer,
                                   .kind = pieces[i].run.kind};
        }
    }
}

static void compare(const Region *region, const Byte *bytes)
{
    uint32_t expected_start = 0;
    for (uint32_t i = 0; i < region->n_runs; i++) {
        const Run *run = &region->runs[i];
        assert_int_equal(run->start, expected_start);
        expected_start = region_run_end(region, run);
        assert_true(run->start < expected_start);
    }
    assert_int_equal(expected_start, LEN);
    for (uint32_t at = 0; at < LEN; at++) {
        const Run *run = region_find_run(region, at);
        assert_in_range(at, run->start, region_run_end(region, run) - 1);
        if (bytes[at].layer < 0) {
            assert_int_equal(run->kind, NODE_EXTENT_BELOW);
            continue;
        }
        assert_int_equal(run->kind, bytes[at].kind);
        assert_int_equal(run->layer, bytes[at].layer);
        if (run->kind == NODE_EXTENT_DATA)
            assert_int_equal(run->host + at - run->start, bytes[at].host);
    }
}

static void random_layers_give_what_each_byte_would(void **state)
{
    MapMemory *memory = map_memory_new(1 << 20);
    GRand *rand = g_rand_new_with_seed((guint32)seed);
    for (int round = 0; round < 400; round++) {
        Byte bytes[LEN];
        for (int at = 0; at < LEN; at++)
            bytes[at] = (Byte){.layer = -1};
        RegionDraft draft;
        region_draft_init(&draft, LEN);
        unsigned n_layers = 1 + random_below(rand, 6);
        for (unsigned layer = 0; layer < n_layers; layer++) {
            Piece pieces[MAX_PIECES];
            unsigned n = make_pieces(rand, (uint16_t)layer, pieces);
            region_draft_add_layer(&draft, pieces, n);
            lay_over(bytes, pieces, n);
        }
        Region *region = region_draft_finish(&draft, 5, memory);
        region_draft_done(&draft);
        compare(region, bytes);
        region_free(region);
    }
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    g_rand_free(rand);
    map_memory_free(memory);
}

static Region *region_of(const Piece *pieces, unsigned n, MapMemory *memory)
{
    RegionDraft draft;
    region_draft_init(&draft, LEN);
    region_draft_add_layer(&draft, pieces, n);
    Region *region = region_draft_finish(&draft, 0, memory);
    region_draft_done(&draft);
    return region;
}

static void neighbours_that_continue_become_one_run(void **state)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Piece pieces[] = {
        {{0, 512}, {.host = 8192, .kind = NODE_EXTENT_DATA}},
        {{512, 1024}, {.host = 8704, .kind = NODE_EXTENT_DATA}},
        {{1024, LEN}, {.host = 64, .kind = NODE_EXTENT_DATA}},
    };
    Region *region = region_of(pieces, 3, memory);
    assert_int_equal(region->n_runs, 2);
    assert_int_equal(region->runs[1].start, 1024);
    region_free(region);
    map_memory_free(memory);
}

static void an_empty_layer_leaves_one_run_of_nothing(void **state)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Region *region = region_of(NULL, 0, memory);
    assert_int_equal(region->n_runs, 1);
    assert_int_equal(region->runs[0].kind, NODE_EXTENT_BELOW);
    region_free(region);
    map_memory_free(memory);
}

static void a_piece_may_lie_over_several_open_spans(void **state)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Piece above[] = {{{1000, 1100}, {.layer = 0, .kind = NODE_EXTENT_ZERO}},
                     {{2000, 2001}, {.layer = 0, .kind = NODE_EXTENT_ZERO}}};
    Piece below[] = {{{500, 3000}, {.host = 500, .layer = 1, .kind = NODE_EXTENT_DATA}}};
    RegionDraft draft;
    region_draft_init(&draft, LEN);
    region_draft_add_layer(&draft, above, 2);
    assert_int_equal(draft.open->len, 3);
    region_draft_add_layer(&draft, below, 1);
    assert_false(region_draft_is_complete(&draft));
    Region *region = region_draft_finish(&draft, 0, memory);
    region_draft_done(&draft);
    assert_int_equal(region->n_runs, 7);
    assert_int_equal(region_find_run(region, 2001)->host, 2001);
    region_free(region);
    map_memory_free(memory);
}

int main(void)
{
    if (getenv("CHAIND_TEST_SEED"))
        seed = strtoull(getenv("CHAIND_TEST_SEED"), NULL, 0);
    print_message("# seed %" G_GUINT64_FORMAT " (CHAIND_TEST_SEED)\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_layers_give_what_each_byte_would),
        cmocka_unit_test(neighbours_that_continue_become_one_run),
        cmocka_unit_test(an_empty_layer_leaves_one_run_of_nothing),
        cmocka_unit_test(a_piece_may_lie_over_several_open_spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
