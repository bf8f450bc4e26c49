// SPDX-License-Identifier: LGPL-2.1-or-later
// Entries of the snapshot table and of the bitmap directory. Both are a fixed part that tells the
// lengths of what follows; the lengths are bounded before they are added up. Pure; any thread.

#include "format/qcow2-snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"

typedef struct SnapshotLayout {
    Be64 l1;
    Be32 l1_entries;
    Be16 id_bytes;
    Be16 name_bytes;
    Be32 date_sec;
    Be32 date_nsec;
    Be64 vm_clock_ns;
    Be32 vm_state_bytes; // the extra data's 64-bit field goes first
    Be32 extra_bytes;
} SnapshotLayout;
_Static_assert(sizeof(SnapshotLayout) == QCOW2_MIN_SNAPSHOT_ENTRY_BYTES, "no gaps");

// The extra data's known beginning; an entry may end before any of the fields.
typedef struct ExtraLayout {
    Be64 vm_state_bytes;
    Be64 size_bytes;
    Be64 icount;
} ExtraLayout;

typedef struct BitmapLayout {
    Be64 table;
    Be32 table_entries;
    Be32 flags;
    uint8_t type;
    uint8_t granularity_bits;
    Be16 name_bytes;
    Be32 extra_bytes;
} BitmapLayout;
_Static_assert(sizeof(BitmapLayout) == QCOW2_MIN_BITMAP_ENTRY_BYTES, "no gaps");

static size_t pad8(size_t len)
{
    return (len + 7) & ~(size_t)7;
}

void qcow2_snapshot_clear(Qcow2Snapshot *s)
{
    g_free(s->id);
    g_free(s->name);
    g_free(s->extra);
    *s = (Qcow2Snapshot){0};
}

static void take_extra(Qcow2Snapshot *s, const uint8_t *extra, uint32_t len)
{
    ExtraLayout known = {0};
    memcpy(&known, extra, MIN(len, sizeof(known)));
    if (len >= 8)
        s->vm_state_bytes = be64_get(known.vm_state_bytes);
    if (len >= 16)
        s->size_bytes = be64_get(known.size_bytes);
    if (len >= 24)
        s->icount = be64_get(known.icount);
    if (len > sizeof(known)) {
        s->extra_bytes = len - sizeof(known);
        s->extra = g_memdup2(extra + sizeof(known), s->extra_bytes);
    }
}

int qcow2_snapshot_decode_any(const void *data, size_t len, uint64_t default_size_bytes,
                              Qcow2Snapshot *ret_snapshot, GError **error)
{
    const SnapshotLayout *raw = data;
    if (len < sizeof(*raw))
        return -EAGAIN;
    uint32_t extra_bytes = be32_get(raw->extra_bytes);
    if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA_BYTES)
        return error_set(error, -EINVAL,
                         "a snapshot's entry has %" PRIu32 " bytes of extra data, more than %d; "
                         "the snapshot table is broken, repair the image with qemu-img check -r "
                         "all",
                         extra_bytes, QCOW2_MAX_SNAPSHOT_EXTRA_BYTES);
    uint32_t id_bytes = be16_get(raw->id_bytes), name_bytes = be16_get(raw->name_bytes);
    size_t total = pad8(sizeof(*raw) + extra_bytes + id_bytes + name_bytes);
    if (len < total)
        return -EAGAIN;

    const uint8_t *extra = (const uint8_t *)data + sizeof(*raw);
    *ret_snapshot = (Qcow2Snapshot){
        .l1 = host_off(be64_get(raw->l1)),
        .l1_entries = be32_get(raw->l1_entries),
        .id = g_strndup((const char *)extra + extra_bytes, id_bytes),
        .name = g_strndup((const char *)extra + extra_bytes + id_bytes, name_bytes),
        .date_sec = be32_get(raw->date_sec),
        .date_nsec = be32_get(raw->date_nsec),
        .vm_clock_ns = be64_get(raw->vm_clock_ns),
        .vm_state_bytes = be32_get(raw->vm_state_bytes),
        .size_bytes = default_size_bytes,
        .icount = UINT64_MAX,
    };
    take_extra(ret_snapshot, extra, extra_bytes);
    return total;
}

int qcow2_snapshot_decode(const void *data, size_t len, uint64_t default_size_bytes,
                          Qcow2Snapshot *ret_snapshot, GError **error)
{
    Qcow2Snapshot s;
    int total = qcow2_snapshot_decode_any(data, len, default_size_bytes, &s, error);
    if (total < 0)
        return total;
    if (s.l1_entries > QCOW2_MAX_L1_BYTES / sizeof(Be64) || s.l1.v % 512 ||
        s.size_bytes > INT64_MAX) {
        error_set(error, -EINVAL,
                  "the snapshot '%.100s' has an impossible L1 table or size (%" PRIu32
                  " entries at "
                  "offset %#" PRIx64 ", %" PRIu64 " bytes); delete the snapshot, or restore the "
                  "image from a copy",
                  s.name, s.l1_entries, s.l1.v, s.size_bytes);
        qcow2_snapshot_clear(&s);
        return -EINVAL;
    }
    *ret_snapshot = s;
    return total;
}

