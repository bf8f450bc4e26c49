// SPDX-License-Identifier: LGPL-2.1-or-later
// Offset arithmetic and entries: every cluster size, every refcount width, and each way for an
// entry to be bad.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "format/qcow2-table.h"

static Qcow2Geometry geometry(uint32_t cluster_bits, bool extended)
{
    Qcow2Geometry g;
    qcow2_geometry_init(&g, cluster_bits, 4, extended, false, UINT64_C(1) << 40);
    return g;
}

static Qcow2Geometry data_file_geometry(void)
{
    Qcow2Geometry g;
    qcow2_geometry_init(&g, 16, 4, false, true, UINT64_C(1) << 40);
    return g;
}

static Qcow2L2Entry decode_raw(const Qcow2Geometry *g, uint64_t entry, uint64_t bitmaps)
{
    Be64 words[2] = {be64_make(entry), be64_make(bitmaps)};
    return qcow2_l2_entry_decode(g, words, 0);
}

static void assert_same(const Qcow2L2Entry *a, const Qcow2L2Entry *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->copied, b->copied);
    assert_int_equal(a->host.v, b->host.v);
    assert_int_equal(a->compressed_bytes, b->compressed_bytes);
    assert_int_equal(a->alloc_bitmap, b->alloc_bitmap);
    assert_int_equal(a->zero_bitmap, b->zero_bitmap);
}

static void geometry_follows_from_cluster_bits(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    assert_int_equal(g.cluster_bytes, 65536);
    assert_int_equal(g.l2_entries, 8192);
    assert_int_equal(g.slice_bytes, 4096);
    assert_int_equal(g.slice_entries, 512);
    assert_int_equal(g.subclusters, 1);
    assert_int_equal(1 << g.refcounts_per_block_bits, 32768);
    g = geometry(16, true);
    assert_int_equal(g.l2_entries, 4096);
    assert_int_equal(g.slice_entries, 256);
    assert_int_equal(g.subclusters, 32);
    assert_int_equal(1 << g.subcluster_bits, 2048);
    g = geometry(9, false);
    assert_int_equal(g.slice_bytes, 512);
    assert_int_equal(g.slice_entries, 64);
}

static void guest_offsets_split_into_indices(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    GuestOff off = guest_off((UINT64_C(3) << 29) + (UINT64_C(17) << 16) + 5);
    assert_int_equal(qcow2_l1_index(&g, off), 3);
    assert_int_equal(qcow2_l2_index(&g, off), 17);
    assert_int_equal(qcow2_in_cluster(&g, off), 5);
}

static void l1_entries_cover_the_size_without_overflow(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    assert_int_equal(qcow2_l1_entries_for(&g, 0), 0);
    assert_int_equal(qcow2_l1_entries_for(&g, 1), 1);
    assert_int_equal(qcow2_l1_entries_for(&g, UINT64_C(1) << 29), 1);
    assert_int_equal(qcow2_l1_entries_for(&g, (UINT64_C(1) << 29) + 1), 2);
    assert_int_equal(qcow2_l1_entries_for(&g, UINT64_MAX), UINT64_C(1) << 35);
}

static void l1_entries_round_trip_and_show_reserved_bits(void **state)
{
    Qcow2L1Entry e = qcow2_l1_entry_decode(qcow2_l1_entry_encode(host_off(0x50000), true));
    assert_int_equal(e.l2.v, 0x50000);
    assert_true(e.copied && !e.reserved_set);
    for (unsigned bit = 0; bit < 64; bit++) {
        e = qcow2_l1_entry_decode(be64_make(UINT64_C(1) << bit));
        assert_int_equal(e.reserved_set, bit < 9 || (bit >= 56 && bit < 63));
    }
}

static void standard_entries_round_trip(void **state)
{
    for (uint32_t bits = 9; bits <= 21; bits++) {
        Qcow2Geometry g = geometry(bits, false);
        const Qcow2L2Entry entries[] = {
            {.kind = QCOW2_CLUSTER_UNALLOCATED},
            {.kind = QCOW2_CLUSTER_ZERO},
            {.kind = QCOW2_CLUSTER_ZERO_ALLOCATED, .copied = true, .host = {UINT64_C(5) << bits}},
            {.kind = QCOW2_CLUSTER_DATA, .copied = true, .host = {UINT64_C(7) << bits}},
            {.kind = QCOW2_CLUSTER_DATA, .host = {(UINT64_C(1) << 56) - g.cluster_bytes}},
        };
        for (size_t i = 0; i < sizeof(entries) / sizeof(*entries); i++) {
            Be64 slice[8];
            memset(slice, 0xee, sizeof(slice));
            qcow2_l2_entry_encode(&g, slice, 3, &entries[i]);
            Qcow2L2Entry e = qcow2_l2_entry_decode(&g, slice, 3);
            assert_same(&e, &entries[i]);
            HostOff host;
            bool copied, plain = qcow2_l2_entry_is_plain(&g, slice, 3, &host, &copied);
            assert_int_equal(plain, e.kind == QCOW2_CLUSTER_DATA);
            if (plain) {
                assert_int_equal(host.v, e.host.v);
                assert_int_equal(copied, e.copied);
            }
        }
    }
}

