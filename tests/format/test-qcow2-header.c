// SPDX-License-Identifier: LGPL-2.1-or-later
// The header: images made by qemu-img decode right, encoding and decoding are inverse, and each
// bound refuses with one sentence.
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include <glib.h>
#include <glib/gstdio.h>

#include "base/endian.h"
#include "format/qcow2-header.h"

typedef struct Fixture {
    char *dir;
    uint8_t *data; // a good header cluster of a 64 KiB cluster image with a backing file
    gsize len;
} Fixture;

static void run(const char *dir, const char *command)
{
    g_autofree char *script = g_strdup_printf("cd '%s' && %s >/dev/null", dir, command);
    const char *argv[] = {"sh", "-c", script, NULL};
    int status = -1;
    assert_true(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL,
                             &status, NULL));
    assert_int_equal(status, 0);
}

static uint8_t *read_image(const char *dir, const char *name, gsize *ret_len)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    char *data;
    assert_true(g_file_get_contents(path, &data, ret_len, NULL));
    return (uint8_t *)data;
}

static int set_up(void **state)
{
    Fixture *f = g_new0(Fixture, 1);
    f->dir = g_dir_make_tmp("chaind-test-XXXXXX", NULL);
    run(f->dir, "qemu-img create -q -f raw base.raw 100M && "
                "qemu-img create -q -f qcow2 -b base.raw -F raw good.qcow2 100M");
    f->data = read_image(f->dir, "good.qcow2", &f->len);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    Fixture *f = *state;
    run(f->dir, "rm -rf \"$PWD\"");
    g_free(f->dir);
    g_free(f->data);
    g_free(f);
    return 0;
}

static void decode_file(const Fixture *f, const char *name, Qcow2Header *ret_header)
{
    gsize len;
    g_autofree uint8_t *data = read_image(f->dir, name, &len);
    g_autoptr(GError) error = NULL;
    int r = qcow2_header_decode(data, MIN(len, 2 << 20), len, ret_header, &error);
    if (r < 0)
        fail_msg("%s: %s", name, error->message);
}

static void an_overlay_with_all_defaults_decodes(void **state)
{
    Qcow2Header h;
    decode_file(*state, "good.qcow2", &h);
    assert_int_equal(h.version, 3);
    assert_int_equal(h.cluster_bits, 16);
    assert_int_equal(h.size_bytes, 100 << 20);
    assert_int_equal(h.l1_entries, 1);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.incompatible | h.compatible | h.autoclear, 0);
    assert_int_equal(h.compression, QCOW2_COMPRESSION_ZLIB);
    assert_string_equal(h.backing_name, "base.raw");
    assert_string_equal(h.backing_format, "raw");
    assert_null(h.data_file_name);
    assert_true(h.feature_names_bytes >= 48);
    assert_null(h.unknown_extensions);
    qcow2_header_clear(&h);
}

static void every_kind_that_qemu_img_makes_decodes(void **state)
{
    static const struct {
        const char *options;
        uint32_t version, cluster_bits, refcount_order;
        uint64_t incompatible, compatible, autoclear;
    } kinds[] = {
        {"compat=0.10", 2, 16, 4, 0, 0, 0},
        {"compat=1.1,cluster_size=512,refcount_bits=1", 3, 9, 0, 0, 0, 0},
        {"cluster_size=2M,refcount_bits=64", 3, 21, 6, 0, 0, 0},
        {"compression_type=zstd", 3, 16, 4, QCOW2_INCOMPAT_COMPRESSION, 0, 0},
        {"extended_l2=on,cluster_size=16k", 3, 14, 4, QCOW2_INCOMPAT_EXTENDED_L2, 0, 0},
        {"lazy_refcounts=on", 3, 16, 4, 0, QCOW2_COMPAT_LAZY_REFCOUNTS, 0},
        {"data_file=data.raw,data_file_raw=on", 3, 16, 4, QCOW2_INCOMPAT_DATA_FILE, 0,
         QCOW2_AUTOCLEAR_RAW_DATA},
    };
    Fixture *f = *state;
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *command = g_strdup_printf(
            "rm -f kind.qcow2 data.raw && qemu-img create -q -f qcow2 -o %s kind.qcow2 10M",
            kinds[i].options);
        run(f->dir, command);
        Qcow2Header h;
        decode_file(f, "kind.qcow2", &h);
        assert_int_equal(h.version, kinds[i].version);
        assert_int_equal(h.cluster_bits, kinds[i].cluster_bits);
        assert_int_equal(h.refcount_order, kinds[i].refcount_order);
        assert_int_equal(h.incompatible, kinds[i].incompatible);
        assert_int_equal(h.compatible, kinds[i].compatible);
        assert_int_equal(h.autoclear, kinds[i].autoclear);
        if (h.incompatible & QCOW2_INCOMPAT_DATA_FILE)
            assert_string_equal(h.data_file_name, "data.raw");
        qcow2_header_clear(&h);
    }
}

