// SPDX-License-Identifier: LGPL-2.1-or-later
// On the source's loop.
#include "mirror-bitmap.h"

#include "chain-core/dirty-bitmap.h"

void mirror_bitmap_init(MirrorBitmap *of, DirtyBitmap *bitmap, MirrorBitmapMode mode)
{
    *of = (MirrorBitmap){.bitmap = bitmap, .mode = mode};
    if (!bitmap)
        return;
    dirty_bitmap_ref(bitmap);
    dirty_bitmap_set_busy(bitmap, true);
}

void mirror_bitmap_done(MirrorBitmap *of)
{
    if (!of->bitmap)
        return;
    dirty_bitmap_set_busy(of->bitmap, false);
    dirty_bitmap_unref(of->bitmap);
    bitmap_free(of->clean);
}

static const Bitmap *bits_of(const MirrorBitmap *of)
{
    return dirty_bitmap_bits(of->bitmap); // never NULL: an inconsistent one is refused
}

int mirror_bitmap_begin(Fiber *self, MirrorBitmap *of)
{
    if (!of->bitmap || of->mode == MIRROR_BITMAP_NEVER)
        return 0;
    of->clean =
        bitmap_new(bitmap_size_bytes(bits_of(of)), dirty_bitmap_granularity_bits(of->bitmap));
    return dirty_bitmap_before_change(self, of->bitmap);
}

uint64_t mirror_bitmap_look(const MirrorBitmap *of, uint64_t off, uint64_t len, bool *ret_dirty)
{
    return bitmap_run_at(bits_of(of), off, len, ret_dirty);
}

static void set_bits(MirrorBitmap *of)
{
    bitmap_free(dirty_bitmap_swap_bits(of->bitmap, g_steal_pointer(&of->clean)));
}

void mirror_bitmap_set_copied(MirrorBitmap *of)
{
    if (of->clean)
        set_bits(of);
}

// Where the engine has not looked yet all that was to be copied is left.
void mirror_bitmap_set_left(MirrorBitmap *of, CopyEngine *engine, const Bitmap *unflushed)
{
    CopyEngineStats stats;
    if (!of->clean || of->mode != MIRROR_BITMAP_ALWAYS)
        return;
    copy_engine_stats(engine, &stats);
    work_set_add_to(copy_engine_work(engine), of->clean);
    bitmap_merge(of->clean, unflushed);
    bitmap_set(of->clean, stats.found_off, bitmap_size_bytes(of->clean) - stats.found_off);
    set_bits(of);
}