static void compressed_descriptors_round_trip_for_each_cluster_size(void **state)
{
    for (uint32_t bits = 9; bits <= 21; bits++) {
        Qcow2Geometry g = geometry(bits, false);
        uint32_t offset_bits = 70 - bits;
        uint64_t top = UINT64_C(1) << (offset_bits < 56 ? offset_bits : 56);
        const struct {
            uint64_t host;
            uint32_t bytes;
        } cases[] = {
            {g.cluster_bytes, 1},
            {g.cluster_bytes + 511, 1},
            {g.cluster_bytes + 511, 2},
            {3 * (uint64_t)g.cluster_bytes - 7, g.cluster_bytes},
            {top - g.cluster_bytes, g.cluster_bytes},
        };
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
            Be64 slice[1];
            Qcow2L2Entry in = {.kind = QCOW2_CLUSTER_COMPRESSED,
                               .host = {cases[i].host},
                               .compressed_bytes = cases[i].bytes};
            qcow2_l2_entry_encode(&g, slice, 0, &in);
            Qcow2L2Entry e = qcow2_l2_entry_decode(&g, slice, 0);
            assert_int_equal(e.kind, QCOW2_CLUSTER_COMPRESSED);
            assert_int_equal(e.host.v, in.host.v);
            // Up to the end of the last sector.
            uint64_t end = (in.host.v + in.compressed_bytes + 511) & ~UINT64_C(511);
            assert_int_equal(e.host.v + e.compressed_bytes, end);
        }
    }
}

// The picture of the specification, worked out by hand for 64 KiB clusters: x = 54.
static void a_compressed_descriptor_is_laid_out_as_specified(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    Qcow2L2Entry e = decode_raw(&g, UINT64_C(1) << 62 | UINT64_C(3) << 54 | 0x123456, 0);
    assert_int_equal(e.kind, QCOW2_CLUSTER_COMPRESSED);
    assert_int_equal(e.host.v, 0x123456);
    assert_int_equal(e.compressed_bytes, 4 * 512 - 0x56);
}

static void compressed_data_beyond_the_offset_limit_or_in_the_header_is_bad(void **state)
{
    Qcow2Geometry g = geometry(9, false);
    for (unsigned bit = 56; bit <= 60; bit++)
        assert_int_equal(decode_raw(&g, UINT64_C(1) << 62 | UINT64_C(1) << bit, 0).kind,
                         QCOW2_CLUSTER_BAD);
    assert_int_equal(decode_raw(&g, UINT64_C(1) << 62 | 100, 0).kind, QCOW2_CLUSTER_BAD);
    g = data_file_geometry();
    assert_int_equal(decode_raw(&g, UINT64_C(1) << 62 | 0x20000, 0).kind, QCOW2_CLUSTER_BAD);
}

static void reserved_bits_and_unaligned_offsets_are_bad(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    for (unsigned bit = 0; bit < 62; bit++) {
        bool bad =
            decode_raw(&g, UINT64_C(0x50000) | UINT64_C(1) << bit, 0).kind == QCOW2_CLUSTER_BAD;
        assert_int_equal(bad, bit != 0 && (bit < 16 || bit > 55));
    }
}

static void extended_entries_round_trip(void **state)
{
    for (uint32_t bits = 14; bits <= 21; bits++) {
        Qcow2Geometry g = geometry(bits, true);
        const Qcow2L2Entry entries[] = {
            {.kind = QCOW2_CLUSTER_UNALLOCATED},
            {.kind = QCOW2_CLUSTER_UNALLOCATED, .zero_bitmap = 0xffffffff},
            {.kind = QCOW2_CLUSTER_DATA,
             .copied = true,
             .host = {UINT64_C(7) << bits},
             .alloc_bitmap = 0x80000001,
             .zero_bitmap = 0x7ffffffe},
            {.kind = QCOW2_CLUSTER_DATA, .host = {UINT64_C(9) << bits}},
        };
        for (size_t i = 0; i < sizeof(entries) / sizeof(*entries); i++) {
            Be64 slice[8];
            memset(slice, 0xee, sizeof(slice));
            qcow2_l2_entry_encode(&g, slice, 2, &entries[i]);
            Qcow2L2Entry e = qcow2_l2_entry_decode(&g, slice, 2);
            assert_same(&e, &entries[i]);
            assert_int_equal(be64_get(slice[6]), UINT64_C(0xeeeeeeeeeeeeeeee));
        }
    }
}

