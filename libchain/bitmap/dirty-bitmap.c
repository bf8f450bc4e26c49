// SPDX-License-Identifier: LGPL-2.1-or-later
// Dirty bitmaps as objects of nodes. What a guest's write costs here is the hook: a call, the walk
// to a word (bitmap.c), and the count for those who ask from other threads. On the node's loop, but
// for references and what is atomic.
//
// A bitmap hangs on its node twice: in the list that owns it, and, while it is enabled, as a write
// hook.
#include "chain-core/dirty-bitmap.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"

struct DirtyBitmap {
    NodeWriteHook hook; // first
    Bitmap *bits;       // NULL: inconsistent
    _Atomic uint64_t n_dirty;
    Node *node; // NULL: it has left it
    gatomicrefcount n_refs;
    char *name;
    char *reason;
    uint32_t granularity_bits;
    bool is_persistent;
    bool has_changed;
    atomic_bool is_enabled, is_busy, is_read_only, is_inconsistent;
};

static void publish(DirtyBitmap *b)
{
    atomic_store_explicit(&b->n_dirty, bitmap_n_dirty(b->bits), memory_order_relaxed);
}

static void note_change(NodeWriteHook *hook, GuestOff off, uint64_t len)
{
    DirtyBitmap *b = (DirtyBitmap *)hook;
    bitmap_set(b->bits, off.v, len);
    publish(b);
}

uint32_t dirty_bitmap_default_granularity_bits(const Node *node)
{
    enum { MIN_BYTES = 4 << 10, MAX_BYTES = 64 << 10 };
    bool has_clusters = node->ops->bitmap_store != NULL;
    uint32_t bytes = has_clusters ? CLAMP(node->preferred_bytes, MIN_BYTES, MAX_BYTES) : MAX_BYTES;
    return __builtin_ctz(bytes);
}

// The list gives its reference up.
static void leave_node(void *arg)
{
    DirtyBitmap *b = arg;
    if (atomic_load(&b->is_enabled))
        node_remove_write_hook(b->node, &b->hook);
    b->node = NULL;
    dirty_bitmap_unref(b);
}

static DirtyBitmap *add(Node *node, const DirtyBitmapSpec *spec, Bitmap *bits)
{
    DirtyBitmap *b = g_new0(DirtyBitmap, 1);
    b->hook.fn = note_change;
    b->bits = bits;
    b->node = node;
    g_atomic_ref_count_init(&b->n_refs);
    b->name = g_strdup(spec->name);
    b->granularity_bits = spec->granularity_bits;
    b->is_persistent = spec->is_persistent;
    atomic_init(&b->is_inconsistent, !bits);
    atomic_init(&b->is_read_only, spec->is_persistent && node->read_only);
    if (!node->bitmaps) {
        node->bitmaps = g_ptr_array_new_with_free_func(leave_node);
        node->resize_bitmaps = dirty_bitmaps_resize;
    }
    g_ptr_array_add(node->bitmaps, b);
    if (bits)
        publish(b);
    if (bits && !spec->is_disabled)
        dirty_bitmap_set_enabled(b, true);
    return b;
}

static int check_new(Node *node, const DirtyBitmapSpec *spec, GError **error)
{
    const DirtyBitmapStore *store = node->ops->bitmap_store;
    if (spec->is_persistent && !store)
        return error_set(error, -ENOTSUP, "Can't store persistent bitmaps to %s: %s",
                         spec->node_name, g_strerror(ENOTSUP));
    if (spec->name && dirty_bitmap_find(node, spec->name))
        return error_set(error, -EEXIST, "Bitmap already exists: %s", spec->name);
    if (spec->is_persistent) {
        int r = store->can_add(node, spec->node_name, spec->name, spec->granularity_bits, error);
        if (r < 0)
            return r;
    }
    if (spec->name && strlen(spec->name) > DIRTY_BITMAP_MAX_NAME_BYTES)
        return error_set(error, -EINVAL, "Bitmap name too long: %s", spec->name);
    return 0;
}

