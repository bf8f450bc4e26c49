// SPDX-License-Identifier: LGPL-2.1-or-later
// Which granules of a disk are dirty: the bits of a dirty bitmap, and the work set of a job. A
// counted hierarchy: what is all clean or all dirty takes no memory, so it costs what the borders
// between the two need, and at most a little over a bit for each granule. Finding the next dirty
// run, and how much is dirty, never scans.
//
// Offsets and lengths are bytes of the disk. A bit is never lost: where memory is short for noting
// what is clean, more is dirty than was said.
//
// Pure. One thread at a time for each Bitmap; a clone shares its parent's parts and may be used,
// and freed, by another thread at the same time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BITMAP_MIN_GRANULARITY_BITS = 9, BITMAP_MAX_GRANULARITY_BITS = 31 };

typedef struct Bitmap Bitmap;

// Part of the disk; `off` is a multiple of the granularity, and so is the end, or it is the disk's.
typedef struct BitmapRun {
    uint64_t off, len;
} BitmapRun;

// All clean. `size_bytes` below 2^63; granularity within the bounds above.
Bitmap *bitmap_new(uint64_t size_bytes, uint32_t granularity_bits);
void bitmap_free(Bitmap *bitmap); // accepts NULL
// The same bits, at a cost that does not depend on their number; what is changed later in one of
// the two is copied then.
Bitmap *bitmap_clone(const Bitmap *bitmap);

uint64_t bitmap_size_bytes(const Bitmap *bitmap);
uint32_t bitmap_granularity_bits(const Bitmap *bitmap);
// Dirty granules; the bytes of the disk in them.
uint64_t bitmap_n_dirty(const Bitmap *bitmap);
uint64_t bitmap_dirty_bytes(const Bitmap *bitmap);
// Of those, the bytes in [off, off+len).
uint64_t bitmap_dirty_bytes_in(const Bitmap *bitmap, uint64_t off, uint64_t len);
bool bitmap_is_dirty(const Bitmap *bitmap, uint64_t off);

// Each granule that [off, off+len) touches becomes dirty; what lies past the end is ignored. Never
// fails.
void bitmap_set(Bitmap *bitmap, uint64_t off, uint64_t len);
// Each granule that lies in [off, off+len) becomes clean; one that is only touched stays as it is.
// -ENOMEM: some of it may still be dirty.
int bitmap_clear(Bitmap *bitmap, uint64_t off, uint64_t len);

// The first dirty run in [off, off+len): where it begins and how long it is, both cut to the range.
// False: there is none.
bool bitmap_next_dirty(const Bitmap *bitmap, uint64_t off, uint64_t len, BitmapRun *ret_run);
// How far from `off` on, at most `len`, all is as it is there; *ret_dirty: how that is.
uint64_t bitmap_run_at(const Bitmap *bitmap, uint64_t off, uint64_t len, bool *ret_dirty);

// The disk has another size now: what is new is clean. -ENOMEM: nothing was changed.
int bitmap_resize(Bitmap *bitmap, uint64_t size_bytes);

// What is dirty in `from` becomes dirty in `bitmap`, whose granularity may be another; what lies
// past its end is ignored. In steps: from *at (0 at first) on, so much as takes a few microseconds
// to a millisecond. True: done; else call again, *at says where. Never fails.
bool bitmap_merge_step(Bitmap *bitmap, const Bitmap *from, uint64_t *at);
// All of it in one go.
void bitmap_merge(Bitmap *bitmap, const Bitmap *from);

// Pieces as they lie in files: granule i is bit i % 8 (bit 0 the lowest) of byte i / 8. `first` is
// a multiple of 64 granules. Bits past the disk's end are 0, or ignored.
void bitmap_get_bits(const Bitmap *bitmap, uint64_t first, uint8_t *ret_bits, size_t n_bytes);
void bitmap_set_bits(Bitmap *bitmap, uint64_t first, const uint8_t *bits, size_t n_bytes);

// A job's way through its work set. What is set behind the cursor is found after a rewind.
typedef struct BitmapCursor {
    Bitmap *bitmap;
    uint64_t off; // next to be looked at; set it to skip, or to 0 to rewind
} BitmapCursor;

// The next dirty run, at most `max_bytes` of it (not 0; rounded up to a granule), is the caller's
// work now: it is clean from here on, so what is set again while the work is done shows, and the
// cursor stands behind it. Work that came to nothing is given back with bitmap_set(). 1; 0: no more
// from here to the end; -ENOMEM.
int bitmap_cursor_take(BitmapCursor *cursor, uint64_t max_bytes, BitmapRun *ret_run);
// The same, but it stays dirty.
bool bitmap_cursor_next(BitmapCursor *cursor, uint64_t max_bytes, BitmapRun *ret_run);
