// SPDX-License-Identifier: LGPL-2.1-or-later
// Snapshot table and bitmap directory entries: round trips, each bound, and what arrives in pieces.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/endian.h"
#include "format/qcow2-snapshot.h"

// Aligned bytes of one entry, for patching.
typedef union Entry {
    uint8_t bytes[4096];
    Be64 words[512];
} Entry;

static void put16(Entry *e, size_t off, uint16_t v)
{
    *(Be16 *)(e->bytes + off) = be16_make(v);
}

static void put32(Entry *e, size_t off, uint32_t v)
{
    *(Be32 *)(e->bytes + off) = be32_make(v);
}

static void put64(Entry *e, size_t off, uint64_t v)
{
    *(Be64 *)(e->bytes + off) = be64_make(v);
}

static Qcow2Snapshot example(void)
{
    return (Qcow2Snapshot){.l1 = {0x70000},
                           .l1_entries = 4,
                           .id = (char *)"1",
                           .name = (char *)"before the upgrade",
                           .date_sec = 1700000000,
                           .date_nsec = 5,
                           .vm_clock_ns = 77,
                           .vm_state_bytes = UINT64_C(5) << 32,
                           .size_bytes = UINT64_C(1) << 30,
                           .icount = UINT64_MAX};
}

static void assert_same(const Qcow2Snapshot *a, const Qcow2Snapshot *b)
{
    assert_int_equal(a->l1.v, b->l1.v);
    assert_int_equal(a->l1_entries, b->l1_entries);
    assert_string_equal(a->id, b->id);
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->date_sec, b->date_sec);
    assert_int_equal(a->date_nsec, b->date_nsec);
    assert_int_equal(a->vm_clock_ns, b->vm_clock_ns);
    assert_int_equal(a->vm_state_bytes, b->vm_state_bytes);
    assert_int_equal(a->size_bytes, b->size_bytes);
    assert_int_equal(a->icount, b->icount);
    assert_int_equal(a->extra_bytes, b->extra_bytes);
    if (a->extra_bytes)
        assert_memory_equal(a->extra, b->extra, a->extra_bytes);
}

static void round_trip(const Qcow2Snapshot *in)
{
    Entry e;
    memset(&e, 0xee, sizeof(e));
    size_t len = qcow2_snapshot_encode(in, NULL);
    assert_int_equal(len % 8, 0);
    assert_int_equal(qcow2_snapshot_encode(in, e.bytes), len);
    assert_int_equal(e.bytes[len], 0xee);
    Qcow2Snapshot s;
    for (size_t i = 0; i < len; i++)
        assert_int_equal(qcow2_snapshot_decode(e.bytes, i, 1, &s, NULL), -EAGAIN);
    assert_int_equal(qcow2_snapshot_decode(e.bytes, len, 1, &s, NULL), len);
    assert_same(&s, in);
    qcow2_snapshot_clear(&s);
}

static void snapshots_round_trip(void **state)
{
    Qcow2Snapshot s = example();
    round_trip(&s);
    s.icount = 12345;
    round_trip(&s);
    uint8_t extra[13] = "from tomorrow";
    s.extra = extra;
    s.extra_bytes = sizeof(extra);
    round_trip(&s);
    s.icount = UINT64_MAX;
    s.name = (char *)"";
    round_trip(&s);
}

static void a_snapshot_without_extra_data_has_the_default_size(void **state)
{
    Entry e = {0};
    put64(&e, 0, 0x30000);
    put32(&e, 8, 2);
    put16(&e, 12, 1);
    put16(&e, 14, 2);
    put32(&e, 32, 99);
    memcpy(e.bytes + 40, "7ab", 3);
    Qcow2Snapshot s;
    assert_int_equal(qcow2_snapshot_decode(e.bytes, sizeof(e), 4096, &s, NULL), 48);
    assert_string_equal(s.id, "7");
    assert_string_equal(s.name, "ab");
    assert_int_equal(s.size_bytes, 4096);
    assert_int_equal(s.vm_state_bytes, 99);
    assert_int_equal(s.icount, UINT64_MAX);
    qcow2_snapshot_clear(&s);
}

static void the_largest_snapshot_entry_fits_the_bound(void **state)
{
    g_autofree uint8_t *big = g_malloc0(QCOW2_MAX_SNAPSHOT_ENTRY_BYTES);
    Entry *e = (Entry *)big;
    put16(e, 12, 65535);
    put16(e, 14, 65535);
    put32(e, 36, 1024);
    Qcow2Snapshot s;
    int r = qcow2_snapshot_decode(big, QCOW2_MAX_SNAPSHOT_ENTRY_BYTES, 0, &s, NULL);
    assert_in_range(r, 1, QCOW2_MAX_SNAPSHOT_ENTRY_BYTES);
    qcow2_snapshot_clear(&s);
}

static void refuse_snapshot(const Entry *e)
{
    Qcow2Snapshot s;
    g_autoptr(GError) error = NULL;
    assert_int_equal(qcow2_snapshot_decode(e->bytes, sizeof(*e), 1, &s, &error), -EINVAL);
    assert_non_null(error);
    assert_null(strchr(error->message, '\n'));
}

