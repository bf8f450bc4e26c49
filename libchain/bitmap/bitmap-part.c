// SPDX-License-Identifier: LGPL-2.1-or-later
// Parts and their slots: made, copied before a change, filled, emptied, and the two walks that
// change granules. Pure.
//
// No memory for a part of which all but a little is to become dirty: then all of it becomes dirty.
#include "bitmap/bitmap-part.h"

#include <errno.h>
#include <string.h>

BitmapPart *bitmap_part_ref(BitmapPart *part)
{
    g_atomic_ref_count_inc(&part->n_refs);
    return part;
}

void bitmap_part_ref_below(const BitmapPart *part, unsigned level)
{
    if (!level)
        return;
    for (uint64_t left = part->some & ~part->full; left; left &= left - 1)
        bitmap_part_ref(part->parts[__builtin_ctzll(left)]);
}

void bitmap_part_unref_below(BitmapPart *part, unsigned level)
{
    if (!level)
        return;
    for (uint64_t left = part->some & ~part->full; left; left &= left - 1)
        bitmap_part_unref(part->parts[__builtin_ctzll(left)], level - 1);
}

void bitmap_part_unref(BitmapPart *part, unsigned level)
{
    if (!g_atomic_ref_count_dec(&part->n_refs))
        return;
    bitmap_part_unref_below(part, level);
    g_free(part);
}

static bool has_below(const PartPlace *place, unsigned slot)
{
    return place->level && bitmap_has_slot(place->part->some & ~place->part->full, slot);
}

uint64_t bitmap_slot_count(const Bitmap *b, const PartPlace *place, unsigned slot)
{
    const BitmapPart *part = place->part;
    if (!bitmap_has_slot(part->some, slot))
        return 0;
    if (!place->level)
        return __builtin_popcountll(part->words[slot]);
    if (bitmap_has_slot(part->full, slot))
        return bitmap_slot_end(b, place, slot) - bitmap_slot_start(place, slot);
    return part->parts[slot]->n_dirty;
}

uint64_t bitmap_slot_fill(const Bitmap *b, const PartPlace *place, unsigned slot)
{
    uint64_t start = bitmap_slot_start(place, slot), end = bitmap_slot_end(b, place, slot);
    uint64_t n = end - start - bitmap_slot_count(b, place, slot);
    if (has_below(place, slot))
        bitmap_part_unref(place->part->parts[slot], place->level - 1);
    if (place->level)
        place->part->parts[slot] = NULL;
    else
        place->part->words[slot] = bitmap_word_mask(start, start, end);
    place->part->some |= UINT64_C(1) << slot;
    place->part->full |= UINT64_C(1) << slot;
    return n;
}

uint64_t bitmap_slot_empty(const Bitmap *b, const PartPlace *place, unsigned slot)
{
    uint64_t n = bitmap_slot_count(b, place, slot);
    if (has_below(place, slot))
        bitmap_part_unref(place->part->parts[slot], place->level - 1);
    if (place->level)
        place->part->parts[slot] = NULL;
    else
        place->part->words[slot] = 0;
    place->part->some &= ~(UINT64_C(1) << slot);
    place->part->full &= ~(UINT64_C(1) << slot);
    return n;
}

// A part in which every granule of the disk is dirty.
static void fill_part(const Bitmap *b, const PartPlace *place)
{
    unsigned shift = bitmap_slot_shift(place->level);
    uint64_t n = b->n_granules - place->start, n_slots = (n + (UINT64_C(1) << shift) - 1) >> shift;
    for (unsigned slot = 0; slot < MIN(n_slots, BITMAP_SLOTS); slot++)
        place->part->n_dirty += bitmap_slot_fill(b, place, slot);
}

static BitmapPart *copy_part(BitmapPart *part, unsigned level)
{
    BitmapPart *copy = g_try_new(BitmapPart, 1);
    if (!copy)
        return NULL;
    copy->some = part->some;
    copy->full = part->full;
    copy->n_dirty = part->n_dirty;
    memcpy(copy->words, part->words, sizeof copy->words);
    g_atomic_ref_count_init(&copy->n_refs);
    bitmap_part_ref_below(copy, level);
    return copy;
}

bool bitmap_slot_own(const Bitmap *b, const PartPlace *place, unsigned slot, PartPlace *ret_below)
{
    BitmapPart *above = place->part, *part = NULL;
    PartPlace below = {NULL, place->level - 1, bitmap_slot_start(place, slot)};
    if (has_below(place, slot)) {
        part = above->parts[slot];
        if (!g_atomic_ref_count_compare(&part->n_refs, 1)) {
            BitmapPart *copy = copy_part(part, below.level);
            if (!copy)
                return false;
            bitmap_part_unref(part, below.level);
            part = copy;
        }
        below.part = part;
    } else {
        part = g_try_new0(BitmapPart, 1);
        if (!part)
            return false;
        g_atomic_ref_count_init(&part->n_refs);
        below.part = part;
        if (bitmap_has_slot(above->full, slot))
            fill_part(b, &below);
    }
    above->parts[slot] = part;
    above->some |= UINT64_C(1) << slot;
    above->full &= ~(UINT64_C(1) << slot);
    *ret_below = below;
    return true;
}