static void snapshots_and_bitmaps_of_qemu_img_decode(void **state)
{
    Fixture *f = *state;
    run(f->dir, "qemu-img create -q -f qcow2 full.qcow2 10M && "
                "qemu-img snapshot -c one full.qcow2 && "
                "qemu-img bitmap --add full.qcow2 b0 && qemu-img bitmap --add full.qcow2 b1");
    Qcow2Header h;
    decode_file(f, "full.qcow2", &h);
    assert_int_equal(h.n_snapshots, 1);
    assert_int_not_equal(h.snapshot_table.v, 0);
    assert_true(h.has_bitmaps_extension);
    assert_int_equal(h.bitmaps.n_bitmaps, 2);
    assert_int_equal(h.autoclear, QCOW2_AUTOCLEAR_BITMAPS);
    qcow2_header_clear(&h);
}

// --- Round trips

static void put32(void *data, size_t off, uint32_t v)
{
    *(Be32 *)((uint8_t *)data + off) = be32_make(v);
}

static void put64(void *data, size_t off, uint64_t v)
{
    *(Be64 *)((uint8_t *)data + off) = be64_make(v);
}

static Qcow2Header rich_header(void)
{
    Qcow2Header h = {.version = 3,
                     .cluster_bits = 16,
                     .size_bytes = UINT64_C(10) << 30,
                     .l1_entries = 40,
                     .l1 = {0x30000},
                     .refcount_table = {0x10000},
                     .refcount_table_clusters = 1,
                     .n_snapshots = 3,
                     .snapshot_table = {0x40000},
                     .incompatible = QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTENDED_L2,
                     .compatible = QCOW2_COMPAT_LAZY_REFCOUNTS | UINT64_C(1) << 40,
                     .autoclear = QCOW2_AUTOCLEAR_BITMAPS,
                     .refcount_order = 6,
                     .compression = QCOW2_COMPRESSION_ZSTD,
                     .backing_name = g_strdup("json:{\"driver\": \"raw\"} ä"),
                     .backing_format = g_strdup("qcow2"),
                     .data_file_name = g_strdup("data"),
                     .has_bitmaps_extension = true,
                     .bitmaps = {2, 96, {0x50000}},
                     .unknown_fields = g_memdup2("\1\2\3\4\5\6\7\10", 8),
                     .unknown_fields_bytes = 8};
    Qcow2Extension x = {.type = 0x12345678, .len = 5, .data = g_memdup2("hello", 5)};
    h.unknown_extensions = g_array_new(FALSE, FALSE, sizeof(x));
    g_array_append_val(h.unknown_extensions, x);
    x = (Qcow2Extension){.type = 0x12345679};
    g_array_append_val(h.unknown_extensions, x);
    return h;
}

