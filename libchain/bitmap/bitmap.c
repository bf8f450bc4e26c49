// SPDX-License-Identifier: LGPL-2.1-or-later
// A Bitmap as a whole: its life, size, and changing what is dirty. Parts are bitmap-part.c, looking
// for what is dirty bitmap-search.c, files and other bitmaps bitmap-pieces.c. Pure.
//
// A guest's write mostly lies in one word, whose parts are there: that is a walk down to the word,
// and one up again that counts.
#include "bitmap/bitmap-part.h"

#include <errno.h>
#include <string.h>

static uint64_t granules_for(uint64_t size_bytes, uint32_t granularity_bits)
{
    return (size_bytes >> granularity_bits) +
           ((size_bytes & ((UINT64_C(1) << granularity_bits) - 1)) != 0);
}

// Granules that parts up to `level` can tell apart.
static uint64_t capacity(unsigned level)
{
    return UINT64_C(1) << (BITMAP_PART_BITS_0 + BITMAP_SLOT_BITS * level);
}

Bitmap *bitmap_new(uint64_t size_bytes, uint32_t granularity_bits)
{
    g_assert(granularity_bits >= BITMAP_MIN_GRANULARITY_BITS &&
             granularity_bits <= BITMAP_MAX_GRANULARITY_BITS && size_bytes <= INT64_MAX);
    Bitmap *b = g_new0(Bitmap, 1);
    b->size_bytes = size_bytes;
    b->granularity_bits = granularity_bits;
    b->n_granules = granules_for(size_bytes, granularity_bits);
    while (capacity(b->top_level) < b->n_granules)
        b->top_level++;
    return b;
}

void bitmap_free(Bitmap *b)
{
    if (b)
        bitmap_part_unref_below(&b->top, b->top_level);
    g_free(b);
}

Bitmap *bitmap_clone(const Bitmap *b)
{
    Bitmap *clone = g_memdup2(b, sizeof *b);
    bitmap_part_ref_below(&clone->top, clone->top_level);
    return clone;
}

uint64_t bitmap_size_bytes(const Bitmap *b)
{
    return b->size_bytes;
}

uint32_t bitmap_granularity_bits(const Bitmap *b)
{
    return b->granularity_bits;
}

uint64_t bitmap_n_dirty(const Bitmap *b)
{
    return b->top.n_dirty;
}

// Sets what lies in one word, where no part must be made, copied or given up for that. False: it
// takes more.
static bool try_set_in_word(Bitmap *b, GranuleRange range)
{
    BitmapPart *path[16], *part = &b->top;
    unsigned shift = bitmap_slot_shift(b->top_level), n_above = 0;
    int shared = 0;
    for (; shift > BITMAP_SLOT_BITS; shift -= BITMAP_SLOT_BITS) {
        unsigned slot = (range.first >> shift) & (BITMAP_SLOTS - 1);
        BitmapPart *below = part->parts[slot];
        if (!below)
            return bitmap_has_slot(part->full, slot);
        path[n_above++] = part;
        part = below;
        shared |= g_atomic_int_get(&part->n_refs) - 1;
    }
    unsigned slot = (range.first >> BITMAP_SLOT_BITS) & (BITMAP_SLOTS - 1);
    uint64_t mask = UINT64_C(1) << (range.first & 63);
    if (range.end - range.first > 1)
        mask = bitmap_word_mask(range.first & ~UINT64_C(63), range.first, range.end);
    uint64_t word = part->words[slot], added = mask & ~word;
    if (!added)
        return true;
    if (shared || (word | added) == UINT64_MAX)
        return false;
    uint64_t n = added & (added - 1) ? __builtin_popcountll(added) : 1;
    part->words[slot] = word | added;
    part->some |= UINT64_C(1) << slot;
    part->n_dirty += n;
    while (n_above)
        path[--n_above]->n_dirty += n;
    return true;
}

void bitmap_set(Bitmap *b, uint64_t off, uint64_t len)
{
    if (off >= b->size_bytes || !len)
        return;
    uint64_t last = off + MIN(len, b->size_bytes - off) - 1;
    GranuleRange range = {off >> b->granularity_bits, (last >> b->granularity_bits) + 1};
    if (range.first / 64 == (range.end - 1) / 64 && try_set_in_word(b, range))
        return;
    PartPlace top = bitmap_top(b);
    bitmap_set_granules(b, &top, range);
}

