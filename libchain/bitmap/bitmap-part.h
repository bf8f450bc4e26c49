// SPDX-License-Identifier: LGPL-2.1-or-later
// The parts of a Bitmap's hierarchy, for this folder only.
//
//     level 2   [ . | # | p | . … ]        64 slots of 64^2 words: clean, dirty, or a part below
//                         │
//     level 1   [ # | p | # | . … ]        64 slots of 64 words each
//                     │
//     level 0   [ w | w | w | w … ]        64 words of 64 granules
//
// A part counts what is dirty in it. Two masks say of each slot whether anything in it is dirty
// (`some`) and whether all of it is (`full`); a part lies below only where some is and not all.
// "All" means granules of the disk: bits past its end are never set, nor counted. A slot with
// everything dirty need not be marked full; but one marked so is.
//
// Parts are shared by clones, and copied before they are changed (bitmap_part_own). The part at the
// top belongs to one Bitmap.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain-core/bitmap.h"

enum {
    BITMAP_SLOT_BITS = 6,
    BITMAP_SLOTS = 1 << BITMAP_SLOT_BITS,
    BITMAP_PART_BITS_0 = 12, // granules of a part at level 0, as a power of 2
    BITMAP_PART_GRANULES_0 = 1 << BITMAP_PART_BITS_0,
};

typedef struct BitmapPart BitmapPart;
struct BitmapPart {
    uint64_t some, full;
    uint64_t n_dirty;
    gatomicrefcount n_refs;
    union {
        BitmapPart *parts[BITMAP_SLOTS]; // above level 0; NULL: all clean, or all dirty
        uint64_t words[BITMAP_SLOTS];    // at level 0
    };
};

struct Bitmap {
    uint64_t n_granules;
    uint64_t size_bytes;
    uint32_t granularity_bits;
    uint32_t top_level;
    BitmapPart top;
};

// Granules, not bytes.
typedef struct GranuleRange {
    uint64_t first, end;
} GranuleRange;

// A part in its place.
typedef struct PartPlace {
    BitmapPart *part;
    unsigned level;
    uint64_t start; // its first granule
} PartPlace;

static inline unsigned bitmap_slot_shift(unsigned level)
{
    return BITMAP_SLOT_BITS * (level + 1);
}
static inline uint64_t bitmap_slot_start(const PartPlace *place, unsigned slot)
{
    return place->start + ((uint64_t)slot << bitmap_slot_shift(place->level));
}
// The first granule past a slot, as far as the disk goes.
static inline uint64_t bitmap_slot_end(const Bitmap *b, const PartPlace *place, unsigned slot)
{
    uint64_t end =
        bitmap_slot_start(place, slot) + (UINT64_C(1) << bitmap_slot_shift(place->level));
    return MIN(end, b->n_granules);
}
static inline unsigned bitmap_slot_of(const PartPlace *place, uint64_t granule)
{
    return (granule - place->start) >> bitmap_slot_shift(place->level);
}
static inline PartPlace bitmap_top(Bitmap *b)
{
    return (PartPlace){&b->top, b->top_level, 0};
}
static inline bool bitmap_has_slot(uint64_t mask, unsigned slot)
{
    return mask >> slot & 1;
}
// The bits of granules [first, end) in the word that begins with granule `start`.
static inline uint64_t bitmap_word_mask(uint64_t start, uint64_t first, uint64_t end)
{
    uint64_t mask = UINT64_MAX;
    if (first > start)
        mask <<= first - start;
    if (end - start < 64)
        mask &= (UINT64_C(1) << (end - start)) - 1;
    return mask;
}

// Dirty granules in a slot.
uint64_t bitmap_slot_count(const Bitmap *b, const PartPlace *place, unsigned slot);
// All of a slot becomes dirty, or clean. Returns by how much the count of dirty granules changed,
// which the caller adds to, or takes from, the part's and those above it.
uint64_t bitmap_slot_fill(const Bitmap *b, const PartPlace *place, unsigned slot);
uint64_t bitmap_slot_empty(const Bitmap *b, const PartPlace *place, unsigned slot);

// The part below a slot (above level 0), to be changed: made, or copied if it is shared. The slot
// then counts as partly dirty; bitmap_slot_settle() says what it is in the end. False: no memory,
// nothing was changed.
bool bitmap_slot_own(const Bitmap *b, const PartPlace *place, unsigned slot, PartPlace *ret_below);
void bitmap_slot_settle(const Bitmap *b, const PartPlace *place, unsigned slot);

BitmapPart *bitmap_part_ref(BitmapPart *part);
void bitmap_part_unref(BitmapPart *part, unsigned level);
// References to, or from, what lies below a part.
void bitmap_part_ref_below(const BitmapPart *part, unsigned level);
void bitmap_part_unref_below(BitmapPart *part, unsigned level);

// Sets granules; how many of them were clean. bitmap_clear() for granules, -ENOMEM as there.
uint64_t bitmap_set_granules(const Bitmap *b, const PartPlace *place, GranuleRange range);
int bitmap_clear_granules(const Bitmap *b, const PartPlace *place, GranuleRange range,
                          uint64_t *ret_n);