static void a_rich_header_round_trips(void **state)
{
    Qcow2Header h = rich_header(), d;
    Be64 buf[8192], again[8192];
    int used = qcow2_header_encode(&h, buf, sizeof(buf));
    assert_true(used > 0);
    g_autoptr(GError) error = NULL;
    if (qcow2_header_decode(buf, sizeof(buf), 1 << 20, &d, &error) < 0)
        fail_msg("%s", error->message);
    assert_int_equal(d.header_bytes, 120);
    assert_int_equal(d.size_bytes, h.size_bytes);
    assert_int_equal(d.compatible, h.compatible);
    assert_string_equal(d.backing_name, h.backing_name);
    assert_string_equal(d.backing_format, h.backing_format);
    assert_string_equal(d.data_file_name, h.data_file_name);
    assert_memory_equal(&d.bitmaps, &h.bitmaps, sizeof(d.bitmaps));
    assert_memory_equal(d.unknown_fields, h.unknown_fields, 8);
    assert_int_equal(d.unknown_extensions->len, 2);
    Qcow2Extension *x = &g_array_index(d.unknown_extensions, Qcow2Extension, 0);
    assert_int_equal(x->type, 0x12345678);
    assert_int_equal(x->len, 5);
    assert_memory_equal(x->data, "hello", 5);
    assert_int_equal(qcow2_header_encode(&d, again, sizeof(again)), used);
    assert_memory_equal(buf, again, sizeof(buf));
    qcow2_header_clear(&d);
    qcow2_header_clear(&h);
}

static void a_version_2_header_is_72_bytes_without_features(void **state)
{
    Qcow2Header h = {.version = 2,
                     .cluster_bits = 16,
                     .refcount_order = 4,
                     .refcount_table = {0x10000},
                     .refcount_table_clusters = 1};
    Be64 buf[64];
    assert_int_equal(qcow2_header_encode(&h, buf, sizeof(buf)), 80);
    h.incompatible = QCOW2_INCOMPAT_DIRTY;
    assert_int_equal(qcow2_header_encode(&h, buf, sizeof(buf)), -EINVAL);
}

static void a_name_that_does_not_fit_into_the_cluster_is_refused(void **state)
{
    Qcow2Header h = {.version = 3,
                     .cluster_bits = 9,
                     .refcount_order = 4,
                     .refcount_table = {512},
                     .refcount_table_clusters = 1};
    Be64 buf[64];
    h.backing_name = g_strnfill(512 - 112 - 8, 'x');
    assert_int_equal(qcow2_header_encode(&h, buf, sizeof(buf)), 512);
    g_free(h.backing_name);
    h.backing_name = g_strnfill(512 - 112 - 7, 'x');
    assert_int_equal(qcow2_header_encode(&h, buf, sizeof(buf)), -EINVAL);
    g_free(h.backing_name);
}

// As a change of a live header lays it aside.
static void a_name_may_lie_apart_from_the_extensions(void **state)
{
    Qcow2Header h = rich_header(), d;
    Be64 buf[8192];
    int end = qcow2_header_encode_apart(&h, 2048, buf, sizeof(buf));
    assert_true(end > 0 && end < 512);
    assert_int_equal(qcow2_header_decode(buf, sizeof(buf), 1 << 20, &d, NULL), 0);
    assert_string_equal(d.backing_name, h.backing_name);
    assert_null(d.feature_names);
    assert_int_equal(d.unknown_extensions->len, 2);
    assert_int_equal(qcow2_header_used_bytes(buf, sizeof(buf)), 2048 + strlen(h.backing_name));
    assert_int_equal(qcow2_header_encode_apart(&h, 128, buf, sizeof(buf)), -EINVAL);
    assert_int_equal(qcow2_header_encode_apart(&h, 2048, buf, 2048), -EINVAL);
    qcow2_header_clear(&d);
    qcow2_header_clear(&h);
}

