// SPDX-License-Identifier: LGPL-2.1-or-later
// Two dirty bitmaps and a place. A granule is in one of them at most. On one loop.
#include "work-set.h"

#include <glib.h>

struct WorkSet {
    Bitmap *bits[2]; // WorkKind
    uint64_t off;    // where the search goes on
};

WorkSet *work_set_new(uint64_t size_bytes, uint32_t granularity_bits)
{
    WorkSet *set = g_new0(WorkSet, 1);
    set->bits[WORK_DATA] = bitmap_new(size_bytes, granularity_bits);
    set->bits[WORK_METADATA] = bitmap_new(size_bytes, granularity_bits);
    return set;
}

void work_set_free(WorkSet *set)
{
    if (!set)
        return;
    bitmap_free(set->bits[WORK_DATA]);
    bitmap_free(set->bits[WORK_METADATA]);
    g_free(set);
}

uint64_t work_set_granularity(const WorkSet *set)
{
    return UINT64_C(1) << bitmap_granularity_bits(set->bits[WORK_DATA]);
}

// The granules that a range touches.
static BitmapRun around(const WorkSet *set, uint64_t off, uint64_t len)
{
    uint64_t g = work_set_granularity(set), size = bitmap_size_bytes(set->bits[WORK_DATA]);
    uint64_t start = off - off % g, end = MIN(off + len, size);
    end = MIN((end + g - 1) / g * g, size);
    return (BitmapRun){start, end > start ? end - start : 0};
}

static void add_metadata(WorkSet *set, uint64_t off, uint64_t len)
{
    while (len) {
        bool is_data;
        uint64_t n = bitmap_run_at(set->bits[WORK_DATA], off, len, &is_data);
        if (!is_data)
            bitmap_set(set->bits[WORK_METADATA], off, n);
        off += n;
        len -= n;
    }
}

void work_set_add(WorkSet *set, WorkKind kind, uint64_t off, uint64_t len)
{
    BitmapRun run = around(set, off, len);
    if (kind == WORK_METADATA) {
        add_metadata(set, run.off, run.len);
        return;
    }
    bitmap_set(set->bits[WORK_DATA], run.off, run.len);
    bitmap_clear(set->bits[WORK_METADATA], run.off, run.len);
}

void work_set_remove(WorkSet *set, uint64_t off, uint64_t len)
{
    bitmap_clear(set->bits[WORK_DATA], off, len);
    bitmap_clear(set->bits[WORK_METADATA], off, len);
}

bool work_set_is_empty(const WorkSet *set)
{
    return !bitmap_n_dirty(set->bits[WORK_DATA]) && !bitmap_n_dirty(set->bits[WORK_METADATA]);
}

bool work_set_has(const WorkSet *set, uint64_t off)
{
    return bitmap_is_dirty(set->bits[WORK_DATA], off) ||
           bitmap_is_dirty(set->bits[WORK_METADATA], off);
}

static uint64_t run_of_one_kind(const WorkSet *set, uint64_t off, uint64_t len, bool *ret_is_work)
{
    bool is_data, is_metadata;
    len = bitmap_run_at(set->bits[WORK_DATA], off, len, &is_data);
    if (!is_data)
        len = bitmap_run_at(set->bits[WORK_METADATA], off, len, &is_metadata);
    *ret_is_work = is_data || is_metadata;
    return len;
}

uint64_t work_set_run(const WorkSet *set, uint64_t off, uint64_t len, bool *ret_is_work)
{
    uint64_t n = run_of_one_kind(set, off, len, ret_is_work);
    while (n < len) {
        bool is_work;
        uint64_t more = run_of_one_kind(set, off + n, len - n, &is_work);
        if (is_work != *ret_is_work)
            break;
        n += more;
    }
    return n;
}

uint64_t work_set_data_bytes(const WorkSet *set)
{
    return bitmap_dirty_bytes(set->bits[WORK_DATA]);
}

void work_set_add_to(const WorkSet *set, Bitmap *bitmap)
{
    bitmap_merge(bitmap, set->bits[WORK_DATA]);
    bitmap_merge(bitmap, set->bits[WORK_METADATA]);
}

static bool next_from(const WorkSet *set, uint64_t off, WorkKind *ret_kind, BitmapRun *ret_run)
{
    uint64_t len = bitmap_size_bytes(set->bits[WORK_DATA]) - off;
    BitmapRun data, metadata;
    bool has_data = bitmap_next_dirty(set->bits[WORK_DATA], off, len, &data);
    bool has_metadata = bitmap_next_dirty(set->bits[WORK_METADATA], off, len, &metadata);
    if (!has_data && !has_metadata)
        return false;
    bool is_data = has_data && (!has_metadata || data.off <= metadata.off);
    *ret_kind = is_data ? WORK_DATA : WORK_METADATA;
    *ret_run = is_data ? data : metadata;
    return true;
}

bool work_set_next(WorkSet *set, WorkKind *ret_kind, BitmapRun *ret_run)
{
    return next_from(set, set->off, ret_kind, ret_run) || next_from(set, 0, ret_kind, ret_run);
}

void work_set_move(WorkSet *from, WorkSet *to)
{
    WorkKind kind;
    BitmapRun run;
    while (work_set_next(from, &kind, &run)) {
        work_set_add(to, kind, run.off, run.len);
        work_set_remove(from, run.off, run.len);
    }
}

void work_set_go_on(WorkSet *set, uint64_t off)
{
    set->off = MIN(off, bitmap_size_bytes(set->bits[WORK_DATA]));
}
