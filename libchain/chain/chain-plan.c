// SPDX-License-Identifier: LGPL-2.1-or-later
// The disk is gone through in blocks (layer-sweep.h): what each layer has is known as bits, and the
// rest is logic on them, a word at a time. On the chain's loop, in a fiber.
#include "chain-core/chain-plan.h"

#include "chain-core/node-fill.h"
#include "layer-sweep.h"

// Counts whole granules that are touched.
typedef struct GranuleCount {
    uint64_t granule, end; // counted up to there
    uint64_t n;
} GranuleCount;

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

static void count_cells(GranuleCount *c, const LayerBlock *b, const uint64_t *bits)
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
} Track;

typedef struct Plan {
    Track *tracks;
    uint64_t *below; // room for a word of each
} Plan;

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
        .stream.granule = MIN(node_fill_granularity(node), cluster),
        .commit_space.granule = cluster,
        .stream_space.granule = cluster,
        .commit_tables.granule = reach,
        .stream_tables.granule = reach,
    };
}

// Word `w` of all layers: what lies above and below each of them says what it would have to get.
// Their bits become what a commit (data) and a stream (zero) would write newly.
static void merge_word(Plan *plan, LayerBits *layers, unsigned n, unsigned w, uint32_t cell_bits)
{
    uint64_t shown = 0, above_data = 0, above = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t data = layers[i].data[w], zero = layers[i].zero[w];
        plan->below[i] = shown;
        shown = data | (shown & ~zero);
    }
    for (unsigned i = n; i-- > 0;) {
        LayerBits *layer = &layers[i];
        uint64_t data = layer->data[w], zero = layer->zero[w];
        plan->tracks[i].commit_bytes += (uint64_t)__builtin_popcountll(above_data) << cell_bits;
        layer->data[w] = above_data & ~data;
        layer->zero[w] = plan->below[i] & ~(above | data | zero);
        above_data |= data & ~above;
        above |= data | zero;
    }
}

static void count_block(void *arg, const LayerBlock *b, LayerBits *layers, unsigned n)
{
    Plan *plan = arg;
    for (unsigned w = 0; w < b->n_words; w++)
        merge_word(plan, layers, n, w, b->cell_bits);
    for (unsigned i = 0; i < n; i++) {
        Track *t = &plan->tracks[i];
        LayerBits *layer = &layers[i];
        layer->n_words = b->n_words;
        count_cells(&t->commit_space, b, layer->data);
        count_cells(&t->commit_tables, b, layer->data);
        count_cells(&t->stream, b, layer->zero);
        count_cells(&t->stream_space, b, layer->zero);
        count_cells(&t->stream_tables, b, layer->zero);
    }
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
    g_autofree uint64_t *below = g_new(uint64_t, n_layers);
    Plan plan = {tracks, below};
    for (unsigned i = 0; i < n_layers; i++)
        track_init(&tracks[i], layers[i]);
    int r = layer_sweep(self, layers, n_layers, count_block, &plan);
    for (unsigned i = 0; r == 0 && i < n_layers; i++) {
        Track *t = &tracks[i];
        ret_costs[i] = (ChainPlanCost){
            .commit_bytes = t->commit_bytes,
            .stream_bytes = granule_bytes(&t->stream, t->node->size_bytes),
            .commit_space = space_of(t, &t->commit_space, &t->commit_tables),
            .stream_space = space_of(t, &t->stream_space, &t->stream_tables),
        };
    }
    return r;
}
