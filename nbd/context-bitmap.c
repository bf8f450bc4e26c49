// SPDX-License-Identifier: LGPL-2.1-or-later
// From runs of bits to extents. What lies past the bitmap's end (padding, a disk that has grown) is
// clean.
#include "context-bitmap.h"

#include "chain-core/dirty-bitmap.h"

enum { STATE_DIRTY = 1 << 0 };

typedef struct BitmapContext {
    NbdsContext context;
    DirtyBitmap *bitmap; // NULL: given up
} BitmapContext;

static const Bitmap *bits_of(const NbdsContext *context)
{
    return dirty_bitmap_bits(((const BitmapContext *)context)->bitmap);
}

// As far as none of them changes. False when every list is full.
static bool add_extents(NbdsWalk *walk, uint64_t length)
{
    bool is_wanted = false;
    for (unsigned i = 0; i < walk->n; i++) {
        bool is_dirty = bitmap_is_dirty(bits_of(walk->contexts[i]), walk->offset);
        is_wanted |= nbds_extent_list_add(&walk->lists[i], length, is_dirty ? STATE_DIRTY : 0);
    }
    return is_wanted;
}

static int walk_bitmaps(Fiber *self, Node *node, NbdsWalk *walk)
{
    for (unsigned n = 0; n < NBDS_WALK_STEPS && walk->offset < walk->end; n++) {
        uint64_t length = walk->end - walk->offset;
        bool is_dirty;
        for (unsigned i = 0; i < walk->n; i++)
            length = bitmap_run_at(bits_of(walk->contexts[i]), walk->offset, length, &is_dirty);
        if (!add_extents(walk, length))
            walk->end = walk->offset;
        else
            walk->offset += length;
    }
    return 0;
}

static void release(Fiber *self, NbdsContext *context)
{
    BitmapContext *c = (BitmapContext *)context;
    dirty_bitmap_set_busy(c->bitmap, false);
    g_clear_pointer(&c->bitmap, dirty_bitmap_unref);
}

static const NbdsContextKind bitmap_kind = {.walk = walk_bitmaps, .release = release};

void nbds_context_bitmaps_add(GPtrArray *contexts, const NbdsExportConfig *config)
{
    for (unsigned i = 0; config && config->bitmaps && i < config->bitmaps->len; i++) {
        BitmapContext *c = g_new0(BitmapContext, 1);
        c->bitmap = dirty_bitmap_ref(config->bitmaps->pdata[i]);
        dirty_bitmap_set_busy(c->bitmap, true);
        g_autofree char *name =
            g_strconcat("qemu:dirty-bitmap:", dirty_bitmap_name(c->bitmap), NULL);
        nbds_context_init(&c->context, &bitmap_kind, name, contexts);
    }
}
