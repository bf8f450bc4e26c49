// SPDX-License-Identifier: LGPL-2.1-or-later
// Any bytes as tables: L1 and L2 entries, refcounts, snapshot and bitmap directory entries. The
// first two bytes choose the geometry. What decodes must be inside its bounds and survive an
// encoding; the fast look-up must agree with the full one.
#include <errno.h>
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2-snapshot.h"
#include "format/qcow2-table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static void require_same(const Qcow2L2Entry *a, const Qcow2L2Entry *b)
{
    REQUIRE(a->kind == b->kind && a->host.v == b->host.v &&
            a->compressed_bytes == b->compressed_bytes && a->alloc_bitmap == b->alloc_bitmap &&
            a->zero_bitmap == b->zero_bitmap);
}

static void try_l2_entry(const Qcow2Geometry *g, const uint8_t *slice, uint32_t index)
{
    Qcow2L2Entry e = qcow2_l2_entry_decode(g, slice, index);
    HostOff host;
    bool copied;
    bool plain = !g->extended_l2 && qcow2_l2_entry_is_plain(g, slice, index, &host, &copied);
    REQUIRE(!plain || (e.kind == QCOW2_CLUSTER_DATA && e.host.v == host.v && e.copied == copied));
    REQUIRE(plain || e.kind != QCOW2_CLUSTER_DATA || g->extended_l2 || g->external_data);
    Qcow2L2Entry mended = qcow2_l2_entry_decode_mended(g, slice, index);
    if (e.kind != QCOW2_CLUSTER_BAD)
        require_same(&e, &mended);
    if (mended.kind == QCOW2_CLUSTER_BAD)
        return;
    REQUIRE(mended.host.v < UINT64_C(1) << 56);
    REQUIRE(mended.kind == QCOW2_CLUSTER_COMPRESSED || mended.host.v % g->cluster_bytes == 0);
    REQUIRE(mended.compressed_bytes <= 2 * g->cluster_bytes);
    REQUIRE(!(mended.alloc_bitmap & mended.zero_bitmap));
    Be64 words[2];
    qcow2_l2_entry_encode(g, words, 0, &mended);
    Qcow2L2Entry again = qcow2_l2_entry_decode(g, words, 0);
    require_same(&mended, &again);
}

static void try_words(const Qcow2Geometry *g, const uint8_t *data, size_t size)
{
    for (uint32_t i = 0; i < size / g->l2_entry_bytes; i++)
        try_l2_entry(g, data, i);
    const Be64 *words = (const Be64 *)data;
    for (size_t i = 0; i < size / sizeof(Be64); i++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(words[i]);
        Be64 again = qcow2_l1_entry_encode(e.l2, e.copied);
        REQUIRE(e.reserved_set == (again.raw != words[i].raw));
        HostOff off;
        REQUIRE(!qcow2_refcount_table_entry_decode(g, words[i], &off) ||
                off.v % g->cluster_bytes == 0);
        REQUIRE(!qcow2_bitmap_table_entry_decode(be64_get(words[i]), &off) || off.v < UINT64_C(1)
                                                                                          << 56);
    }
}

static void try_refcounts(const Qcow2Geometry *g, uint8_t *data, size_t size)
{
    g_autofree uint8_t *before = g_memdup2(data, size);
    uint64_t n = (uint64_t)size * 8 >> g->refcount_order;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t value = qcow2_refcount_get(g, data, i);
        REQUIRE(value <= qcow2_refcount_max(g));
        qcow2_refcount_set(g, data, i, qcow2_refcount_max(g) - value);
        REQUIRE(qcow2_refcount_get(g, data, i) == qcow2_refcount_max(g) - value);
        qcow2_refcount_set(g, data, i, value);
    }
    REQUIRE(size == 0 || memcmp(before, data, size) == 0);
}

static void try_snapshots(const uint8_t *data, size_t size)
{
    for (size_t pos = 0; pos < size;) {
        Qcow2Snapshot s;
        GError *error = NULL;
        int r = qcow2_snapshot_decode(data + pos, size - pos, 4096, &s, &error);
        REQUIRE((r == -EINVAL) == (error != NULL));
        g_clear_error(&error);
        if (r < 0) {
            REQUIRE(r == -EINVAL || r == -EAGAIN);
            return;
        }
        REQUIRE(r > 0 && r % 8 == 0 && r <= QCOW2_MAX_SNAPSHOT_ENTRY_BYTES);
        size_t len = qcow2_snapshot_encode(&s, NULL);
        g_autofree uint8_t *encoded = g_malloc(len);
        REQUIRE(qcow2_snapshot_encode(&s, encoded) == len);
        Qcow2Snapshot again;
        REQUIRE(qcow2_snapshot_decode(encoded, len, 1, &again, NULL) == (int)len);
        REQUIRE(s.l1.v == again.l1.v && s.size_bytes == again.size_bytes &&
                s.icount == again.icount && !strcmp(s.name, again.name) && !strcmp(s.id, again.id));
        qcow2_snapshot_clear(&again);
        qcow2_snapshot_clear(&s);
        pos += r;
    }
}

static void try_bitmaps(const uint8_t *data, size_t size)
{
    for (size_t pos = 0; pos < size;) {
        Qcow2BitmapEntry b;
        GError *error = NULL;
        int r = qcow2_bitmap_entry_decode(data + pos, size - pos, &b, &error);
        REQUIRE((r == -EINVAL) == (error != NULL));
        g_clear_error(&error);
        if (r < 0) {
            REQUIRE(r == -EINVAL || r == -EAGAIN);
            return;
        }
        REQUIRE(r > 0 && r % 8 == 0 && strlen(b.name) <= QCOW2_MAX_BITMAP_NAME_BYTES);
        g_autofree uint8_t *encoded = g_malloc(r);
        Qcow2BitmapEntry again;
        REQUIRE(qcow2_bitmap_entry_encode(&b, NULL) == (size_t)r);
        qcow2_bitmap_entry_encode(&b, encoded);
        REQUIRE(qcow2_bitmap_entry_decode(encoded, r, &again, NULL) == r);
        REQUIRE(b.table.v == again.table.v && b.table_entries == again.table_entries &&
                b.flags == again.flags && b.granularity_bits == again.granularity_bits &&
                !strcmp(b.name, again.name));
        qcow2_bitmap_entry_clear(&again);
        qcow2_bitmap_entry_clear(&b);
        pos += r;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 8 || size > 65536)
        return 0;
    uint32_t cluster_bits = 9 + data[0] % 13;
    Qcow2Geometry g;
    qcow2_geometry_init(&g, cluster_bits, data[1] % 7, data[1] & 0x80 && cluster_bits >= 14,
                        data[1] & 0x40, 1 << 20);
    g_autofree uint8_t *copy = g_memdup2(data + 8, (size - 8) & ~(size_t)7);
    size = (size - 8) & ~(size_t)7;
    try_words(&g, copy, size);
    try_refcounts(&g, copy, size);
    try_snapshots(copy, size);
    try_bitmaps(copy, size);
    return 0;
}