static void extended_entries_that_contradict_themselves_are_bad(void **state)
{
    Qcow2Geometry g = geometry(16, true);
    uint64_t host = 0x50000, both = UINT64_C(1) << 32 | 1;
    assert_int_equal(decode_raw(&g, host, 1).kind, QCOW2_CLUSTER_DATA);
    assert_int_equal(decode_raw(&g, host, both).kind, QCOW2_CLUSTER_BAD);
    assert_int_equal(decode_raw(&g, 0, 1).kind, QCOW2_CLUSTER_BAD);
    assert_int_equal(decode_raw(&g, host | 1, 1).kind, QCOW2_CLUSTER_BAD);
    assert_int_equal(decode_raw(&g, 0, UINT64_C(1) << 32).kind, QCOW2_CLUSTER_UNALLOCATED);
    Qcow2L2Entry e = decode_raw(&g, UINT64_C(1) << 62 | 0x50000, UINT64_MAX);
    assert_int_equal(e.kind, QCOW2_CLUSTER_COMPRESSED);
    assert_int_equal(e.alloc_bitmap | e.zero_bitmap, 0);
}

static void offset_zero_is_a_cluster_only_in_a_data_file(void **state)
{
    Qcow2Geometry g = geometry(16, false), d = data_file_geometry();
    assert_int_equal(decode_raw(&g, QCOW2_ENTRY_COPIED, 0).kind, QCOW2_CLUSTER_UNALLOCATED);
    assert_int_equal(decode_raw(&d, 0, 0).kind, QCOW2_CLUSTER_UNALLOCATED);
    assert_int_equal(decode_raw(&d, QCOW2_ENTRY_COPIED, 0).kind, QCOW2_CLUSTER_DATA);
    assert_int_equal(decode_raw(&d, QCOW2_ENTRY_COPIED | 1, 0).kind, QCOW2_CLUSTER_ZERO_ALLOCATED);
}

static void refcount_table_entries_must_be_aligned(void **state)
{
    Qcow2Geometry g = geometry(16, false);
    HostOff block;
    assert_true(qcow2_refcount_table_entry_decode(
        &g, qcow2_refcount_table_entry_encode(host_off(0x30000)), &block));
    assert_int_equal(block.v, 0x30000);
    for (unsigned bit = 0; bit < 16; bit++)
        assert_false(qcow2_refcount_table_entry_decode(&g, be64_make(0x30000 | 1 << bit), &block));
}

static void refcounts_of_each_width_do_not_touch_their_neighbours(void **state)
{
    for (uint32_t order = 0; order <= 6; order++) {
        Qcow2Geometry g;
        qcow2_geometry_init(&g, 9, order, false, false, 0);
        Be64 block[64];
        uint32_t n = 1 << g.refcounts_per_block_bits;
        assert_int_equal(n, 512 * 8 >> order);
        for (unsigned round = 0; round < 2; round++) {
            memset(block, round ? 0xff : 0, sizeof(block));
            uint64_t rest = round ? qcow2_refcount_max(&g) : 0;
            for (uint32_t i = 0; i < n; i++) {
                uint64_t value = UINT64_C(0x123456789abcdef1) & qcow2_refcount_max(&g);
                qcow2_refcount_set(&g, block, i, value);
                assert_int_equal(qcow2_refcount_get(&g, block, i), value);
                assert_int_equal(qcow2_refcount_get(&g, block, i ? i - 1 : n - 1), rest);
                assert_int_equal(qcow2_refcount_get(&g, block, i + 1 < n ? i + 1 : 0), rest);
                qcow2_refcount_set(&g, block, i, rest);
            }
        }
    }
}

static void narrow_refcounts_start_at_the_least_significant_bit(void **state)
{
    Qcow2Geometry g;
    qcow2_geometry_init(&g, 9, 1, false, false, 0);
    const uint8_t byte = 0xe4; // 3 2 1 0
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(qcow2_refcount_get(&g, &byte, i), i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(geometry_follows_from_cluster_bits),
        cmocka_unit_test(guest_offsets_split_into_indices),
        cmocka_unit_test(l1_entries_cover_the_size_without_overflow),
        cmocka_unit_test(l1_entries_round_trip_and_show_reserved_bits),
        cmocka_unit_test(standard_entries_round_trip),
        cmocka_unit_test(compressed_descriptors_round_trip_for_each_cluster_size),
        cmocka_unit_test(a_compressed_descriptor_is_laid_out_as_specified),
        cmocka_unit_test(compressed_data_beyond_the_offset_limit_or_in_the_header_is_bad),
        cmocka_unit_test(reserved_bits_and_unaligned_offsets_are_bad),
        cmocka_unit_test(extended_entries_round_trip),
        cmocka_unit_test(extended_entries_that_contradict_themselves_are_bad),
        cmocka_unit_test(offset_zero_is_a_cluster_only_in_a_data_file),
        cmocka_unit_test(refcount_table_entries_must_be_aligned),
        cmocka_unit_test(refcounts_of_each_width_do_not_touch_their_neighbours),
        cmocka_unit_test(narrow_refcounts_start_at_the_least_significant_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
