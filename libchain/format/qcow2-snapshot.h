// SPDX-License-Identifier: LGPL-2.1-or-later
// The snapshot table and the bitmap directory as they lie on disk (qcow2 specification, "Snapshots"
// and "Bitmaps"). Pure.
#pragma once

#include <glib.h>

#include "format/qcow2-header.h"

typedef struct Qcow2Snapshot {
    HostOff l1;
    uint32_t l1_entries;
    char *id;
    char *name;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t size_bytes; // guest size at that time (header's size for v2 tables without it)
    uint64_t icount;     // UINT64_MAX when absent
    uint8_t *extra;      // extra data past the known fields, kept on rewrite
    uint32_t extra_bytes;
} Qcow2Snapshot;

void qcow2_snapshot_clear(Qcow2Snapshot *s);

// Decodes one entry at the start of `data`. Returns its length in bytes (a multiple of 8), -EAGAIN
// when `len` is too short to tell (read more; an entry is at most QCOW2_MAX_SNAPSHOT_ENTRY_BYTES),
// or -EINVAL with a sentence.
enum {
    QCOW2_MIN_SNAPSHOT_ENTRY_BYTES = 40,
    QCOW2_MAX_SNAPSHOT_ENTRY_BYTES = 40 + 1024 + 2 * 65535 + 8,
};
int qcow2_snapshot_decode(const void *data, size_t len, uint64_t default_size_bytes,
                          Qcow2Snapshot *ret_snapshot, GError **error);
// The same, but an entry whose L1 table or size cannot be right is decoded too: for the check,
// which reports it and goes on with the next.
int qcow2_snapshot_decode_any(const void *data, size_t len, uint64_t default_size_bytes,
                              Qcow2Snapshot *ret_snapshot, GError **error);
// Encodes into `buf` (NULL: only count). Returns the length.
size_t qcow2_snapshot_encode(const Qcow2Snapshot *s, void *buf);

// Bitmap directory entry.
typedef struct Qcow2BitmapEntry {
    HostOff table;
    uint32_t table_entries;
    uint32_t flags; // bit 0 in use, bit 1 auto
    uint8_t type;   // 1 = dirty tracking
    uint8_t granularity_bits;
    char *name;
} Qcow2BitmapEntry;
enum {
    QCOW2_BITMAP_IN_USE = 1 << 0,
    QCOW2_BITMAP_AUTO = 1 << 1,
    QCOW2_BITMAP_TYPE_DIRTY = 1,
    QCOW2_BITMAP_OFF_FLAGS = 12, // in an entry, for setting IN_USE in place
    QCOW2_MIN_BITMAP_ENTRY_BYTES = 24,
    QCOW2_MAX_BITMAP_NAME_BYTES = 1023,
    QCOW2_MAX_BITMAPS = 65535,
    QCOW2_MAX_BITMAP_DIRECTORY_BYTES = 64 << 20,
    QCOW2_MAX_BITMAP_TABLE_ENTRIES = 128 << 20,
};
// The bits of one bitmap, in whole clusters. QEMU loads no larger ones.
#define QCOW2_MAX_BITMAP_BITS_BYTES (UINT64_C(512) << 20)
#define QCOW2_BITMAP_RESERVED_FLAGS UINT32_C(0xfffffffc)
void qcow2_bitmap_entry_clear(Qcow2BitmapEntry *e);
// As qcow2_snapshot_decode(): length, or -EINVAL with a sentence.
int qcow2_bitmap_entry_decode(const void *data, size_t len, Qcow2BitmapEntry *ret_entry,
                              GError **error);
// Encodes into `buf` (NULL: only count). Returns the length, a multiple of 8.
size_t qcow2_bitmap_entry_encode(const Qcow2BitmapEntry *e, void *buf);
// Bitmap table entry: host offset of a cluster of bits, 0 when the cluster is not stored (its
// bits are all 0, or, where the entry itself is 1, all 1); false when reserved bits are set.
bool qcow2_bitmap_table_entry_decode(uint64_t be_raw_host_order, HostOff *ret_cluster);