static void single_fields_are_patched_where_they_lie(void **state)
{
    Fixture *f = *state;
    Qcow2Header h, next;
    assert_int_equal(qcow2_header_decode(f->data, f->len, f->len, &h, NULL), 0);
    qcow2_header_copy(&h, &next);
    assert_true(qcow2_header_differs_in_fields_only(&h, &next));
    next.incompatible = QCOW2_INCOMPAT_DIRTY;
    next.autoclear = QCOW2_AUTOCLEAR_BITMAPS;
    next.refcount_table = host_off(0x20000);
    next.l1 = host_off(0x10000);
    next.l1_entries = 2;
    next.snapshot_table = host_off(0x10000);
    next.n_snapshots = 1;
    next.size_bytes = 12345 * 512;
    assert_true(qcow2_header_differs_in_fields_only(&h, &next));
    qcow2_header_patch_fields(f->data, &next);
    qcow2_header_clear(&h);
    assert_int_equal(qcow2_header_decode(f->data, f->len, f->len, &h, NULL), 0);
    assert_int_equal(h.incompatible, QCOW2_INCOMPAT_DIRTY);
    assert_int_equal(h.autoclear, QCOW2_AUTOCLEAR_BITMAPS);
    assert_int_equal(h.refcount_table.v, 0x20000);
    assert_int_equal(h.l1.v, 0x10000);
    assert_int_equal(h.l1_entries, 2);
    assert_int_equal(h.snapshot_table.v, 0x10000);
    assert_int_equal(h.n_snapshots, 1);
    assert_int_equal(h.size_bytes, 12345 * 512);
    g_free(next.backing_name);
    next.backing_name = g_strdup("another");
    assert_false(qcow2_header_differs_in_fields_only(&h, &next));
    qcow2_header_clear(&next);
    qcow2_header_clear(&h);
}

// --- Refusals

// Decodes what the test made of the good header: refused with `error`, in one sentence with `part`.
static void refuse(const Fixture *f, int error, const char *part)
{
    Qcow2Header h;
    g_autoptr(GError) e = NULL;
    int r = qcow2_header_decode(f->data, f->len, f->len, &h, &e);
    if (r != error)
        fail_msg("%d instead of %d (%s)", r, error, part);
    if (!strstr(e->message, part))
        fail_msg("'%s' lacks '%s'", e->message, part);
    assert_null(strchr(e->message, '\n'));
    assert_null(h.backing_name);
}

static void too_short_files_are_refused(void **state)
{
    Fixture *f = *state;
    f->len = 71;
    refuse(f, -EINVAL, "too short");
    f->len = 103;
    refuse(f, -EINVAL, "too short");
    f->len = 0;
    refuse(f, -EINVAL, "too short");
    f->len = 196616;
}

static void other_formats_and_versions_are_refused(void **state)
{
    Fixture *f = *state;
    assert_true(qcow2_header_has_magic(f->data, 4));
    assert_false(qcow2_header_has_magic(f->data, 3));
    put32(f->data, 4, 1);
    refuse(f, -ENOTSUP, "version 1");
    put32(f->data, 4, 4);
    refuse(f, -ENOTSUP, "newer");
    put32(f->data, 0, 0);
    assert_false(qcow2_header_has_magic(f->data, 4));
    refuse(f, -EINVAL, "magic");
}

static void needed_bytes_is_a_cluster_unless_the_header_ends_before(void **state)
{
    Fixture *f = *state;
    put32(f->data, 100, 104);
    memset(f->data + 104, 0, 65536 - 104); // no extensions, and their end mark
    put64(f->data, 8, 0);
    put32(f->data, 16, 0);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 10), 512);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 103), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 111), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 112), 112);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 512), 512);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 196616), 65536);

    put32(f->data, 104, 0x12345678); // an extension that reaches past what was read
    put32(f->data, 108, 408);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 512), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 520), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 528), 528);

    put64(f->data, 8, 520); // a backing file's name, which ends the extensions, too
    put32(f->data, 16, 20);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 519), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 539), 65536);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 540), 540);
    put64(f->data, 8, UINT64_MAX);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 540), 65536);

    put32(f->data, 20, 64);
    assert_int_equal(qcow2_header_needed_bytes(f->data, 512), 512);
}

