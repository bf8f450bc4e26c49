// SPDX-License-Identifier: LGPL-2.1-or-later
// What changes in the first sector alone is one write. Otherwise what lies behind it changes first,
// and then the first sector, which decides where the extensions and the backing file's name are
// looked for. What the old first sector still names must not change before it (docs/ordering.md
// §11). Where the new header overlaps that, the change takes a detour:
//
//       old header     0 ┌──────────┬──────────────────────┬───────────
//                        │ fields … │ … extensions, name   │ unused
//                        └──────────┴──────────────────────┴───────────
//       aside          0 ┌──────────┬──────────────────────┬──────┬────
//                        │ all but  │ (as it was)          │ name │
//                        │ the name │                      │      │
//                        └──────────┴──────────────────────┴──────┴────
//       new header     0 ┌──────────┬────────────────────┬─┬──────┬────
//                        │ fields … │ … extensions, name │ │(name)│
//                        └──────────┴────────────────────┴─┴──────┴────
//                        0         512
//
// Each step is one write of the first sector, after a sync of what lies behind it. Set aside, the
// header says all of the new one but the feature names, which only help people.

#include "qcow2/header-write.h"
#include "chain-core/mutant.h"

#include <errno.h>
#include <string.h>

enum { SECTOR_BYTES = 512, ALIGN_BYTES = 8 };

// The first cluster, as it was and as it is to be.
typedef struct Rewrite {
    File *file;
    uint32_t bytes;
    uint8_t *old; // follows what is written
    uint8_t *new;
    bool is_unknown;
} Rewrite;

static int write_synced(Fiber *self, File *file, uint64_t off, const void *data, size_t len)
{
    int r = file_write(self, file, host_off(off), data, len);
    return r < 0 || MUTANT("sync-of-header") ? r : file_flush(self, file);
}

// §11: in one piece. When it fails the old sector is put back.
static int write_sector(Fiber *self, File *file, const uint8_t *old, const uint8_t *new,
                        bool *ret_is_unknown)
{
    int r = write_synced(self, file, 0, new, SECTOR_BYTES);
    if (r < 0 && !MUTANT("failed-header-is-put-back") &&
        write_synced(self, file, 0, old, SECTOR_BYTES) < 0)
        *ret_is_unknown = true;
    return r;
}

static int write_fields(Fiber *self, File *file, const Qcow2Header *to, bool *ret_is_unknown)
{
    uint8_t old[SECTOR_BYTES], new[SECTOR_BYTES];
    int r = file_read(self, file, host_off(0), old, sizeof(old));
    if (r < 0)
        return r;
    memcpy(new, old, sizeof(new));
    qcow2_header_patch_fields(new, to);
    return write_sector(self, file, old, new, ret_is_unknown);
}

// [from, end) of the new cluster, then its first sector.
static int put(Fiber *self, Rewrite *w, size_t from, size_t end)
{
    int r = 0;
    from = MAX(from, SECTOR_BYTES);
    if (from < end && memcmp(w->old + from, w->new + from, end - from) != 0) {
        // §11: nothing names it yet.
        r = write_synced(self, w->file, from, w->new + from, end - from);
        if (r == 0)
            memcpy(w->old + from, w->new + from, end - from);
    }
    if (r == 0)
        r = write_sector(self, w->file, w->old, w->new, &w->is_unknown);
    if (r == 0)
        memcpy(w->old, w->new, SECTOR_BYTES);
    return r;
}

// Would the new cluster's [512, end) change what the old first sector names?
static bool is_in_the_way(const Rewrite *w, size_t end)
{
    size_t used = MIN(qcow2_header_used_bytes(w->old, w->bytes), end);
    return used > SECTOR_BYTES && !MUTANT("header-goes-aside") &&
           memcmp(w->old + SECTOR_BYTES, w->new + SECTOR_BYTES, used - SECTOR_BYTES) != 0;
}

// Out of the way of a header that ends at `end`.
static int put_aside(Fiber *self, Rewrite *w, const Qcow2Header *to, size_t end)
{
    size_t used = MAX(qcow2_header_used_bytes(w->old, w->bytes), end);
    size_t name_at = (MAX(used, SECTOR_BYTES) + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    size_t name_bytes = to->backing_name ? strlen(to->backing_name) : 0;
    int extensions_end = qcow2_header_encode_apart(to, name_at, w->new, w->bytes);
    if (extensions_end < 0 || extensions_end > SECTOR_BYTES)
        return -ENOSPC;
    return put(self, w, name_at, name_at + name_bytes);
}

static int rewrite(Fiber *self, Rewrite *w, const Qcow2Header *to)
{
    int end = qcow2_header_encode(to, w->new, w->bytes);
    if (end < 0)
        return end;
    int r = file_read(self, w->file, host_off(0), w->old, w->bytes);
    if (r < 0)
        return r;
    if (!is_in_the_way(w, end))
        return put(self, w, SECTOR_BYTES, end);
    r = put_aside(self, w, to, end);
    if (r < 0)
        return r;
    // The change is made. Without its last step it would only lie elsewhere.
    qcow2_header_encode(to, w->new, w->bytes);
    put(self, w, SECTOR_BYTES, end);
    w->is_unknown = false;
    return 0;
}

int header_write(Fiber *self, File *file, const Qcow2Header *from, const Qcow2Header *to,
                 bool *ret_is_unknown)
{
    if (qcow2_header_differs_in_fields_only(from, to))
        return write_fields(self, file, to, ret_is_unknown);
    uint32_t bytes = UINT32_C(1) << from->cluster_bits;
    g_autofree uint8_t *old = g_try_malloc0(bytes), *new = g_try_malloc(bytes);
    if (!old || !new)
        return -ENOMEM;
    Rewrite w = {.file = file, .bytes = bytes, .old = old, .new = new};
    int r = rewrite(self, &w, to);
    *ret_is_unknown |= w.is_unknown;
    return r;
}
