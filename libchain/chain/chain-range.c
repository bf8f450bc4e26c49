// SPDX-License-Identifier: LGPL-2.1-or-later
// The layers are asked one after the other, from the top; each answer shortens the range for which
// the next one is asked. On the chain's loop, in a fiber.
#include "chain-core/chain-range.h"

#include "chain-core/chain.h"

// Asks one layer: *ret_range says how far it decides (`is_owned`), or does not.
static int ask(Fiber *self, Node *layer, GuestOff off, uint64_t len, ChainRange *ret_range)
{
    *ret_range = (ChainRange){len, true, true, layer};
    if (off.v >= layer->size_bytes)
        return 0; // a layer shorter than its overlay shows zeros there, and hides what lies below
    NodeExtentKind kind;
    int r = node_find_kind(self, layer, off, MIN(len, layer->size_bytes - off.v), &kind,
                           &ret_range->len);
    ret_range->is_owned = kind != NODE_EXTENT_BELOW;
    ret_range->is_zero = kind == NODE_EXTENT_ZERO;
    return r;
}

int chain_range_find(Fiber *self, const ChainLayers *layers, GuestOff off, uint64_t len,
                     ChainRange *ret_range)
{
    ChainRange range = {.len = len};
    int r = layers->above ? ask(self, layers->above, off, len, &range) : 0;
    bool is_above = range.is_owned;
    for (Node *layer = layers->top; r == 0 && layer && layer != layers->base && !range.is_owned;
         layer = chain_backing(layer))
        r = ask(self, layer, off, range.len, &range);
    if (r < 0)
        return r;
    if (!range.is_owned || is_above)
        range = (ChainRange){.len = range.len};
    *ret_range = range;
    return 0;
}