// Fields of 32 and 64 bits with values that no good header has.
static void absurd_fields_are_refused(void **state)
{
    static const struct {
        unsigned off, bytes;
        uint64_t value;
        int error;
        const char *part;
    } cases[] = {
        {20, 4, 8, -EINVAL, "cluster size"},
        {20, 4, 22, -EINVAL, "cluster size"},
        {20, 4, 0xffffffff, -EINVAL, "cluster size"},
        {100, 4, 72, -EINVAL, "header length"},
        {100, 4, 105, -EINVAL, "header length"},
        {100, 4, 65544, -EINVAL, "header length"},
        {100, 4, 0xfffffff8, -EINVAL, "header length"},
        {96, 4, 7, -EINVAL, "64 bits"},
        {96, 4, 0xffffffff, -EINVAL, "64 bits"},
        {32, 4, 1, -ENOTSUP, "AES"},
        {32, 4, 2, -ENOTSUP, "LUKS"},
        {32, 4, 3, -EINVAL, "encryption method"},
        {24, 8, UINT64_MAX, -EINVAL, "guest size"},
        {24, 8, UINT64_C(1) << 62, -EINVAL, "guest size"},
        {24, 8, UINT64_C(1) << 40, -EINVAL, "needs 2048"},
        {36, 4, 0, -EINVAL, "L1 table has 0"},
        {36, 4, 4194305, -EINVAL, "larger than the limit"},
        {36, 4, 4194304, -EINVAL, "cut off, at least"},
        {40, 8, 0, -EINVAL, "header's own"},
        {40, 8, 0x30001, -EINVAL, "not aligned"},
        {40, 8, 0x40000, -EINVAL, "cut off, at least"},
        {40, 8, 0xffffffffffff0000, -EINVAL, "in no file"},
        {48, 8, 0, -EINVAL, "header's own"},
        {48, 8, 0x10200, -EINVAL, "not aligned"},
        {48, 8, 0xffffffffffff0000, -EINVAL, "in no file"},
        {56, 4, 0, -EINVAL, "refcount table of 0"},
        {56, 4, 129, -EINVAL, "refcount table of 129"},
        {56, 4, 0x80000001, -EINVAL, "refcount table"},
        {56, 4, 128, -EINVAL, "cut off, at least"},
        {60, 4, 65537, -EINVAL, "more than the limit"},
        {60, 4, 0xffffffff, -EINVAL, "more than the limit"},
        {60, 4, 1, -EINVAL, "snapshot table"},
        {8, 8, 8, -EINVAL, "backing file's name"},
        {8, 8, 65536, -EINVAL, "backing file's name"},
        {8, 8, UINT64_MAX, -EINVAL, "backing file's name"},
        {16, 4, 1024, -EINVAL, "1024 bytes long"},
        {16, 4, 0xffffffff, -EINVAL, "bytes long"},
        {104, 1, 1, -EINVAL, "contradict"},
        {104, 1, 2, -ENOTSUP, "compression type 2"},
        {72, 8, 8, -EINVAL, "contradict"},
        {72, 8, UINT64_C(1) << 63, -ENOTSUP, "feature bit 63"},
        {116, 4, 0xffffffff, -EINVAL, "reaches past"},
    };
    Fixture *f = *state;
    g_autofree uint8_t *good = g_memdup2(f->data, f->len);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        memcpy(f->data, good, f->len);
        if (cases[i].bytes == 8)
            put64(f->data, cases[i].off, cases[i].value);
        else if (cases[i].bytes == 4)
            put32(f->data, cases[i].off, cases[i].value);
        else
            f->data[cases[i].off] = cases[i].value;
        refuse(f, cases[i].error, cases[i].part);
    }
}

static void extended_l2_needs_large_clusters(void **state)
{
    Fixture *f = *state;
    put64(f->data, 72, QCOW2_INCOMPAT_EXTENDED_L2);
    put32(f->data, 20, 13);
    refuse(f, -EINVAL, "16 KiB");
}

static void unknown_features_are_named_by_the_image(void **state)
{
    Fixture *f = *state;
    uint8_t *table = f->data + 112;
    memset(table, 0, 256);
    put32(table, 0, 0x6803f857);
    put32(table, 4, 3 * 48);
    table[8 + 1] = 6; // the second entry is the one, and is not NUL-terminated
    table[8 + 48 + 1] = 7;
    memcpy(table + 8 + 48 + 2, "foo bar", 7);
    table[8 + 96 + 1] = 8;
    memset(table + 8 + 96 + 2, 'x', 46);
    put64(f->data, 8, 0); // no backing name in the way
    put64(f->data, 72, UINT64_C(1) << 7);
    refuse(f, -ENOTSUP, "unknown incompatible feature 'foo bar' (bit 7);");
    put64(f->data, 72, UINT64_C(1) << 8 | UINT64_C(1) << 9);
    refuse(f, -ENOTSUP, "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' (bit 8), bit 9;");
    memcpy(table + 8 + 48 + 2, "a\nb", 4);
    put64(f->data, 72, UINT64_C(1) << 7);
    refuse(f, -ENOTSUP, "'a\\nb'");
}

