// SPDX-License-Identifier: LGPL-2.1-or-later
// Looking for what is dirty or clean, and how much of a range is; a job's cursor. Pure.
#include "bitmap/bitmap-part.h"

#include <errno.h>

#define NONE UINT64_MAX

static PartPlace part_below(const PartPlace *place, unsigned slot)
{
    return (PartPlace){place->part->parts[slot], place->level - 1, bitmap_slot_start(place, slot)};
}

// The first granule from `from` on that is dirty (or clean), or NONE, in the part. What lies past
// the disk's end may be called clean.
static uint64_t find(const PartPlace *place, uint64_t from, bool is_dirty)
{
    const BitmapPart *part = place->part;
    unsigned first = from > place->start ? bitmap_slot_of(place, from) : 0;
    uint64_t left = (is_dirty ? part->some : ~part->full) & (UINT64_MAX << first);
    for (; left; left &= left - 1) {
        unsigned slot = __builtin_ctzll(left);
        uint64_t start = bitmap_slot_start(place, slot), at = MAX(from, start), found = NONE;
        if (!place->level) {
            uint64_t word = is_dirty ? part->words[slot] : ~part->words[slot];
            word &= UINT64_MAX << (at - start);
            found = word ? start + __builtin_ctzll(word) : NONE;
        } else if (is_dirty ? bitmap_has_slot(part->full, slot)
                            : !bitmap_has_slot(part->some, slot)) {
            found = at;
        } else {
            PartPlace below = part_below(place, slot);
            found = find(&below, at, is_dirty);
        }
        if (found != NONE)
            return found;
    }
    return NONE;
}

static uint64_t find_granule(const Bitmap *b, uint64_t from, bool is_dirty)
{
    PartPlace top = bitmap_top((Bitmap *)b);
    if (from >= b->n_granules)
        return b->n_granules;
    return MIN(find(&top, from, is_dirty), b->n_granules);
}

static uint64_t count_in(const Bitmap *b, const PartPlace *place, GranuleRange range)
{
    const BitmapPart *part = place->part;
    uint64_t n = 0;
    unsigned last = bitmap_slot_of(place, range.end - 1);
    for (unsigned slot = bitmap_slot_of(place, range.first); slot <= last; slot++) {
        if (!bitmap_has_slot(part->some, slot))
            continue;
        uint64_t start = bitmap_slot_start(place, slot), end = bitmap_slot_end(b, place, slot);
        GranuleRange inside = {MAX(range.first, start), MIN(range.end, end)};
        if (inside.first == start && inside.end == end) {
            n += bitmap_slot_count(b, place, slot);
        } else if (!place->level) {
            n += __builtin_popcountll(part->words[slot] &
                                      bitmap_word_mask(start, inside.first, inside.end));
        } else if (bitmap_has_slot(part->full, slot)) {
            n += inside.end - inside.first;
        } else {
            PartPlace below = part_below(place, slot);
            n += count_in(b, &below, inside);
        }
    }
    return n;
}

bool bitmap_is_dirty(const Bitmap *b, uint64_t off)
{
    uint64_t granule = off >> b->granularity_bits;
    return off < b->size_bytes && find_granule(b, granule, true) == granule;
}

uint64_t bitmap_dirty_bytes(const Bitmap *b)
{
    return bitmap_dirty_bytes_in(b, 0, b->size_bytes);
}

// Bytes of [off, end) that lie in one granule, if that is dirty.
static uint64_t bytes_if_dirty(const Bitmap *b, uint64_t off, uint64_t end)
{
    return bitmap_is_dirty(b, off) ? end - off : 0;
}

uint64_t bitmap_dirty_bytes_in(const Bitmap *b, uint64_t off, uint64_t len)
{
    if (off >= b->size_bytes || !len)
        return 0;
    uint64_t end = off + MIN(len, b->size_bytes - off);
    uint64_t mask = (UINT64_C(1) << b->granularity_bits) - 1;
    if (off >> b->granularity_bits == (end - 1) >> b->granularity_bits)
        return bytes_if_dirty(b, off, end);
    uint64_t whole = (off + mask) & ~mask, whole_end = end & ~mask;
    uint64_t n = 0;
    if (whole > off)
        n += bytes_if_dirty(b, off, whole);
    if (end > whole_end)
        n += bytes_if_dirty(b, whole_end, end);
    if (whole >= whole_end)
        return n;
    PartPlace top = bitmap_top((Bitmap *)b);
    GranuleRange range = {whole >> b->granularity_bits, whole_end >> b->granularity_bits};
    return n + (count_in(b, &top, range) << b->granularity_bits);
}

uint64_t bitmap_run_at(const Bitmap *b, uint64_t off, uint64_t len, bool *ret_dirty)
{
    *ret_dirty = bitmap_is_dirty(b, off);
    uint64_t next = find_granule(b, off >> b->granularity_bits, !*ret_dirty);
    if (next == b->n_granules) // what lies past the end is clean
        return *ret_dirty ? MIN(len, b->size_bytes - off) : len;
    return MIN(len, (next << b->granularity_bits) - off);
}

bool bitmap_next_dirty(const Bitmap *b, uint64_t off, uint64_t len, BitmapRun *ret_run)
{
    if (off >= b->size_bytes || !len)
        return false;
    uint64_t end = off + MIN(len, b->size_bytes - off);
    uint64_t granule = find_granule(b, off >> b->granularity_bits, true);
    if (granule == b->n_granules || granule << b->granularity_bits >= end)
        return false;
    uint64_t start = MAX(off, granule << b->granularity_bits);
    bool is_dirty;
    *ret_run = (BitmapRun){start, bitmap_run_at(b, start, end - start, &is_dirty)};
    return true;
}

bool bitmap_cursor_next(BitmapCursor *cursor, uint64_t max_bytes, BitmapRun *ret_run)
{
    const Bitmap *b = cursor->bitmap;
    uint64_t mask = (UINT64_C(1) << b->granularity_bits) - 1, off = cursor->off & ~mask;
    BitmapRun run;
    if (!bitmap_next_dirty(b, off, UINT64_MAX, &run)) {
        cursor->off = MAX(cursor->off, b->size_bytes);
        return false;
    }
    run.len = MIN(run.len, (MAX(MIN(max_bytes, b->size_bytes), 1) + mask) & ~mask);
    cursor->off = run.off + run.len;
    *ret_run = run;
    return true;
}

int bitmap_cursor_take(BitmapCursor *cursor, uint64_t max_bytes, BitmapRun *ret_run)
{
    uint64_t off = cursor->off;
    BitmapRun run;
    if (!bitmap_cursor_next(cursor, max_bytes, &run))
        return 0;
    int r = bitmap_clear(cursor->bitmap, run.off, run.len);
    if (r < 0) {
        // Part of it may be clean: all of it is work still.
        bitmap_set(cursor->bitmap, run.off, run.len);
        cursor->off = off;
        return r;
    }
    *ret_run = run;
    return 1;
}
