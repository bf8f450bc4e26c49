// SPDX-License-Identifier: LGPL-2.1-or-later
// What is seen of a layer is what it has where no layer above has anything: logic on bits, a word
// at a time (layer-sweep.h). On the chain's loop, in a fiber.
#include "chain-core/chain-map.h"

#include "layer-sweep.h"

typedef struct Map {
    uint64_t size, part_bytes;
    ChainMapLayer *layers;
} Map;

uint64_t chain_map_part_bytes(Node *const *layers, unsigned n_layers, unsigned n_parts)
{
    uint64_t word_bytes = 64 * layer_sweep_cell_bytes(layers, n_layers); // lies in one part
    uint64_t bytes = (layer_sweep_size(layers, n_layers) + n_parts - 1) / n_parts;
    return MAX((bytes + word_bytes - 1) / word_bytes, 1) * word_bytes;
}

// Bytes of the cells of a word, of which the disk's end may cut the last.
static uint64_t bytes_of_word(const Map *map, uint64_t word, uint64_t off, uint32_t cell_bits)
{
    if (!word)
        return 0;
    uint64_t bytes = (uint64_t)__builtin_popcountll(word) << cell_bits;
    uint64_t end = off + ((64 - (uint64_t)__builtin_clzll(word)) << cell_bits);
    return bytes - (end > map->size ? end - map->size : 0);
}

static void count_block(void *arg, const LayerBlock *b, LayerBits *layers, unsigned n)
{
    Map *map = arg;
    for (unsigned w = 0; w < b->n_words; w++) {
        uint64_t off = b->off + ((uint64_t)w << (b->cell_bits + 6)), above = 0;
        for (unsigned i = n; i-- > 0;) {
            uint64_t data = layers[i].data[w];
            uint64_t shown = bytes_of_word(map, data & ~above, off, b->cell_bits);
            map->layers[i].data_bytes += bytes_of_word(map, data, off, b->cell_bits);
            map->layers[i].shown_bytes += shown;
            if (shown)
                map->layers[i].parts[off / map->part_bytes] += shown;
            above |= data | layers[i].zero[w];
        }
    }
}

int chain_map(Fiber *self, Node *const *layers, unsigned n_layers, uint64_t part_bytes,
              ChainMapLayer *ret_layers)
{
    Map map = {layer_sweep_size(layers, n_layers), part_bytes, ret_layers};
    return layer_sweep(self, layers, n_layers, count_block, &map);
}
