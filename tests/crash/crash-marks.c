// SPDX-License-Identifier: LGPL-2.1-or-later
// What a power cut may leave of the marks that a writable open sets (docs/ordering.md §7): while an
// unknown autoclear bit is still set nothing else of the image may have changed. Pure.
#include "crash-qcow2-image.h"

#include <string.h>

#include "format/qcow2-header.h"

// First difference outside the header's sector and the bitmap directory; `bytes` when there is
// none.
static gsize first_change(const uint8_t *data, const uint8_t *before, gsize bytes,
                          const Qcow2Header *h)
{
    uint64_t start = h->bitmaps.directory.v, end = start + h->bitmaps.directory_bytes;
    for (gsize i = 512; i < bytes; i++)
        if (data[i] != before[i] && !(h->has_bitmaps_extension && i >= start && i < end))
            return i;
    return bytes;
}

char *crash_qcow2_check_marks(const uint8_t *data, gsize bytes, const uint8_t *before,
                              gsize before_bytes)
{
    Qcow2Header h;
    g_autoptr(GError) error = NULL;
    if (qcow2_header_decode(data, bytes, bytes, &h, &error) < 0)
        return g_strdup(error->message);
    bool has_unknown = h.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    char *problem = NULL;
    if (has_unknown) {
        gsize at = first_change(data, before, MIN(bytes, before_bytes), &h);
        if (bytes != before_bytes || at < bytes)
            problem = g_strdup_printf(
                "byte %" G_GSIZE_FORMAT " has changed while an unknown autoclear bit is set", at);
    }
    qcow2_header_clear(&h);
    return problem;
}
