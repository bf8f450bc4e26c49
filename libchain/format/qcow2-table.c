// SPDX-License-Identifier: LGPL-2.1-or-later
// Decoding and encoding of L1 and L2 entries, refcount table entries and refcounts. The only place
// that knows their masks and shifts. An entry that the specification does not allow decodes as bad
// rather than as something near it: callers answer EIO and mark the image, and never follow it.
// Pure: no I/O, no allocation, any thread.

#include "format/qcow2-table.h"

#include <assert.h>

#define L1_RESERVED_MASK UINT64_C(0x7f000000000001ff)
// Bit 0 is the zero flag, except in extended L2 entries, where it is reserved too.
#define STANDARD_RESERVED_MASK UINT64_C(0x3f000000000001fe)
#define REFCOUNT_TABLE_RESERVED_MASK UINT64_C(0x1ff)
#define HOST_OFFSET_LIMIT (UINT64_C(1) << 56)

enum { SLICE_BYTES = 4096, SECTOR_BYTES = 512, EXTENDED_SUBCLUSTERS_BITS = 5 };

void qcow2_geometry_init(Qcow2Geometry *g, uint32_t cluster_bits, uint32_t refcount_order,
                         bool extended_l2, bool external_data, uint64_t size_bytes)
{
    *g = (Qcow2Geometry){
        .cluster_bits = cluster_bits,
        .cluster_bytes = UINT32_C(1) << cluster_bits,
        .l2_entry_bytes = extended_l2 ? 16 : 8,
        .l2_bits = cluster_bits - (extended_l2 ? 4 : 3),
        .subcluster_bits = cluster_bits - (extended_l2 ? EXTENDED_SUBCLUSTERS_BITS : 0),
        .subclusters = extended_l2 ? 1 << EXTENDED_SUBCLUSTERS_BITS : 1,
        .refcount_order = refcount_order,
        .refcounts_per_block_bits = cluster_bits + 3 - refcount_order,
        .extended_l2 = extended_l2,
        .external_data = external_data,
        .size_bytes = size_bytes,
    };
    g->l2_entries = UINT32_C(1) << g->l2_bits;
    g->slice_bytes = g->cluster_bytes < SLICE_BYTES ? g->cluster_bytes : SLICE_BYTES;
    g->slice_entries = g->slice_bytes / g->l2_entry_bytes;
}

uint64_t qcow2_l1_entries_for(const Qcow2Geometry *g, uint64_t size_bytes)
{
    uint32_t shift = g->cluster_bits + g->l2_bits;
    return (size_bytes >> shift) + ((size_bytes & ((UINT64_C(1) << shift) - 1)) != 0);
}

Qcow2L1Entry qcow2_l1_entry_decode(Be64 raw)
{
    uint64_t e = be64_get(raw);
    return (Qcow2L1Entry){
        .l2 = host_off(e & QCOW2_ENTRY_OFFSET_MASK),
        .copied = e & QCOW2_ENTRY_COPIED,
        .reserved_set = e & L1_RESERVED_MASK,
    };
}

Be64 qcow2_l1_entry_encode(HostOff l2, bool copied)
{
    assert(!(l2.v & ~QCOW2_ENTRY_OFFSET_MASK));
    return be64_make(l2.v | (copied ? QCOW2_ENTRY_COPIED : 0));
}

// The compressed descriptor: the low bits hold the offset, the rest up to bit 61 the number of
// sectors beyond the first.
static uint32_t compressed_offset_bits(const Qcow2Geometry *g)
{
    return 62 - (g->cluster_bits - 8);
}

static Qcow2L2Entry decode_compressed(const Qcow2Geometry *g, uint64_t e)
{
    uint32_t offset_bits = compressed_offset_bits(g);
    uint64_t host = e & ((UINT64_C(1) << offset_bits) - 1);
    uint32_t sectors = (e & (QCOW2_ENTRY_COMPRESSED - 1)) >> offset_bits;
    if (host >= HOST_OFFSET_LIMIT || host < g->cluster_bytes || g->external_data)
        return (Qcow2L2Entry){.kind = QCOW2_CLUSTER_BAD};
    return (Qcow2L2Entry){
        .kind = QCOW2_CLUSTER_COMPRESSED,
        .copied = e & QCOW2_ENTRY_COPIED,
        .host = host_off(host),
        .compressed_bytes = (sectors + 1) * SECTOR_BYTES - host % SECTOR_BYTES,
    };
}