size_t qcow2_snapshot_encode(const Qcow2Snapshot *s, void *buf)
{
    size_t id_bytes = strlen(s->id), name_bytes = strlen(s->name);
    bool has_icount = s->icount != UINT64_MAX || s->extra_bytes;
    size_t known_bytes = has_icount ? sizeof(ExtraLayout) : G_STRUCT_OFFSET(ExtraLayout, icount);
    size_t extra_bytes = known_bytes + s->extra_bytes;
    size_t total = pad8(sizeof(SnapshotLayout) + extra_bytes + id_bytes + name_bytes);
    if (!buf)
        return total;

    SnapshotLayout raw = {
        .l1 = be64_make(s->l1.v),
        .l1_entries = be32_make(s->l1_entries),
        .id_bytes = be16_make(id_bytes),
        .name_bytes = be16_make(name_bytes),
        .date_sec = be32_make(s->date_sec),
        .date_nsec = be32_make(s->date_nsec),
        .vm_clock_ns = be64_make(s->vm_clock_ns),
        .vm_state_bytes = be32_make(s->vm_state_bytes <= UINT32_MAX ? s->vm_state_bytes : 0),
        .extra_bytes = be32_make(extra_bytes),
    };
    ExtraLayout known = {
        .vm_state_bytes = be64_make(s->vm_state_bytes),
        .size_bytes = be64_make(s->size_bytes),
        .icount = be64_make(s->icount),
    };
    uint8_t *p = buf;
    memset(p, 0, total);
    memcpy(p, &raw, sizeof(raw));
    p += sizeof(raw);
    memcpy(p, &known, known_bytes);
    p += known_bytes;
    if (s->extra_bytes)
        memcpy(p, s->extra, s->extra_bytes);
    p += s->extra_bytes;
    memcpy(p, s->id, id_bytes);
    memcpy(p + id_bytes, s->name, name_bytes);
    return total;
}

void qcow2_bitmap_entry_clear(Qcow2BitmapEntry *e)
{
    g_free(e->name);
    *e = (Qcow2BitmapEntry){0};
}

static const char *bitmap_fault(const BitmapLayout *raw)
{
    if (be32_get(raw->extra_bytes))
        return "has extra data, which no known kind of bitmap has";
    if (be16_get(raw->name_bytes) == 0 || be16_get(raw->name_bytes) > QCOW2_MAX_BITMAP_NAME_BYTES)
        return "has a name of 0 or more than 1023 bytes";
    if (be32_get(raw->flags) & QCOW2_BITMAP_RESERVED_FLAGS)
        return "has reserved flags set";
    if (raw->type != QCOW2_BITMAP_TYPE_DIRTY)
        return "is not of the type for dirty tracking";
    if (raw->granularity_bits < 9 || raw->granularity_bits > 31)
        return "has a granularity outside 2^9 to 2^31 bytes";
    if (be32_get(raw->table_entries) > QCOW2_MAX_BITMAP_TABLE_ENTRIES)
        return "has a table over the limit";
    if (be64_get(raw->table) == 0 || be64_get(raw->table) % 512)
        return "has a table at an impossible offset";
    return NULL;
}

int qcow2_bitmap_entry_decode(const void *data, size_t len, Qcow2BitmapEntry *ret_entry,
                              GError **error)
{
    const BitmapLayout *raw = data;
    if (len < sizeof(*raw))
        return -EAGAIN;
    const char *fault = bitmap_fault(raw);
    if (fault)
        return error_set(error, -EINVAL,
                         "an entry of the bitmap directory %s; the directory is broken, remove "
                         "the bitmaps with qemu-img bitmap --remove",
                         fault);
    uint32_t name_bytes = be16_get(raw->name_bytes);
    size_t total = pad8(sizeof(*raw) + name_bytes);
    if (len < total)
        return -EAGAIN;
    const char *name = (const char *)data + sizeof(*raw);
    if (memchr(name, 0, name_bytes))
        return error_set(error, -EINVAL,
                         "a bitmap's name contains a NUL byte; the bitmap directory is broken, "
                         "restore the image from a copy");
    *ret_entry = (Qcow2BitmapEntry){
        .table = host_off(be64_get(raw->table)),
        .table_entries = be32_get(raw->table_entries),
        .flags = be32_get(raw->flags),
        .type = raw->type,
        .granularity_bits = raw->granularity_bits,
        .name = g_strndup(name, name_bytes),
    };
    return total;
}

size_t qcow2_bitmap_entry_encode(const Qcow2BitmapEntry *e, void *buf)
{
    size_t name_bytes = strlen(e->name), total = pad8(sizeof(BitmapLayout) + name_bytes);
    if (!buf)
        return total;
    BitmapLayout raw = {
        .table = be64_make(e->table.v),
        .table_entries = be32_make(e->table_entries),
        .flags = be32_make(e->flags),
        .type = e->type,
        .granularity_bits = e->granularity_bits,
        .name_bytes = be16_make(name_bytes),
    };
    memset(buf, 0, total);
    memcpy(buf, &raw, sizeof(raw));
    memcpy((uint8_t *)buf + sizeof(raw), e->name, name_bytes);
    return total;
}

bool qcow2_bitmap_table_entry_decode(uint64_t be_raw_host_order, HostOff *ret_cluster)
{
    uint64_t e = be_raw_host_order;
    uint64_t host = e & UINT64_C(0x00fffffffffffe00);
    if ((e & UINT64_C(0xff000000000001fe)) || (host && (e & 1)))
        return false;
    *ret_cluster = host_off(host);
    return true;
}
