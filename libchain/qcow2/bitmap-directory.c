// SPDX-License-Identifier: LGPL-2.1-or-later
// Write order (docs/ordering.md §7): the marks are durable before the first guest write.
#include "qcow2/bitmap-directory.h"

#include <errno.h>
#include <string.h>

#include "format/qcow2-snapshot.h"

bool bitmap_directory_is_valid(const Qcow2Image *image)
{
    return image->header.has_bitmaps_extension &&
           (image->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

int bitmap_directory_mark_in_use(Fiber *self, Qcow2Image *image, uint32_t *ret_n)
{
    const Qcow2BitmapsExtension *b = &image->header.bitmaps;
    uint64_t file_end = file_size(image->file);
    if (b->directory_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES ||
        b->directory.v % image->geometry.cluster_bytes || b->directory.v > file_end ||
        b->directory_bytes > file_end - b->directory.v)
        return -EINVAL;
    g_autofree uint8_t *dir = g_try_malloc(MAX(b->directory_bytes, 1));
    if (!dir)
        return -ENOMEM;
    int r = file_read(self, image->file, b->directory, dir, b->directory_bytes);
    if (r < 0)
        return r;
    uint64_t off = 0;
    uint32_t n = 0;
    while (off < b->directory_bytes && n < b->n_bitmaps) {
        Qcow2BitmapEntry entry = {0};
        r = qcow2_bitmap_entry_decode(dir + off, b->directory_bytes - off, &entry, NULL);
        if (r < 0)
            return -EINVAL;
        Be32 flags = be32_make(entry.flags | QCOW2_BITMAP_IN_USE);
        memcpy(dir + off + QCOW2_BITMAP_OFF_FLAGS, &flags, sizeof(flags));
        qcow2_bitmap_entry_clear(&entry);
        off += r;
        n++;
    }
    if (n != b->n_bitmaps)
        return -EINVAL;
    r = file_write(self, image->file, b->directory, dir, b->directory_bytes);
    if (r == 0)
        r = file_flush(self, image->file);
    *ret_n = n;
    return r;
}