int dirty_bitmap_add(Node *node, const DirtyBitmapSpec *spec, DirtyBitmap **ret_bitmap,
                     GError **error)
{
    int r = check_new(node, spec, error);
    if (r < 0)
        return r;
    DirtyBitmap *b = add(node, spec, bitmap_new(node->size_bytes, spec->granularity_bits));
    b->has_changed = true;
    *ret_bitmap = b;
    return 0;
}

DirtyBitmap *dirty_bitmap_add_stored(Node *node, const DirtyBitmapSpec *spec, Bitmap *bits,
                                     const char *reason)
{
    DirtyBitmap *b = add(node, spec, bits);
    b->reason = g_strdup(reason);
    b->has_changed = false;
    return b;
}

DirtyBitmap *dirty_bitmap_find(const Node *node, const char *name)
{
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        DirtyBitmap *b = node->bitmaps->pdata[i];
        if (b->name && strcmp(b->name, name) == 0)
            return b;
    }
    return NULL;
}

const GPtrArray *dirty_bitmaps_of(const Node *node)
{
    return node->bitmaps;
}

int dirty_bitmap_forget(Fiber *self, DirtyBitmap *b, GError **error)
{
    return b->is_persistent ? b->node->ops->bitmap_store->forget(self, b->node, b->name, error) : 0;
}

void dirty_bitmap_drop(DirtyBitmap *b)
{
    g_ptr_array_remove(b->node->bitmaps, b);
}

int dirty_bitmap_remove(Fiber *self, DirtyBitmap *b, GError **error)
{
    int r = dirty_bitmap_forget(self, b, error);
    if (r == 0)
        dirty_bitmap_drop(b);
    return r;
}

DirtyBitmap *dirty_bitmap_ref(DirtyBitmap *b)
{
    g_atomic_ref_count_inc(&b->n_refs);
    return b;
}

void dirty_bitmap_unref(DirtyBitmap *b)
{
    if (!b || !g_atomic_ref_count_dec(&b->n_refs))
        return;
    bitmap_free(b->bits);
    g_free(b->name);
    g_free(b->reason);
    g_free(b);
}

const char *dirty_bitmap_name(const DirtyBitmap *b)
{
    return b->name;
}

uint32_t dirty_bitmap_granularity_bits(const DirtyBitmap *b)
{
    return b->granularity_bits;
}

bool dirty_bitmap_is_persistent(const DirtyBitmap *b)
{
    return b->is_persistent;
}

const char *dirty_bitmap_reason(const DirtyBitmap *b)
{
    return b->reason;
}

void dirty_bitmap_info(const DirtyBitmap *bitmap, DirtyBitmapInfo *ret_info)
{
    DirtyBitmap *b = (DirtyBitmap *)bitmap; // C17 loads atomics through non-const pointers
    *ret_info = (DirtyBitmapInfo){
        .dirty_granules = atomic_load_explicit(&b->n_dirty, memory_order_relaxed),
        .is_enabled = atomic_load(&b->is_enabled),
        .is_busy = atomic_load(&b->is_busy),
        .is_read_only = atomic_load(&b->is_read_only),
        .is_inconsistent = atomic_load(&b->is_inconsistent),
    };
}

int dirty_bitmap_check(const DirtyBitmap *b, DirtyBitmapUse use, GError **error)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(b, &info);
    if (info.is_busy)
        return error_set(error, -EBUSY,
                         "Bitmap '%s' is currently in use by another operation and cannot be used",
                         b->name);
    if (info.is_read_only && use != DIRTY_BITMAP_USE_READ)
        return error_set(error, -EROFS, "Bitmap '%s' is readonly and cannot be modified", b->name);
    if (info.is_inconsistent && use != DIRTY_BITMAP_USE_REMOVE)
        return error_set(error, -EINVAL, "Bitmap '%s' is inconsistent and cannot be used", b->name);
    return 0;
}