// Is there a host cluster? Its offset may be 0 only in a data file, and COPIED tells it then.
static bool has_host(const Qcow2Geometry *g, uint64_t e)
{
    return (e & QCOW2_ENTRY_OFFSET_MASK) || (g->external_data && (e & QCOW2_ENTRY_COPIED));
}

static Qcow2L2Entry decode_standard(const Qcow2Geometry *g, uint64_t e)
{
    uint64_t host = e & QCOW2_ENTRY_OFFSET_MASK;
    if ((e & STANDARD_RESERVED_MASK) || (host & (g->cluster_bytes - 1)))
        return (Qcow2L2Entry){.kind = QCOW2_CLUSTER_BAD};
    Qcow2L2Entry entry = {.copied = e & QCOW2_ENTRY_COPIED, .host = host_off(host)};
    bool zero = e & QCOW2_ENTRY_ZERO;
    if (has_host(g, e))
        entry.kind = zero ? QCOW2_CLUSTER_ZERO_ALLOCATED : QCOW2_CLUSTER_DATA;
    else
        entry.kind = zero ? QCOW2_CLUSTER_ZERO : QCOW2_CLUSTER_UNALLOCATED;
    return entry;
}

static Qcow2L2Entry decode_extended(const Qcow2Geometry *g, uint64_t e, uint64_t bitmaps)
{
    Qcow2L2Entry entry = decode_standard(g, e);
    entry.alloc_bitmap = bitmaps;
    entry.zero_bitmap = bitmaps >> 32;
    bool allocated_nowhere = entry.kind == QCOW2_CLUSTER_UNALLOCATED && entry.alloc_bitmap;
    if ((e & QCOW2_ENTRY_ZERO) || (entry.alloc_bitmap & entry.zero_bitmap) || allocated_nowhere)
        return (Qcow2L2Entry){.kind = QCOW2_CLUSTER_BAD};
    return entry;
}

Qcow2L2Entry qcow2_l2_entry_decode(const Qcow2Geometry *g, const void *slice, uint32_t index)
{
    const Be64 *words = slice;
    uint32_t first = g->extended_l2 ? 2 * index : index;
    uint64_t e = be64_get(words[first]);
    if (e & QCOW2_ENTRY_COMPRESSED)
        return decode_compressed(g, e);
    if (g->extended_l2)
        return decode_extended(g, e, be64_get(words[first + 1]));
    return decode_standard(g, e);
}

Qcow2L2Entry qcow2_l2_entry_decode_mended(const Qcow2Geometry *g, const void *slice, uint32_t index)
{
    const Be64 *words = slice;
    if (!g->extended_l2) {
        uint64_t e = be64_get(words[index]);
        if (e & QCOW2_ENTRY_COMPRESSED)
            return decode_compressed(g, e & ~QCOW2_ENTRY_COPIED);
        return decode_standard(g, e & ~STANDARD_RESERVED_MASK);
    }
    uint64_t e = be64_get(words[2 * index]), bitmaps = be64_get(words[2 * index + 1]);
    if (e & QCOW2_ENTRY_COMPRESSED)
        return decode_compressed(g, e & ~QCOW2_ENTRY_COPIED);
    return decode_extended(g, e & ~(STANDARD_RESERVED_MASK | QCOW2_ENTRY_ZERO),
                           bitmaps & ~(bitmaps << 32));
}

static uint64_t encode_compressed(const Qcow2Geometry *g, const Qcow2L2Entry *entry)
{
    uint32_t offset_bits = compressed_offset_bits(g);
    uint64_t first = entry->host.v / SECTOR_BYTES;
    uint64_t last = (entry->host.v + entry->compressed_bytes - 1) / SECTOR_BYTES;
    assert(entry->compressed_bytes && entry->host.v >> offset_bits == 0);
    return QCOW2_ENTRY_COMPRESSED | (last - first) << offset_bits | entry->host.v;
}

