// SPDX-License-Identifier: LGPL-2.1-or-later
#include "layer-sweep.h"

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

// A layer shorter than others shows zeros past its end.
static int look(Fiber *self, LayerBits *t, const LayerBlock *b)
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

// Of all blocks, but for ends of layers.
uint64_t layer_sweep_cell_bytes(Node *const *layers, unsigned n_layers)
{
    enum { BYTES_WITHOUT_CLUSTERS = 4096 };
    uint64_t cell = MAX_CELL_BYTES;
    for (unsigned i = 0; i < n_layers; i++) {
        Node *node = layers[i];
        uint64_t own = node->ops->fill ? MIN(node_fill_granularity(node), node->preferred_bytes)
                                       : BYTES_WITHOUT_CLUSTERS;
        cell = MIN(cell, own);
    }
    return cell;
}

static LayerBlock block_at(const LayerBits *layers, unsigned n, uint64_t off, uint64_t size,
                           uint64_t cell)
{
    uint64_t end = MIN(off + MIN(BLOCK_BYTES, cell * MAX_BLOCK_CELLS), size);
    for (unsigned i = 0; i < n; i++) {
        uint64_t stop = layers[i].node->size_bytes;
        if (off < stop && stop <= end)
            cell = MIN(cell, MAX(stop & -stop, MIN_CELL_BYTES));
    }
    end = MIN(end, off + cell * MAX_BLOCK_CELLS);
    uint64_t n_cells = (end - off + cell - 1) / cell;
    return (LayerBlock){off, end, (uint32_t)__builtin_ctzll(cell), (unsigned)((n_cells + 63) / 64)};
}

typedef struct Sweep {
    LayerSweepFn *fn;
    void *arg;
    uint64_t size, cell;
} Sweep;

static int sweep(Fiber *self, const Sweep *s, LayerBits *layers, unsigned n)
{
    unsigned n_empty = 0;
    LayerBlock b;
    for (uint64_t off = 0; off < s->size; off = b.end) {
        b = block_at(layers, n, off, s->size, s->cell);
        bool has_something = false;
        for (unsigned i = 0; i < n; i++) {
            int r = look(self, &layers[i], &b);
            if (r < 0)
                return r;
            has_something |= layers[i].has_something;
        }
        if (has_something)
            s->fn(s->arg, &b, layers, n);
        if ((has_something || ++n_empty % EMPTY_AT_ONCE == 0) && fiber_sleep(self, 0) < 0)
            return -ECANCELED;
    }
    return 0;
}

uint64_t layer_sweep_size(Node *const *layers, unsigned n_layers)
{
    uint64_t size = 0;
    for (unsigned i = 0; i < n_layers; i++)
        size = MAX(size, layers[i]->size_bytes);
    return size;
}

int layer_sweep(Fiber *self, Node *const *layers, unsigned n_layers, LayerSweepFn *fn, void *arg)
{
    g_autofree LayerBits *bits = g_new0(LayerBits, n_layers);
    for (unsigned i = 0; i < n_layers; i++) {
        bits[i].node = layers[i];
        bits[i].data = g_new0(uint64_t, MAX_BLOCK_CELLS / 64);
        bits[i].zero = g_new0(uint64_t, MAX_BLOCK_CELLS / 64);
    }
    io_buffers_hold(fiber_loop(self)); // tables go through them
    const Sweep s = {fn, arg, layer_sweep_size(layers, n_layers),
                     layer_sweep_cell_bytes(layers, n_layers)};
    int r = sweep(self, &s, bits, n_layers);
    io_buffers_release(fiber_loop(self));
    for (unsigned i = 0; i < n_layers; i++) {
        g_free(bits[i].data);
        g_free(bits[i].zero);
    }
    return r;
}