static void an_extension_twice_is_refused(void **state)
{
    Fixture *f = *state;
    memset(f->data + 112, 0, 128);
    for (unsigned i = 0; i < 2; i++) {
        put32(f->data, 112 + 16 * i, 0xe2792aca);
        put32(f->data, 116 + 16 * i, 3);
        memcpy(f->data + 120 + 16 * i, "raw", 3);
    }
    refuse(f, -EINVAL, "twice");
}

static void strings_with_nul_bytes_are_refused(void **state)
{
    Fixture *f = *state;
    put32(f->data, 112, 0xe2792aca);
    put32(f->data, 116, 5);
    memcpy(f->data + 120, "ra\0w\0", 6);
    refuse(f, -EINVAL, "NUL");
    memset(f->data + 120, 0, 5);
    refuse(f, -EINVAL, "NUL");
    memcpy(f->data + 120, "raw\0\0", 6);
    Qcow2Header h;
    assert_int_equal(qcow2_header_decode(f->data, f->len, f->len, &h, NULL), 0);
    assert_string_equal(h.backing_format, "raw");
    qcow2_header_clear(&h);
}

// A bitmaps extension in front of the rest, with the given numbers.
static void put_bitmaps(Fixture *f, uint32_t n, uint64_t bytes, uint64_t off, uint64_t autoclear)
{
    put32(f->data, 112, 0x23852875);
    put32(f->data, 116, 24);
    put32(f->data, 120, n);
    put32(f->data, 124, 0);
    put64(f->data, 128, bytes);
    put64(f->data, 136, off);
    put64(f->data, 144, 0);
    put64(f->data, 88, autoclear);
}

static void a_broken_bitmaps_extension_matters_only_with_its_autoclear_bit(void **state)
{
    static const struct {
        uint32_t n;
        uint64_t bytes, off;
    } bad[] = {{0, 32, 0x10000},        {65536, 65536 * 24, 0x10000},
               {1, 65 << 20, 0x10000},  {3, 32, 0x10000},
               {1, 32, 0x10001},        {1, 32, UINT64_C(0xffffffffffff0000)},
               {1, UINT64_MAX, 0x10000}};
    Fixture *f = *state;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        put_bitmaps(f, bad[i].n, bad[i].bytes, bad[i].off, QCOW2_AUTOCLEAR_BITMAPS);
        refuse(f, -EINVAL, "bitmap");
        put64(f->data, 88, 0);
        Qcow2Header h;
        assert_int_equal(qcow2_header_decode(f->data, f->len, f->len, &h, NULL), 0);
        assert_int_equal(h.bitmaps.directory_bytes, bad[i].bytes);
        qcow2_header_clear(&h);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_overlay_with_all_defaults_decodes),
        TEST(every_kind_that_qemu_img_makes_decodes),
        TEST(snapshots_and_bitmaps_of_qemu_img_decode),
        cmocka_unit_test(a_rich_header_round_trips),
        cmocka_unit_test(a_version_2_header_is_72_bytes_without_features),
        cmocka_unit_test(a_name_that_does_not_fit_into_the_cluster_is_refused),
        TEST(a_name_may_lie_apart_from_the_extensions),
        TEST(single_fields_are_patched_where_they_lie),
        TEST(too_short_files_are_refused),
        TEST(other_formats_and_versions_are_refused),
        TEST(needed_bytes_is_a_cluster_unless_the_header_ends_before),
        TEST(absurd_fields_are_refused),
        TEST(extended_l2_needs_large_clusters),
        TEST(unknown_features_are_named_by_the_image),
        TEST(an_extension_twice_is_refused),
        TEST(strings_with_nul_bytes_are_refused),
        TEST(a_broken_bitmaps_extension_matters_only_with_its_autoclear_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