void qcow2_l2_entry_encode(const Qcow2Geometry *g, void *slice, uint32_t index,
                           const Qcow2L2Entry *entry)
{
    uint64_t e = 0;
    switch (entry->kind) {
    case QCOW2_CLUSTER_COMPRESSED:
        e = encode_compressed(g, entry);
        break;
    case QCOW2_CLUSTER_ZERO:
        e = QCOW2_ENTRY_ZERO;
        break;
    case QCOW2_CLUSTER_ZERO_ALLOCATED:
        e = entry->host.v | QCOW2_ENTRY_ZERO;
        break;
    case QCOW2_CLUSTER_DATA:
        e = entry->host.v;
        break;
    case QCOW2_CLUSTER_UNALLOCATED:
        break;
    case QCOW2_CLUSTER_BAD:
        assert(!"a bad entry is never written");
    }
    bool has_cluster =
        entry->kind == QCOW2_CLUSTER_ZERO_ALLOCATED || entry->kind == QCOW2_CLUSTER_DATA;
    if (has_cluster && entry->copied)
        e |= QCOW2_ENTRY_COPIED;
    Be64 *words = slice;
    if (!g->extended_l2) {
        words[index] = be64_make(e);
        return;
    }
    assert(!(e & QCOW2_ENTRY_ZERO) || (e & QCOW2_ENTRY_COMPRESSED));
    bool bitmaps = entry->kind != QCOW2_CLUSTER_COMPRESSED;
    words[2 * index] = be64_make(e);
    words[2 * index + 1] =
        be64_make(bitmaps ? (uint64_t)entry->zero_bitmap << 32 | entry->alloc_bitmap : 0);
}

bool qcow2_refcount_table_entry_decode(const Qcow2Geometry *g, Be64 raw, HostOff *ret_block)
{
    uint64_t e = be64_get(raw);
    if ((e & REFCOUNT_TABLE_RESERVED_MASK) || (e & (g->cluster_bytes - 1)))
        return false;
    *ret_block = host_off(e);
    return true;
}

Be64 qcow2_refcount_table_entry_encode(HostOff block)
{
    return be64_make(block.v);
}

uint64_t qcow2_refcount_get(const Qcow2Geometry *g, const void *block, uint64_t index)
{
    switch (g->refcount_order) {
    case 6:
        return be64_get(((const Be64 *)block)[index]);
    case 5:
        return be32_get(((const Be32 *)block)[index]);
    case 4:
        return be16_get(((const Be16 *)block)[index]);
    case 3:
        return ((const uint8_t *)block)[index];
    default: {
        // Narrower than a byte: the first refcount lies in the least significant bits.
        uint32_t width = 1 << g->refcount_order;
        uint64_t bit = index << g->refcount_order;
        return (((const uint8_t *)block)[bit / 8] >> bit % 8) & ((1 << width) - 1);
    }
    }
}

void qcow2_refcount_set(const Qcow2Geometry *g, void *block, uint64_t index, uint64_t value)
{
    assert(value <= qcow2_refcount_max(g));
    switch (g->refcount_order) {
    case 6:
        ((Be64 *)block)[index] = be64_make(value);
        break;
    case 5:
        ((Be32 *)block)[index] = be32_make(value);
        break;
    case 4:
        ((Be16 *)block)[index] = be16_make(value);
        break;
    case 3:
        ((uint8_t *)block)[index] = value;
        break;
    default: {
        uint32_t width = 1 << g->refcount_order;
        uint64_t bit = index << g->refcount_order;
        uint8_t *byte = (uint8_t *)block + bit / 8;
        uint8_t mask = ((1 << width) - 1) << bit % 8;
        *byte = (*byte & ~mask) | (value << bit % 8);
    }
    }
}

uint64_t qcow2_refcount_max(const Qcow2Geometry *g)
{
    return g->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1 << g->refcount_order)) - 1;
}
