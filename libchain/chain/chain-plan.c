// SPDX-License-Identifier: LGPL-2.1-or-later
// The disk is gone through in blocks. Of each layer it is asked which cells of a block it has data
// in, and zeros; the rest is logic on these bits, a word of them at a time. A cell is so small that
// all clusters begin and end at cells, and so do layers that are shorter than others. On the
// chain's loop, in a fiber.
#include "chain-core/chain-plan.h"

#include <errno.h>
#include <string.h>

#include "chain-core/io-buffers.h"
#include "chain-core/node-fill.h"
#include "chain-core/node-kinds.h"

enum {
    MIN_CELL_BYTES = 512,
    MAX_CELL_BYTES = 64 << 10,
    MAX_BLOCK_CELLS = 1 << 17,
    BLOCK_BYTES = 512 << 20, // what a table of the usual size tells of
    EMPTY_AT_ONCE = 64,      // blocks; then others get their turn, as after each other one
};

// Counts whole granules that are touched.
typedef struct GranuleCount {
    uint64_t granule, end; // counted up to there
    uint64_t n;
} GranuleCount;

// One block, or less at the end of the disk.
typedef struct Block {
    uint64_t off, end;
    uint32_t cell_bits;
    unsigned n_words;
} Block;

static void count_one(GranuleCount *c, uint64_t number)
{
    if (number < c->end)
        return;
    c->n++;
    c->end = number + 1;
}

// Granules that are larger than a cell, of which `word` has some.
static void count_in_word(GranuleCount *c, uint64_t word, uint64_t first_cell, uint32_t cells_bits)
{
    while (word) {
        unsigned cell = (unsigned)__builtin_ctzll(word);
        uint64_t granule = (first_cell + cell) >> cells_bits;
        uint64_t next = ((granule + 1) << cells_bits) - first_cell; // its first cell, from here on
        count_one(c, granule);
        word = next < 64 ? word & UINT64_MAX << next : 0;
    }
}

static void count_cells(GranuleCount *c, const Block *b, const uint64_t *bits)
{
    uint32_t granule_bits = (uint32_t)__builtin_ctzll(c->granule);
    uint64_t first_cell = b->off >> b->cell_bits;
    for (unsigned w = 0; w < b->n_words; w++, first_cell += 64) {
        if (!bits[w])
            continue;
        if (granule_bits > b->cell_bits) {
            count_in_word(c, bits[w], first_cell, granule_bits - b->cell_bits);
            continue;
        }
        uint32_t granules_bits = b->cell_bits - granule_bits; // of a cell
        uint64_t last = first_cell + 63 - (uint64_t)__builtin_clzll(bits[w]);
        c->n += (uint64_t)__builtin_popcountll(bits[w]) << granules_bits;
        c->end = (last + 1) << granules_bits;
    }
}

// One layer, and what it would cost if it stayed.
typedef struct Track {
    Node *node;
    uint64_t commit_bytes;
    GranuleCount stream;                     // what a fill moves
    GranuleCount commit_space, stream_space; // clusters
    GranuleCount commit_tables, stream_tables;
    bool has_something; // in the block
    unsigned n_words;   // that may be other than 0
    // Of the block, first what the layer has; then what a commit and a stream would write newly.
    uint64_t *data, *zero;
} Track;

// How much of the disk one table tells of. A layer that is no image has none.
static uint64_t table_reach(Node *node)
{
    uint64_t cluster = node->preferred_bytes;
    bool has_subclusters = node_fill_granularity(node) < cluster;
    return MAX(cluster / (has_subclusters ? 16 : 8) * cluster, cluster);
}

static void track_init(Track *t, Node *node)
{
    uint64_t cluster = node->preferred_bytes, reach = table_reach(node);
    *t = (Track){
        .node = node,
        .data = g_new0(uint64_t, MAX_BLOCK_CELLS / 64),
        .zero = g_new0(uint64_t, MAX_BLOCK_CELLS / 64),
        .stream.granule = MIN(node_fill_granularity(node), cluster),
        .commit_space.granule = cluster,
        .stream_space.granule = cluster,
        .commit_tables.granule = reach,
        .stream_tables.granule = reach,
    };
}

// A layer shorter than others shows zeros past its end.
static int look(Fiber *self, Track *t, const Block *b)
{
    uint64_t n_cells = (uint64_t)b->n_words * 64, size = t->node->size_bytes;
    uint64_t end = MIN(b->end, size), inside = 0;
    int r = 0;
    bool may_have = size < b->end || !t->node->ops->may_have ||
                    t->node->ops->may_have(t->node, guest_off(b->off), end - b->off);
    memset(t->data, 0, t->n_words * sizeof(uint64_t));
    memset(t->zero, 0, t->n_words * sizeof(uint64_t));
    t->n_words = may_have ? b->n_words : 0;
    t->has_something = may_have;
    if (b->off < end && may_have) {
        inside = (end - b->off + (UINT64_C(1) << b->cell_bits) - 1) >> b->cell_bits;
        NodeKinds kinds = {t->data, t->zero, inside, b->cell_bits};
        r = node_find_kinds(self, t->node, guest_off(b->off), end - b->off, &kinds);
    }
    if (size < b->end)
        node_kinds_set(t->zero, n_cells, inside, n_cells - inside);
    return r;
}