void bitmap_slot_settle(const Bitmap *b, const PartPlace *place, unsigned slot)
{
    const BitmapPart *part = place->part->parts[slot];
    if (!part->n_dirty)
        bitmap_slot_empty(b, place, slot);
    else if (part->n_dirty == bitmap_slot_end(b, place, slot) - bitmap_slot_start(place, slot))
        bitmap_slot_fill(b, place, slot);
}

static uint64_t set_in_word(const Bitmap *b, const PartPlace *place, unsigned slot,
                            GranuleRange range)
{
    uint64_t start = bitmap_slot_start(place, slot), end = bitmap_slot_end(b, place, slot);
    uint64_t *word = &place->part->words[slot];
    uint64_t added = bitmap_word_mask(start, range.first, range.end) & ~*word;
    *word |= added;
    place->part->some |= UINT64_C(1) << slot;
    if (*word == bitmap_word_mask(start, start, end))
        place->part->full |= UINT64_C(1) << slot;
    return __builtin_popcountll(added);
}

// `inside` is part of the slot, not all of it.
static uint64_t set_in_slot(const Bitmap *b, const PartPlace *place, unsigned slot,
                            GranuleRange inside)
{
    if (!place->level)
        return set_in_word(b, place, slot, inside);
    PartPlace below;
    if (!bitmap_slot_own(b, place, slot, &below))
        return bitmap_slot_fill(b, place, slot);
    uint64_t n = bitmap_set_granules(b, &below, inside);
    bitmap_slot_settle(b, place, slot);
    return n;
}

uint64_t bitmap_set_granules(const Bitmap *b, const PartPlace *place, GranuleRange range)
{
    uint64_t n = 0;
    unsigned last = bitmap_slot_of(place, range.end - 1);
    for (unsigned slot = bitmap_slot_of(place, range.first); slot <= last; slot++) {
        if (bitmap_has_slot(place->part->full, slot))
            continue;
        uint64_t start = bitmap_slot_start(place, slot), end = bitmap_slot_end(b, place, slot);
        GranuleRange inside = {MAX(range.first, start), MIN(range.end, end)};
        bool is_all = inside.first == start && inside.end == end;
        n += is_all ? bitmap_slot_fill(b, place, slot) : set_in_slot(b, place, slot, inside);
    }
    place->part->n_dirty += n;
    return n;
}

static uint64_t clear_in_word(const PartPlace *place, unsigned slot, GranuleRange range)
{
    uint64_t start = bitmap_slot_start(place, slot), *word = &place->part->words[slot];
    uint64_t gone = bitmap_word_mask(start, range.first, range.end) & *word;
    *word &= ~gone;
    if (gone)
        place->part->full &= ~(UINT64_C(1) << slot);
    if (!*word)
        place->part->some &= ~(UINT64_C(1) << slot);
    return __builtin_popcountll(gone);
}

static int clear_in_slot(const Bitmap *b, const PartPlace *place, unsigned slot,
                         GranuleRange inside, uint64_t *ret_n)
{
    PartPlace below;
    if (!place->level) {
        *ret_n = clear_in_word(place, slot, inside);
        return 0;
    }
    if (!bitmap_slot_own(b, place, slot, &below))
        return -ENOMEM;
    int r = bitmap_clear_granules(b, &below, inside, ret_n);
    bitmap_slot_settle(b, place, slot);
    return r;
}

int bitmap_clear_granules(const Bitmap *b, const PartPlace *place, GranuleRange range,
                          uint64_t *ret_n)
{
    uint64_t n = 0;
    int r = 0;
    unsigned last = bitmap_slot_of(place, range.end - 1);
    for (unsigned slot = bitmap_slot_of(place, range.first); slot <= last && r == 0; slot++) {
        if (!bitmap_has_slot(place->part->some, slot))
            continue;
        uint64_t start = bitmap_slot_start(place, slot), end = bitmap_slot_end(b, place, slot);
        GranuleRange inside = {MAX(range.first, start), MIN(range.end, end)};
        uint64_t gone = 0;
        if (inside.first == start && inside.end == end)
            gone = bitmap_slot_empty(b, place, slot);
        else
            r = clear_in_slot(b, place, slot, inside, &gone);
        n += gone;
    }
    place->part->n_dirty -= n;
    *ret_n = n;
    return r;
}
