// SPDX-License-Identifier: LGPL-2.1-or-later
// Write order (docs/ordering.md §7): the marks are durable before the first guest write.
#include "qcow2/bitmap-directory.h"

#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "format/qcow2-snapshot.h"

static void clear_stored(void *stored)
{
    qcow2_bitmap_entry_clear(&((StoredBitmap *)stored)->entry);
}

GArray *bitmap_directory_new(void)
{
    GArray *directory = g_array_new(false, false, sizeof(StoredBitmap));
    g_array_set_clear_func(directory, clear_stored);
    return directory;
}

void bitmap_directory_add(GArray *directory, const StoredBitmap *stored)
{
    StoredBitmap copy = *stored;
    copy.entry.name = g_strdup(stored->entry.name);
    g_array_append_val(directory, copy);
}

bool bitmap_directory_is_valid(const Qcow2Image *image)
{
    return image->header.has_bitmaps_extension &&
           (image->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

// Its bytes; owned.
static int read_bytes(Fiber *self, Qcow2Image *image, uint8_t **ret_bytes)
{
    const Qcow2BitmapsExtension *b = &image->header.bitmaps;
    uint64_t file_end = file_size(image->file);
    if (b->directory_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES || b->n_bitmaps > QCOW2_MAX_BITMAPS ||
        b->directory.v % image->geometry.cluster_bytes || b->directory.v > file_end ||
        b->directory_bytes > file_end - b->directory.v)
        return -EINVAL;
    g_autofree uint8_t *bytes = g_try_malloc(MAX(b->directory_bytes, 1));
    if (!bytes)
        return -ENOMEM;
    int r = file_read(self, image->file, b->directory, bytes, b->directory_bytes);
    if (r == 0)
        *ret_bytes = g_steal_pointer(&bytes);
    return r;
}

// Decodes the entries; with `mark` the bytes say then that they are in use.
static int decode(const Qcow2BitmapsExtension *b, uint8_t *bytes, bool mark, GArray *directory)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    uint64_t off = 0;
    for (uint32_t i = 0; i < b->n_bitmaps; i++) {
        StoredBitmap stored = {0};
        int r =
            qcow2_bitmap_entry_decode(bytes + off, b->directory_bytes - off, &stored.entry, NULL);
        if (r < 0)
            return -EINVAL;
        g_array_append_val(directory, stored);
        if (!g_hash_table_add(names, stored.entry.name))
            return -EINVAL;
        Be32 flags = be32_make(stored.entry.flags | QCOW2_BITMAP_IN_USE);
        if (mark)
            memcpy(bytes + off + QCOW2_BITMAP_OFF_FLAGS, &flags, sizeof(flags));
        off += r;
    }
    return off == b->directory_bytes ? 0 : -EINVAL;
}

int bitmap_directory_load(Fiber *self, Qcow2Image *image, GArray **ret_directory)
{
    g_autofree uint8_t *bytes = NULL;
    int r = read_bytes(self, image, &bytes);
    if (r < 0)
        return r;
    g_autoptr(GArray) directory = bitmap_directory_new();
    r = decode(&image->header.bitmaps, bytes, false, directory);
    if (r == 0)
        *ret_directory = g_steal_pointer(&directory);
    return r;
}

GByteArray *bitmap_directory_encode(const GArray *directory)
{
    GByteArray *bytes = g_byte_array_new();
    for (guint i = 0; i < directory->len; i++) {
        const Qcow2BitmapEntry *e = &g_array_index(directory, StoredBitmap, i).entry;
        guint off = bytes->len;
        g_byte_array_set_size(bytes, off + qcow2_bitmap_entry_encode(e, NULL));
        qcow2_bitmap_entry_encode(e, bytes->data + off);
    }
    return bytes;
}

int bitmap_directory_mark_in_use(Fiber *self, Qcow2Image *image)
{
    g_autofree uint8_t *bytes = NULL;
    int r = read_bytes(self, image, &bytes);
    if (r < 0)
        return r;
    g_autoptr(GArray) directory = bitmap_directory_new();
    r = decode(&image->header.bitmaps, bytes, true, directory);
    if (r < 0)
        return r;
    const Qcow2BitmapsExtension *b = &image->header.bitmaps;
    r = file_write(self, image->file, b->directory, bytes, b->directory_bytes);
    if (r == 0 && !MUTANT("sync-of-bitmap-marks"))
        r = file_flush(self, image->file);
    for (guint i = 0; r == 0 && image->bitmaps && i < image->bitmaps->len; i++)
        g_array_index(image->bitmaps, StoredBitmap, i).entry.flags |= QCOW2_BITMAP_IN_USE;
    return r;
}
