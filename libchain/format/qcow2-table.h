// SPDX-License-Identifier: LGPL-2.1-or-later
// L1 and L2 tables and refcount blocks (qcow2 specification, "Cluster mapping", "Extended L2
// Entries", "Host cluster management"): one place for all offset arithmetic. Pure.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/endian.h"
#include "chain-core/units.h"

// Sizes that follow from a header; a value, computed once.
typedef struct Qcow2Geometry {
    uint32_t cluster_bits;
    uint32_t cluster_bytes;
    uint32_t l2_entry_bytes; // 8, or 16 with extended L2
    uint32_t l2_bits;        // log2 of entries per L2 table
    uint32_t l2_entries;
    uint32_t slice_bytes;     // unit of caching: min(cluster, 4096)
    uint32_t slice_entries;   // L2 entries per slice
    uint32_t subcluster_bits; // = cluster_bits without extended L2
    uint32_t subclusters;     // 32 or 1
    uint32_t refcount_order;
    uint32_t refcounts_per_block_bits; // log2 of refcounts per refcount block (one cluster)
    bool extended_l2;
    bool external_data;  // data clusters live in the data file
    uint64_t size_bytes; // guest size
} Qcow2Geometry;

void qcow2_geometry_init(Qcow2Geometry *g, uint32_t cluster_bits, uint32_t refcount_order,
                         bool extended_l2, bool external_data, uint64_t size_bytes);

// Where a guest offset is found.
static inline uint64_t qcow2_l1_index(const Qcow2Geometry *g, GuestOff off)
{
    return off.v >> (g->cluster_bits + g->l2_bits);
}
static inline uint32_t qcow2_l2_index(const Qcow2Geometry *g, GuestOff off)
{
    return (off.v >> g->cluster_bits) & (g->l2_entries - 1);
}
static inline uint32_t qcow2_in_cluster(const Qcow2Geometry *g, GuestOff off)
{
    return off.v & (g->cluster_bytes - 1);
}
// L1 entries needed for `size_bytes`.
uint64_t qcow2_l1_entries_for(const Qcow2Geometry *g, uint64_t size_bytes);

// L1 entry: the L2 table's offset (bits 9-55), COPIED (bit 63).
typedef struct Qcow2L1Entry {
    HostOff l2; // 0 = no table
    bool copied;
    bool reserved_set; // reserved bits: a corrupt entry
} Qcow2L1Entry;
Qcow2L1Entry qcow2_l1_entry_decode(Be64 raw);
Be64 qcow2_l1_entry_encode(HostOff l2, bool copied);

typedef enum Qcow2ClusterKind {
    QCOW2_CLUSTER_UNALLOCATED,
    QCOW2_CLUSTER_ZERO,           // zero flag, no host cluster
    QCOW2_CLUSTER_ZERO_ALLOCATED, // zero flag, host cluster kept
    QCOW2_CLUSTER_DATA,           // extended L2: see the bitmaps
    QCOW2_CLUSTER_COMPRESSED,
    QCOW2_CLUSTER_BAD, // reserved bits, unaligned offset, alloc and zero both set
} Qcow2ClusterKind;

// A decoded L2 entry. With extended L2 kind is DATA (host cluster present) or UNALLOCATED (absent)
// or COMPRESSED or BAD, and the two bitmaps (bit i = subcluster i) tell the rest; without it the
// bitmaps are 0. A standard entry with offset 0 and COPIED set is allocated only in an external
// data file.
typedef struct Qcow2L2Entry {
    Qcow2ClusterKind kind;
    bool copied;
    HostOff host;              // cluster offset, or first byte of the compressed data
    uint32_t compressed_bytes; // upper bound: up to the end of the last 512-byte sector
    uint32_t alloc_bitmap, zero_bitmap;
} Qcow2L2Entry;

// Extended L2: what subcluster `s` of an entry shows that is neither COMPRESSED nor BAD.
static inline Qcow2ClusterKind qcow2_subcluster_kind(const Qcow2L2Entry *e, uint32_t s)
{
    uint32_t bit = UINT32_C(1) << s;
    if (e->alloc_bitmap & bit)
        return QCOW2_CLUSTER_DATA;
    if (e->zero_bitmap & bit)
        return e->kind == QCOW2_CLUSTER_DATA ? QCOW2_CLUSTER_ZERO_ALLOCATED : QCOW2_CLUSTER_ZERO;
    return QCOW2_CLUSTER_UNALLOCATED;
}

// Standard descriptor bits, inline because each request passes here.
#define QCOW2_ENTRY_COPIED (UINT64_C(1) << 63)
#define QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ENTRY_ZERO UINT64_C(1)
#define QCOW2_ENTRY_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

// Full decode of entry `index` of a slice (`index` counts entries, 8 or 16 bytes each).
Qcow2L2Entry qcow2_l2_entry_decode(const Qcow2Geometry *g, const void *slice, uint32_t index);
// For repair: decodes entry `index` without what the specification reserves or forbids (reserved
// bits, COPIED on compressed clusters, the zero bit of allocated subclusters). Kind BAD then means
// that nothing of it can be saved.
Qcow2L2Entry qcow2_l2_entry_decode_mended(const Qcow2Geometry *g, const void *slice,
                                          uint32_t index);
// Encodes; for extended L2 the bitmaps are written too.
void qcow2_l2_entry_encode(const Qcow2Geometry *g, void *slice, uint32_t index,
                           const Qcow2L2Entry *entry);
// The hot path: true and the host cluster's offset when the entry is plain allocated data (standard
// L2 only); *ret_copied tells whether it may be written in place.
static inline bool qcow2_l2_entry_is_plain(const Qcow2Geometry *g, const void *slice,
                                           uint32_t index, HostOff *ret_host, bool *ret_copied)
{
    if (g->extended_l2 || g->external_data)
        return false;
    uint64_t e = be64_get(((const Be64 *)slice)[index]);
    uint64_t host = e & QCOW2_ENTRY_OFFSET_MASK;
    if ((e & ~(QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED)) || !host ||
        (host & (g->cluster_bytes - 1)))
        return false;
    *ret_host = host_off(host);
    *ret_copied = e & QCOW2_ENTRY_COPIED;
    return true;
}

// Refcount table entry → offset of the block (bits 9-63), 0 = none; false when reserved bits are
// set or the offset is not cluster-aligned.
bool qcow2_refcount_table_entry_decode(const Qcow2Geometry *g, Be64 raw, HostOff *ret_block);
Be64 qcow2_refcount_table_entry_encode(HostOff block);
// Refcounts inside a block (or a slice of it), width 1 << refcount_order bits.
uint64_t qcow2_refcount_get(const Qcow2Geometry *g, const void *block, uint64_t index);
void qcow2_refcount_set(const Qcow2Geometry *g, void *block, uint64_t index, uint64_t value);
uint64_t qcow2_refcount_max(const Qcow2Geometry *g);