int bitmap_clear(Bitmap *b, uint64_t off, uint64_t len)
{
    if (off >= b->size_bytes)
        return 0;
    uint64_t end = off + MIN(len, b->size_bytes - off);
    GranuleRange range = {granules_for(off, b->granularity_bits), end >> b->granularity_bits};
    if (end == b->size_bytes)
        range.end = b->n_granules;
    if (range.first >= range.end)
        return 0;
    PartPlace top = bitmap_top(b);
    uint64_t n;
    return bitmap_clear_granules(b, &top, range, &n);
}

// What says "all of it" at the disk's end says so of fewer granules than there will be: it becomes
// a part that names them.
static int open_end(Bitmap *b)
{
    PartPlace place = bitmap_top(b);
    if (!b->n_granules)
        return 0;
    for (;;) {
        unsigned slot = bitmap_slot_of(&place, b->n_granules - 1);
        uint64_t bit = UINT64_C(1) << slot;
        if (!(place.part->some & bit) ||
            !(b->n_granules & ((UINT64_C(1) << bitmap_slot_shift(place.level)) - 1)))
            return 0;
        if (!place.level) {
            place.part->full &= ~bit;
            return 0;
        }
        PartPlace below;
        if (!bitmap_slot_own(b, &place, slot, &below))
            return -ENOMEM;
        place = below;
    }
}

static int add_levels(Bitmap *b, uint64_t n_granules)
{
    while (capacity(b->top_level) < n_granules) {
        if (b->top.some) {
            BitmapPart *part = g_try_new(BitmapPart, 1);
            if (!part)
                return -ENOMEM;
            *part = b->top;
            g_atomic_ref_count_init(&part->n_refs);
            b->top.some = 1;
            b->top.full = 0;
            memset(b->top.parts, 0, sizeof b->top.parts);
            b->top.parts[0] = part;
        }
        b->top_level++;
    }
    return 0;
}

// The disk ends at granule `end`, inside `place`. What cannot be copied becomes dirty.
static void cut(Bitmap *b, const PartPlace *place, uint64_t end)
{
    BitmapPart *part = place->part;
    part->n_dirty = 0;
    for (unsigned slot = 0; slot < BITMAP_SLOTS && part->some >> slot; slot++) {
        uint64_t start = bitmap_slot_start(place, slot);
        PartPlace below;
        if (start >= end) {
            bitmap_slot_empty(b, place, slot);
        } else if (end < bitmap_slot_end(b, place, slot) && bitmap_has_slot(part->some, slot)) {
            if (!place->level)
                part->words[slot] &= bitmap_word_mask(start, start, end);
            else if (!bitmap_has_slot(part->full, slot) && bitmap_slot_own(b, place, slot, &below))
                cut(b, &below, end);
            else
                bitmap_slot_fill(b, place, slot);
        }
    }
}

// Counts anew what cut() left, along the disk's end.
static uint64_t count(Bitmap *b, const PartPlace *place)
{
    uint64_t n = 0;
    for (uint64_t left = place->part->some; left; left &= left - 1) {
        unsigned slot = __builtin_ctzll(left);
        bool is_last =
            bitmap_slot_start(place, slot) + (UINT64_C(1) << bitmap_slot_shift(place->level)) >
            b->n_granules;
        if (is_last && place->level && !bitmap_has_slot(place->part->full, slot)) {
            PartPlace below = {place->part->parts[slot], place->level - 1,
                               bitmap_slot_start(place, slot)};
            count(b, &below);
        }
        n += bitmap_slot_count(b, place, slot);
        if (!bitmap_slot_count(b, place, slot))
            bitmap_slot_empty(b, place, slot);
    }
    place->part->n_dirty = n;
    return n;
}

int bitmap_resize(Bitmap *b, uint64_t size_bytes)
{
    g_assert(size_bytes <= INT64_MAX);
    uint64_t n_granules = granules_for(size_bytes, b->granularity_bits);
    PartPlace top = bitmap_top(b);
    if (n_granules > b->n_granules) {
        int r = open_end(b);
        if (r == 0)
            r = add_levels(b, n_granules);
        if (r < 0)
            return r;
    } else if (n_granules < b->n_granules) {
        cut(b, &top, n_granules);
    }
    bool is_cut = n_granules < b->n_granules;
    b->n_granules = n_granules;
    b->size_bytes = size_bytes;
    if (is_cut)
        count(b, &top);
    return 0;
}
