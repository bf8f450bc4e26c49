// SPDX-License-Identifier: LGPL-2.1-or-later
// Bits from and to files, and from other bitmaps. Pure.
//
// Bitmaps of one granularity are merged part by part: what one of them says of a slot alone is
// shared, not copied. Else dirty run by dirty run.
#include "bitmap/bitmap-part.h"

#include <string.h>

enum { MERGE_RUNS = 1024 }; // of a step

static void merge_part(Bitmap *b, const PartPlace *place, const BitmapPart *from);

static uint64_t merge_word(const Bitmap *b, const PartPlace *place, unsigned slot, uint64_t word)
{
    uint64_t start = bitmap_slot_start(place, slot);
    if (start >= b->n_granules)
        return 0;
    uint64_t all = bitmap_word_mask(start, start, bitmap_slot_end(b, place, slot));
    uint64_t added = word & all & ~place->part->words[slot];
    if (!added)
        return 0;
    place->part->words[slot] |= added;
    place->part->some |= UINT64_C(1) << slot;
    if (place->part->words[slot] == all)
        place->part->full |= UINT64_C(1) << slot;
    return __builtin_popcountll(added);
}

static uint64_t merge_slot(Bitmap *b, const PartPlace *place, unsigned slot, const BitmapPart *from)
{
    BitmapPart *part = place->part;
    if (bitmap_has_slot(part->full, slot))
        return 0;
    if (bitmap_has_slot(from->full, slot))
        return bitmap_slot_fill(b, place, slot);
    BitmapPart *other = from->parts[slot];
    if (!bitmap_has_slot(part->some, slot)) {
        part->parts[slot] = bitmap_part_ref(other);
        part->some |= UINT64_C(1) << slot;
        return other->n_dirty;
    }
    PartPlace below;
    uint64_t before = part->parts[slot]->n_dirty;
    if (!bitmap_slot_own(b, place, slot, &below))
        return bitmap_slot_fill(b, place, slot);
    merge_part(b, &below, other);
    uint64_t added = below.part->n_dirty - before;
    bitmap_slot_settle(b, place, slot);
    return added;
}

static void merge_part(Bitmap *b, const PartPlace *place, const BitmapPart *from)
{
    uint64_t n = 0;
    for (uint64_t left = from->some; left; left &= left - 1) {
        unsigned slot = __builtin_ctzll(left);
        n += place->level ? merge_slot(b, place, slot, from)
                          : merge_word(b, place, slot, from->words[slot]);
    }
    place->part->n_dirty += n;
}

bool bitmap_merge_step(Bitmap *b, const Bitmap *from, uint64_t *at)
{
    PartPlace top = bitmap_top(b);
    if (b->granularity_bits == from->granularity_bits && b->n_granules == from->n_granules &&
        b->top_level == from->top_level) {
        merge_part(b, &top, &from->top);
        return true;
    }
    for (int i = 0; i < MERGE_RUNS; i++) {
        BitmapRun run;
        if (!bitmap_next_dirty(from, *at, UINT64_MAX, &run))
            return true;
        bitmap_set(b, run.off, run.len);
        // Where its granules are larger, all up to the end of one is dirty by now.
        uint64_t mask = (UINT64_C(1) << b->granularity_bits) - 1, end = run.off + run.len;
        *at = ((end - 1) | mask) + 1;
    }
    return false;
}

void bitmap_merge(Bitmap *b, const Bitmap *from)
{
    uint64_t at = 0;
    while (!bitmap_merge_step(b, from, &at))
        ;
}

// The words of the 64 that begin with `granule`: from a part, or all the same.
static const uint64_t *find_words(const Bitmap *b, uint64_t granule, uint64_t *ret_word)
{
    const BitmapPart *part = &b->top;
    for (unsigned level = b->top_level; level; level--) {
        unsigned slot = (granule >> bitmap_slot_shift(level)) & (BITMAP_SLOTS - 1);
        bool is_full = bitmap_has_slot(part->full, slot);
        if (is_full || !bitmap_has_slot(part->some, slot)) {
            *ret_word = is_full ? UINT64_MAX : 0;
            return NULL;
        }
        part = part->parts[slot];
    }
    return part->words;
}

void bitmap_get_bits(const Bitmap *b, uint64_t first, uint8_t *ret_bits, size_t n_bytes)
{
    g_assert(first % 64 == 0);
    memset(ret_bits, 0, n_bytes);
    const uint64_t *words = NULL;
    uint64_t same = 0;
    bool is_known = false;
    for (size_t done = 0; done < n_bytes && first < b->n_granules; done += 8, first += 64) {
        unsigned slot = first / 64 & (BITMAP_SLOTS - 1);
        if (!slot || !is_known)
            words = find_words(b, first, &same);
        is_known = true;
        uint64_t word = words ? words[slot] : same;
        word &= bitmap_word_mask(first, first, MIN(b->n_granules, first + 64));
        word = GUINT64_TO_LE(word);
        memcpy(ret_bits + done, &word, MIN(sizeof word, n_bytes - done));
    }
}

// Sets what `words` (from `first` on, of one part at level 0) say.
static uint64_t set_words(Bitmap *b, const PartPlace *place, uint64_t first, const uint64_t *words)
{
    uint64_t n = 0;
    if (!place->level) {
        for (unsigned i = 0, slot = bitmap_slot_of(place, first); slot < BITMAP_SLOTS; slot++, i++)
            n += merge_word(b, place, slot, words[i]);
    } else {
        unsigned slot = bitmap_slot_of(place, first);
        PartPlace below;
        if (bitmap_has_slot(place->part->full, slot))
            return 0;
        if (!bitmap_slot_own(b, place, slot, &below)) {
            n = bitmap_slot_fill(b, place, slot);
        } else {
            n = set_words(b, &below, first, words);
            bitmap_slot_settle(b, place, slot);
        }
    }
    place->part->n_dirty += n;
    return n;
}

void bitmap_set_bits(Bitmap *b, uint64_t first, const uint8_t *bits, size_t n_bytes)
{
    g_assert(first % 64 == 0);
    PartPlace top = bitmap_top(b);
    while (n_bytes && first < b->n_granules) {
        uint64_t words[BITMAP_SLOTS] = {0}, any = 0;
        uint64_t n_granules = BITMAP_PART_GRANULES_0 - first % BITMAP_PART_GRANULES_0;
        size_t n = MIN(n_bytes, n_granules / 8);
        memcpy(words, bits, n);
        for (unsigned i = 0; i < BITMAP_SLOTS; i++) {
            words[i] = GUINT64_FROM_LE(words[i]);
            any |= words[i];
        }
        if (any)
            set_words(b, &top, first, words);
        first += n_granules;
        bits += n;
        n_bytes -= n;
    }
}