static void impossible_snapshots_are_refused(void **state)
{
    Qcow2Snapshot good = example();
    Entry e = {0};
    qcow2_snapshot_encode(&good, e.bytes);
    put32(&e, 36, 1025);
    refuse_snapshot(&e);
    put32(&e, 36, 0xffffffff);
    refuse_snapshot(&e);

    qcow2_snapshot_encode(&good, e.bytes);
    put32(&e, 8, QCOW2_MAX_L1_BYTES / 8 + 1);
    refuse_snapshot(&e);
    Qcow2Snapshot s;
    assert_true(qcow2_snapshot_decode_any(e.bytes, sizeof(e), 1, &s, NULL) > 0);
    qcow2_snapshot_clear(&s);

    qcow2_snapshot_encode(&good, e.bytes);
    put64(&e, 0, 0x70001);
    refuse_snapshot(&e);

    qcow2_snapshot_encode(&good, e.bytes);
    put64(&e, 48, UINT64_MAX);
    refuse_snapshot(&e);
}

static void a_long_name_does_not_make_a_long_sentence(void **state)
{
    g_autofree char *name = g_strnfill(60000, 'x');
    Qcow2Snapshot long_named = example();
    long_named.name = name;
    long_named.l1.v = 1;
    size_t len = qcow2_snapshot_encode(&long_named, NULL);
    g_autofree uint8_t *buf = g_malloc(len);
    qcow2_snapshot_encode(&long_named, buf);
    Qcow2Snapshot s;
    g_autoptr(GError) error = NULL;
    assert_int_equal(qcow2_snapshot_decode(buf, len, 1, &s, &error), -EINVAL);
    assert_in_range(strlen(error->message), 50, 500);
}

static Entry example_bitmap(void)
{
    Entry e = {0};
    put64(&e, 0, 0x40000);
    put32(&e, 8, 3);
    put32(&e, QCOW2_BITMAP_OFF_FLAGS, QCOW2_BITMAP_AUTO);
    e.bytes[16] = QCOW2_BITMAP_TYPE_DIRTY;
    e.bytes[17] = 16;
    put16(&e, 18, 9);
    memcpy(e.bytes + 24, "monday äx", 9);
    return e;
}

static void a_bitmap_entry_decodes(void **state)
{
    Entry e = example_bitmap();
    Qcow2BitmapEntry b;
    assert_int_equal(qcow2_bitmap_entry_decode(e.bytes, 23, &b, NULL), -EAGAIN);
    assert_int_equal(qcow2_bitmap_entry_decode(e.bytes, 39, &b, NULL), -EAGAIN);
    assert_int_equal(qcow2_bitmap_entry_decode(e.bytes, 40, &b, NULL), 40);
    assert_int_equal(b.table.v, 0x40000);
    assert_int_equal(b.table_entries, 3);
    assert_int_equal(b.flags, QCOW2_BITMAP_AUTO);
    assert_int_equal(b.granularity_bits, 16);
    assert_memory_equal(b.name, "monday äx", 9);
    qcow2_bitmap_entry_clear(&b);
}

static void impossible_bitmaps_are_refused(void **state)
{
    Entry bad[9];
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        bad[i] = example_bitmap();
    put64(&bad[0], 0, 0);
    put64(&bad[1], 0, 0x40004);
    put32(&bad[2], 8, QCOW2_MAX_BITMAP_TABLE_ENTRIES + 1);
    put32(&bad[3], QCOW2_BITMAP_OFF_FLAGS, 4);
    bad[4].bytes[16] = 2;
    bad[5].bytes[17] = 8;
    bad[6].bytes[17] = 32;
    put16(&bad[7], 18, 1024);
    put32(&bad[8], 20, 0xfffffff8);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        Qcow2BitmapEntry b;
        g_autoptr(GError) error = NULL;
        assert_int_equal(qcow2_bitmap_entry_decode(&bad[i], sizeof(Entry), &b, &error), -EINVAL);
        assert_non_null(error);
    }
}

static void bitmap_table_entries_show_reserved_bits(void **state)
{
    HostOff cluster;
    assert_true(qcow2_bitmap_table_entry_decode(0, &cluster));
    assert_int_equal(cluster.v, 0);
    assert_true(qcow2_bitmap_table_entry_decode(1, &cluster));
    assert_int_equal(cluster.v, 0);
    assert_true(qcow2_bitmap_table_entry_decode(0x50000, &cluster));
    assert_int_equal(cluster.v, 0x50000);
    assert_false(qcow2_bitmap_table_entry_decode(0x50001, &cluster));
    assert_false(qcow2_bitmap_table_entry_decode(0x50002, &cluster));
    assert_false(qcow2_bitmap_table_entry_decode(UINT64_C(1) << 56 | 0x50000, &cluster));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshots_round_trip),
        cmocka_unit_test(a_snapshot_without_extra_data_has_the_default_size),
        cmocka_unit_test(the_largest_snapshot_entry_fits_the_bound),
        cmocka_unit_test(impossible_snapshots_are_refused),
        cmocka_unit_test(a_long_name_does_not_make_a_long_sentence),
        cmocka_unit_test(a_bitmap_entry_decodes),
        cmocka_unit_test(impossible_bitmaps_are_refused),
        cmocka_unit_test(bitmap_table_entries_show_reserved_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