// Word `w` of all layers: what lies above and below each of them says what it would have to get.
// `below` has room for a word of each.
static void merge_word(Track *tracks, unsigned n, unsigned w, uint32_t cell_bits, uint64_t *below)
{
    uint64_t shown = 0, above_data = 0, above = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t data = tracks[i].data[w], zero = tracks[i].zero[w];
        below[i] = shown;
        shown = data | (shown & ~zero);
    }
    for (unsigned i = n; i-- > 0;) {
        Track *t = &tracks[i];
        uint64_t data = t->data[w], zero = t->zero[w];
        t->commit_bytes += (uint64_t)__builtin_popcountll(above_data) << cell_bits;
        t->data[w] = above_data & ~data;
        t->zero[w] = below[i] & ~(above | data | zero);
        above_data |= data & ~above;
        above |= data | zero;
    }
}

static void count_block(Track *tracks, unsigned n, const Block *b, uint64_t *below)
{
    for (unsigned w = 0; w < b->n_words; w++)
        merge_word(tracks, n, w, b->cell_bits, below);
    for (unsigned i = 0; i < n; i++) {
        Track *t = &tracks[i];
        t->n_words = b->n_words;
        count_cells(&t->commit_space, b, t->data);
        count_cells(&t->commit_tables, b, t->data);
        count_cells(&t->stream, b, t->zero);
        count_cells(&t->stream_space, b, t->zero);
        count_cells(&t->stream_tables, b, t->zero);
    }
}

// Of all blocks, but for ends of layers.
static uint64_t cell_bytes(const Track *tracks, unsigned n)
{
    enum { BYTES_WITHOUT_CLUSTERS = 4096 };
    uint64_t cell = MAX_CELL_BYTES;
    for (unsigned i = 0; i < n; i++) {
        Node *node = tracks[i].node;
        uint64_t own = node->ops->fill ? MIN(node_fill_granularity(node), node->preferred_bytes)
                                       : BYTES_WITHOUT_CLUSTERS;
        cell = MIN(cell, own);
    }
    return cell;
}

static Block block_at(const Track *tracks, unsigned n, uint64_t off, uint64_t size, uint64_t cell)
{
    uint64_t end = MIN(off + MIN(BLOCK_BYTES, cell * MAX_BLOCK_CELLS), size);
    for (unsigned i = 0; i < n; i++) {
        uint64_t stop = tracks[i].node->size_bytes;
        if (off < stop && stop <= end)
            cell = MIN(cell, MAX(stop & -stop, MIN_CELL_BYTES));
    }
    end = MIN(end, off + cell * MAX_BLOCK_CELLS);
    uint64_t n_cells = (end - off + cell - 1) / cell;
    return (Block){off, end, (uint32_t)__builtin_ctzll(cell), (unsigned)((n_cells + 63) / 64)};
}

static int sweep(Fiber *self, Track *tracks, unsigned n, uint64_t size)
{
    g_autofree uint64_t *below = g_new(uint64_t, n);
    uint64_t cell = cell_bytes(tracks, n);
    unsigned n_empty = 0;
    Block b;
    for (uint64_t off = 0; off < size; off = b.end) {
        b = block_at(tracks, n, off, size, cell);
        bool has_something = false;
        for (unsigned i = 0; i < n; i++) {
            int r = look(self, &tracks[i], &b);
            if (r < 0)
                return r;
            has_something |= tracks[i].has_something;
        }
        if (has_something)
            count_block(tracks, n, &b, below);
        if ((has_something || ++n_empty % EMPTY_AT_ONCE == 0) && fiber_sleep(self, 0) < 0)
            return -ECANCELED;
    }
    return 0;
}

// What of them lies before `size`; the last one may reach beyond.
static uint64_t granule_bytes(const GranuleCount *c, uint64_t size)
{
    uint64_t end = c->end * c->granule;
    return c->n * c->granule - (end > size ? end - size : 0);
}

// Clusters, the tables that name them, and the blocks that count all of it (16 bits each).
static uint64_t space_of(const Track *t, const GranuleCount *clusters, const GranuleCount *tables)
{
    uint64_t cluster = clusters->granule, n = clusters->n;
    if (t->node->ops->fill && n) {
        n += tables->n;
        n += n / (cluster / 2) + 1;
    }
    return n * cluster;
}

int chain_plan(Fiber *self, Node *const *layers, unsigned n_layers, ChainPlanCost *ret_costs)
{
    g_autofree Track *tracks = g_new(Track, n_layers);
    uint64_t size = 0;
    for (unsigned i = 0; i < n_layers; i++) {
        track_init(&tracks[i], layers[i]);
        size = MAX(size, layers[i]->size_bytes);
    }
    io_buffers_hold(fiber_loop(self)); // tables go through them
    int r = sweep(self, tracks, n_layers, size);
    io_buffers_release(fiber_loop(self));
    for (unsigned i = 0; i < n_layers; i++) {
        Track *t = &tracks[i];
        g_free(t->data);
        g_free(t->zero);
        if (r < 0)
            continue;
        ret_costs[i] = (ChainPlanCost){
            .commit_bytes = t->commit_bytes,
            .stream_bytes = granule_bytes(&t->stream, t->node->size_bytes),
            .commit_space = space_of(t, &t->commit_space, &t->commit_tables),
            .stream_space = space_of(t, &t->stream_space, &t->stream_tables),
        };
    }
    return r;
}