void dirty_bitmap_set_busy(DirtyBitmap *b, bool is_busy)
{
    atomic_store(&b->is_busy, is_busy);
}

void dirty_bitmap_set_read_only(DirtyBitmap *b, bool is_read_only)
{
    if (b->is_persistent)
        atomic_store(&b->is_read_only, is_read_only);
}

int dirty_bitmap_before_change(Fiber *self, DirtyBitmap *b)
{
    if (!b->is_persistent || !b->node || b->node->read_only)
        return 0;
    return b->node->ops->bitmap_store->before_change(self, b->node);
}

void dirty_bitmap_set_enabled(DirtyBitmap *b, bool is_enabled)
{
    if (atomic_load(&b->is_enabled) == is_enabled)
        return;
    if (is_enabled)
        node_add_write_hook(b->node, &b->hook);
    else
        node_remove_write_hook(b->node, &b->hook);
    atomic_store(&b->is_enabled, is_enabled);
    b->has_changed = true;
}

const Bitmap *dirty_bitmap_bits(const DirtyBitmap *b)
{
    return b->bits;
}

Bitmap *dirty_bitmap_swap_bits(DirtyBitmap *b, Bitmap *bits)
{
    Bitmap *old = b->bits;
    b->bits = bits;
    b->has_changed = true;
    publish(b);
    return old;
}

// Guests go on, and only add to what is dirty here.
void dirty_bitmap_merge(Fiber *self, DirtyBitmap *b, const Bitmap *from)
{
    uint64_t at = 0;
    b->has_changed = true;
    while (!bitmap_merge_step(b->bits, from, &at))
        fiber_yield(self);
    publish(b);
}

static void free_bits(void *bits)
{
    bitmap_free(bits);
}

int dirty_bitmaps_resize(Node *node, uint64_t size_bytes)
{
    g_autoptr(GPtrArray) resized = g_ptr_array_new_with_free_func(free_bits);
    guint n = node->bitmaps ? node->bitmaps->len : 0;
    for (guint i = 0; i < n; i++) {
        const DirtyBitmap *b = node->bitmaps->pdata[i];
        Bitmap *bits = b->bits ? bitmap_clone(b->bits) : NULL;
        g_ptr_array_add(resized, bits);
        if (bits && bitmap_resize(bits, size_bytes) < 0)
            return -ENOMEM;
    }
    for (guint i = 0; i < n; i++) {
        DirtyBitmap *b = node->bitmaps->pdata[i];
        if (b->bits)
            resized->pdata[i] = dirty_bitmap_swap_bits(b, resized->pdata[i]);
    }
    return 0;
}

// An enabled one notes each write: that it has no more bits than before is not looked at.
bool dirty_bitmap_has_changed(const DirtyBitmap *b)
{
    return b->has_changed || atomic_load(&((DirtyBitmap *)b)->is_enabled);
}

void dirty_bitmap_set_stored(DirtyBitmap *b)
{
    b->has_changed = false;
}

char *dirty_bitmap_sha256(Fiber *self, const Bitmap *bits)
{
    enum { PIECE_BYTES = 256 << 10 };
    uint64_t granularity_bits = bitmap_granularity_bits(bits), size = bitmap_size_bytes(bits);
    uint64_t n =
        (size >> granularity_bits) + ((size & ((UINT64_C(1) << granularity_bits) - 1)) != 0);
    uint64_t left = MAX((n + 63) / 64, 1) * sizeof(uint64_t);
    g_autofree uint8_t *piece = g_malloc(PIECE_BYTES);
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    for (uint64_t first = 0; left; first += PIECE_BYTES * 8) {
        size_t bytes = MIN(left, PIECE_BYTES);
        bitmap_get_bits(bits, first, piece, bytes);
        g_checksum_update(sum, piece, bytes);
        left -= bytes;
        fiber_yield(self);
    }
    return g_strdup(g_checksum_get_string(sum));
}
