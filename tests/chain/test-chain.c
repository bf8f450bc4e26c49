// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening real chains: names, formats, loops, locks, depth; and what they show, with qemu-img and
// qemu-io as oracles. Skips what needs them when they are missing.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "../node/load.h"
#include "chain-core/qcow2-create.h"
#include "chain-fixture.h"

static uint64_t seed = 99;

// -- names and formats ----------------------------------------------------------------------------

static void backing_names_are_found_as_qemu_finds_them(void **state)
{
    static const char *const names[] = {"base.qcow2", "an image", "größe-日本", "sub/../sub/b",
                                        "./a:b"};
    shell("mkdir -p sub");
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        make_base(names[i]);
        shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 over.qcow2", names[i]);
        g_autofree char *over = in_dir("over.qcow2");
        assert_opens(over, NULL, 2, reads_11_at_0);
        unlink(over);
    }
}

static void a_backing_name_may_have_1023_bytes(void **state)
{
    g_autoptr(GString) name = g_string_new("");
    make_base("base.qcow2");
    while (name->len + 2 + strlen("base.qcow2") <= 1023)
        g_string_append(name, "./");
    g_string_append(name, "base.qcow2");
    if (name->len < 1023) // "./" takes two bytes, ".//" three
        g_string_insert_c(name, 1, '/');
    assert_int_equal(name->len, 1023);
    shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 over.qcow2", name->str);
    g_autofree char *over = in_dir("over.qcow2");
    assert_opens(over, NULL, 2, reads_11_at_0);
}

static void json_backing_names_are_understood(void **state)
{
    make_base("base.qcow2");
    g_autofree char *nested =
        g_strdup_printf("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":"
                        "\"%s/base.qcow2\"}}",
                        dir);
    g_autofree char *flat = g_strdup_printf(
        "json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"%s/base.qcow2\"}",
        dir);
    g_autofree char *over = in_dir("over.qcow2");
    shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 over.qcow2", nested);
    assert_opens(over, NULL, 2, reads_11_at_0);
    shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 over.qcow2", flat);
    assert_opens(over, NULL, 2, reads_11_at_0);
    assert_opens(nested, NULL, 1, reads_11_at_0);
    g_autofree char *nbd = in_dir("nbd.qcow2");
    shell("qemu-img create -q -u -f qcow2 -b nbd+unix:///x?socket=/nowhere/s -F raw nbd.qcow2 1M");
    REFUSED(nbd, NULL, "nbd.qcow2", "Failed to connect to '/nowhere/s'");
}

static void the_top_is_guessed_only_by_the_magic_of_qcow2(void **state)
{
    make_base("base.qcow2");
    shell("truncate -s 1000000 raw.img; : >empty.img");
    g_autofree char *raw = in_dir("raw.img"), *base = in_dir("base.qcow2"), *none = in_dir("none");
    g_autofree char *empty = in_dir("empty.img");
    assert_opens(base, NULL, 1, reads_11_at_0);
    assert_opens(base, "raw", 1, NULL);
    assert_opens(raw, "raw", 1, NULL);
    assert_opens(empty, "raw", 1, NULL);
    REFUSED(raw, NULL, "raw.img", "--format raw");
    REFUSED(empty, NULL, "empty.img", "--format raw");
    REFUSED(raw, "qcow2", "raw.img");
    REFUSED(none, NULL, "none", "No such file");
    REFUSED(base, "vmdk", "vmdk");
    REFUSED("/dev/null", NULL, "/dev/null");
    REFUSED(dir, NULL, dir);
}

// With a device of the machine, where it lets us have one.
static void a_devices_content_is_never_believed(void **state)
{
    make_base("base.qcow2");
    g_autofree char *base = in_dir("base.qcow2");
    g_autofree char *command = g_strdup_printf("losetup -f --show '%s' 2>/dev/null", base);
    char device[64] = "";
    FILE *f = popen(command, "r");
    if (!fgets(device, sizeof device, f))
        device[0] = '\0';
    if (pclose(f) != 0 || !device[0]) {
        print_message("# SKIP no loop device to be had here\n");
        skip();
    }
    g_strchomp(device);
    OpenTest guess = {.path = device, .options = {.read_only = true}};
    OpenTest told = {
        .path = device, .options = {.read_only = true, .format = "qcow2"}, .with = reads_11_at_0};
    on_loop(open_and_close, &guess);
    on_loop(open_and_close, &told);
    shell("qemu-img create -q -f qcow2 -b %s -F qcow2 over.qcow2", device);
    g_autofree char *over = in_dir("over.qcow2");
    OpenTest below = {.path = over, .options = {.read_only = true}, .with = reads_11_at_0};
    on_loop(open_and_close, &below);
    shell("losetup -d %s", device);
    assert_int_equal(guess.result, -EINVAL);
    assert_non_null(strstr(guess.message, "--format raw"));
    assert_int_equal(told.result, 0);
    assert_int_equal(below.result, 0);
    open_test_clear(&guess);
    open_test_clear(&told);
    open_test_clear(&below);
}

static void a_backing_image_needs_a_recorded_format(void **state)
{
    make_base("base.qcow2");
    shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    cut_out_recorded_format(over);
    REFUSED(over, NULL, "over.qcow2", "base.qcow2", "qemu-img rebase -u -F");
}

static void a_missing_backing_file_names_both_files(void **state)
{
    shell("qemu-img create -q -u -f qcow2 -b gone.qcow2 -F qcow2 over.qcow2 1M");
    g_autofree char *over = in_dir("over.qcow2");
    REFUSED(over, NULL, "over.qcow2", "gone.qcow2", "No such file");
}

static void loops_are_found_by_the_files_identity(void **state)
{
    shell("qemu-img create -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 1M && "
          "qemu-img create -q -u -f qcow2 -b alias.qcow2 -F qcow2 b.qcow2 1M && "
          "ln -s a.qcow2 alias.qcow2 && "
          "qemu-img create -q -f qcow2 self.qcow2 1M && "
          "qemu-img rebase -u -f qcow2 -b self.qcow2 -F qcow2 self.qcow2");
    g_autofree char *a = in_dir("a.qcow2"), *self = in_dir("self.qcow2");
    REFUSED(a, NULL, "b.qcow2", "loop", "alias.qcow2");
    REFUSED(self, NULL, "loop");
    OpenTest t = {.path = self}; // for writing: the locks do not speak first
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, -ELOOP);
    open_test_clear(&t);
}

static void a_refused_chain_is_not_written_to(void **state)
{
    shell("qemu-img create -q -u -f qcow2 -b gone.qcow2 -F qcow2 over.qcow2 1M && "
          "qemu-img bitmap --add over.qcow2 bits && cp over.qcow2 before.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    OpenTest t = {.path = over};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, -ENOENT);
    open_test_clear(&t);
    shell("cmp over.qcow2 before.qcow2");
}

static void data_files_are_in_the_folder_of_the_image(void **state)
{
    shell("qemu-img create -q -f qcow2 -o data_file=data.raw ext.qcow2 1M && "
          "qemu-io -c 'write -P 0x11 0 64k' ext.qcow2");
    g_autofree char *ext = in_dir("ext.qcow2");
    assert_opens(ext, NULL, 1, reads_11_at_0);
    shell("qemu-img create -q -f qcow2 -b ext.qcow2 -F qcow2 over.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    assert_opens(over, NULL, 2, reads_11_at_0);
    shell("qemu-img create -q -f qcow2 -o data_file=\"$PWD/abs.raw\" abs.qcow2 1M && "
          "qemu-io -c 'write -P 0x11 0 64k' abs.qcow2 && mkdir other && cp abs.qcow2 other/ && "
          "qemu-img create -q -f qcow2 -o data_file=\"$PWD/other/../up.raw\" up.qcow2 1M");
    g_autofree char *absolute = in_dir("abs.qcow2");
    assert_opens(absolute, NULL, 1, reads_11_at_0);
    g_autofree char *elsewhere = in_dir("other/abs.qcow2"), *up = in_dir("up.qcow2");
    REFUSED(elsewhere, NULL, "abs.qcow2", "abs.raw", "in the same folder");
    REFUSED(up, NULL, "up.qcow2", "other/../up.raw", "in the same folder");
}

static void unknown_snapshots_are_refused(void **state)
{
    make_base("base.qcow2");
    shell("qemu-img snapshot -c snap base.qcow2 && qemu-io -c 'write -P 0x22 0 64k' base.qcow2 && "
          "truncate -s 4096 raw.img");
    g_autofree char *base = in_dir("base.qcow2"), *raw = in_dir("raw.img");
    OpenTest t = {.path = base, .options = {.snapshot = "snap"}, .with = reads_11_at_0};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
    t = (OpenTest){.path = base, .options = {.snapshot = "nope"}};
    on_loop(open_and_close, &t);
    assert_true(t.result < 0 && strstr(t.message, "nope"));
    open_test_clear(&t);
    t = (OpenTest){.path = raw, .options = {.format = "raw", .snapshot = "snap"}};
    on_loop(open_and_close, &t);
    assert_true(t.result < 0 && strstr(t.message, "raw image has no"));
    open_test_clear(&t);
}

// -- locks
// ------------------------------------------------------------------------------------------

static void while_open_for_writing(Fiber *self, void *arg)
{
    shell("! qemu-io -f qcow2 -c 'write 0 64k' over.qcow2 2>why && grep -q lock why");
    shell("! qemu-io -f qcow2 -r -c 'read 0 64k' over.qcow2 2>why && grep -q lock why");
    shell("! qemu-io -f qcow2 -c 'write 0 64k' base.qcow2 2>why && grep -q lock why");
    shell("qemu-img info -U over.qcow2 && qemu-io -f qcow2 -r -c 'read 0 64k' base.qcow2");
    // As QEMU holds them: 100, 101, 103 and 201, 203 on the top, 100 and 201, 203 below.
    static const unsigned top[] = {100, 101, 103, 201, 203}, below[] = {100, 201, 203};
    for (int file = 0; file < 2; file++) {
        g_autofree char *path = in_dir(file ? "base.qcow2" : "over.qcow2");
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        g_autofree char *inode = g_strdup_printf(":%lu ", (unsigned long)st.st_ino);
        g_autofree char *locks = NULL;
        assert_true(g_file_get_contents("/proc/locks", &locks, NULL, NULL));
        g_auto(GStrv) lines = g_strsplit(locks, "\n", -1);
        uint8_t held[300] = {0};
        for (char **line = lines; *line; line++) {
            char *at = strstr(*line, inode);
            unsigned first, last;
            if (!at || sscanf(at + strlen(inode), "%u %u", &first, &last) != 2)
                continue;
            for (unsigned byte = first; byte <= last && byte < 300; byte++)
                held[byte] = 1;
        }
        unsigned n = 0;
        for (size_t i = 0; i < (file ? G_N_ELEMENTS(below) : G_N_ELEMENTS(top)); i++) {
            assert_true(held[(file ? below : top)[i]]);
            n++;
        }
        for (unsigned byte = 0; byte < 300; byte++)
            n -= held[byte];
        assert_int_equal(n, 0);
    }
}

static void locks_keep_qemu_and_us_apart(void **state)
{
    make_base("base.qcow2");
    shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    OpenTest t = {.path = over, .with = while_open_for_writing};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
    shell("qemu-io -c 'write 0 64k' over.qcow2"); // free again
}

static void while_open_twice(Fiber *self, void *arg)
{
    OpenTest *outer = arg;
    Node *node;
    GError *error = NULL;
    LayerOptions options = {.memory = outer->options.memory};
    assert_true(chain_open(self, outer->path, &options, &node, NULL, &error) < 0);
    assert_non_null(strstr(error->message, "base.qcow2"));
    g_clear_error(&error);
    options.force_share = true;
    assert_int_equal(chain_open(self, outer->path, &options, &node, NULL, &error), 0);
    assert_true(node->read_only);
    assert_reads(self, node, 0, 0x11);
    node_unref_close(self, node);
}

static void a_second_writer_is_refused_and_force_share_is_not(void **state)
{
    make_base("base.qcow2");
    g_autofree char *base = in_dir("base.qcow2");
    OpenTest t = {.path = base, .with = while_open_twice};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
}

static void while_open_read_only(Fiber *self, void *arg)
{
    shell("qemu-io -f qcow2 -r -c 'read 0 64k' base.qcow2");
    shell("! qemu-io -f qcow2 -c 'write 0 64k' base.qcow2 2>why && grep -q lock why");
}

static void readers_share_and_keep_writers_out(void **state)
{
    make_base("base.qcow2");
    g_autofree char *base = in_dir("base.qcow2");
    assert_opens(base, NULL, 1, while_open_read_only);
}

// -- content
// ----------------------------------------------------------------------------------------

static void compare_with_flat(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    g_autofree char *flat = in_dir("flat.raw");
    char *expected;
    gsize len;
    assert_true(g_file_get_contents(flat, &expected, &len, NULL));
    assert_int_equal(len, t->node->size_bytes);
    g_autofree char *buf = g_malloc(len);
    assert_int_equal(node_read(self, t->node, guest_off(0), buf, len), 0);
    for (gsize i = 0; i < len; i++) {
        if (buf[i] != expected[i])
            fail_msg("seed %" G_GUINT64_FORMAT ": byte at %zu differs", seed, (size_t)i);
    }
    // Pieces, in an order in which regions are half known.
    for (gsize off = 0; off + 70000 < len; off += 1234567)
        assert_int_equal(node_read(self, t->node, guest_off(off), buf, 70000), 0);
    g_free(expected);
}

// Each entry of `qemu-img map`: its depth, and whether it reads as zeros.
static void compare_with_map(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    g_autofree char *path = in_dir("map.json");
    json_t *map = json_load_file(path, 0, NULL);
    assert_non_null(map);
    size_t i;
    json_t *entry;
    json_array_foreach(map, i, entry)
    {
        uint64_t off = (uint64_t)json_integer_value(json_object_get(entry, "start"));
        uint64_t end = off + (uint64_t)json_integer_value(json_object_get(entry, "length"));
        bool zero = json_is_true(json_object_get(entry, "zero"));
        bool present = !json_is_false(json_object_get(entry, "present"));
        json_t *host = json_object_get(entry, "offset");
        uint64_t start = off;
        while (off < end) {
            NodeExtent extent;
            assert_int_equal(node_status(self, t->node, guest_off(off), end - off, &extent), 0);
            bool is_zero = extent.kind != NODE_EXTENT_DATA && extent.kind != NODE_EXTENT_OPAQUE;
            if (is_zero != zero || (present && extent.kind == NODE_EXTENT_BELOW))
                fail_msg("seed %" G_GUINT64_FORMAT ": status at %" G_GUINT64_FORMAT " is %d", seed,
                         off, extent.kind);
            if (present && extent.kind != NODE_EXTENT_BELOW)
                assert_int_equal(extent.depth, json_integer_value(json_object_get(entry, "depth")));
            if (extent.kind == NODE_EXTENT_DATA && host)
                assert_int_equal(extent.host.v, (uint64_t)json_integer_value(host) + off - start);
            off += extent.len;
        }
    }
    json_decref(map);
}

static void compare_all(Fiber *self, void *arg)
{
    compare_with_flat(self, arg);
    compare_with_map(self, arg);
}

static unsigned pick(GRand *rand, unsigned n)
{
    return (unsigned)g_rand_int_range(rand, 0, (gint32)n);
}

// A raw base of odd size, then overlays of all kinds, each with some writes, zeroes and discards.
static void make_random_chain(GRand *rand, unsigned n_layers)
{
    shell("head -c %u /dev/urandom >l0.img", 1000000 + pick(rand, 3000000));
    for (unsigned i = 1; i < n_layers; i++) {
        static const char *const kinds[] = {"cluster_size=64k",
                                            "cluster_size=512",
                                            "cluster_size=2M",
                                            "cluster_size=4k,compat=0.10",
                                            "cluster_size=64k,extended_l2=on",
                                            "cluster_size=16k,extended_l2=on"};
        const char *kind = kinds[pick(rand, G_N_ELEMENTS(kinds))];
        shell("qemu-img create -q -f qcow2 -o %s -b l%u.img -F %s l%u.img %uK", kind, i - 1,
              i == 1 ? "raw" : "qcow2", i, 1024 + pick(rand, 16 * 1024));
        g_autofree char *name = g_strdup_printf("l%u.img", i);
        g_autoptr(GString) command = g_string_new("qemu-io -f qcow2");
        for (unsigned w = 4 + pick(rand, 12); w > 0; w--) {
            static const char *const what[] = {"write -P %u %uK %uK", "write -P %u %uK %uK",
                                               "write -z %.0u %uK %uK", "discard %.0u %uK %uK",
                                               "write -z -u %.0u %uK %uK"};
            unsigned op = pick(rand, G_N_ELEMENTS(what));
            if (pick(rand, 8) == 0 && strstr(kind, "extended") == NULL)
                op = 100;
            unsigned off = pick(rand, 1000), len = 1 + pick(rand, 300);
            g_string_append(command, " -c '");
            if (op == 100)
                g_string_append_printf(command, "write -c -P %u %uK 64K", 1 + pick(rand, 254),
                                       off / 64 * 64);
            else
                g_string_append_printf(command, what[op], 1 + pick(rand, 254), off, len);
            g_string_append(command, "'");
        }
        // Some writes do not suit the layer (compressed with large clusters): they may fail.
        g_string_append_printf(command, " %s || true", name);
        shell("%s", command->str);
    }
    shell("ln -sf l%u.img top.img && qemu-img convert -U -O raw top.img flat.raw && "
          "qemu-img map -U --output=json top.img >map.json",
          n_layers - 1);
}

static void random_chains_show_what_qemu_shows(void **state)
{
    GRand *rand = g_rand_new_with_seed((guint32)seed);
    g_autofree char *top = in_dir("top.img");
    for (int round = 0; round < 6; round++) {
        unsigned n_layers = 2 + pick(rand, 6);
        make_random_chain(rand, n_layers);
        assert_opens(top, "qcow2", n_layers, compare_all);
        OpenTest direct = {
            .path = top, .options = {.read_only = true, .direct = true}, .with = compare_all};
        on_loop(open_and_close, &direct);
        assert_int_equal(direct.result, 0);
        open_test_clear(&direct);
    }
    g_rand_free(rand);
}

static void reads_zeros(Fiber *self, void *arg)
{
    Node *node = ((OpenTest *)arg)->node;
    NodeExtent extent;
    assert_reads(self, node, 0, 0);
    assert_reads(self, node, node->size_bytes - 512, 0);
    assert_int_equal(node_status(self, node, guest_off(0), node->size_bytes, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
    assert_int_equal(extent.depth, 1);
}

// Two overlays of one raw base share what is cached of it. What SEEK_DATA says of the base changes
// after the first was read, its content does not.
static void while_the_bases_holes_change(Fiber *self, void *arg)
{
    OpenTest *outer = arg;
    assert_reads(self, outer->node, 0, 0);
    assert_reads(self, outer->node, 1 << 20, 0);
    shell("%s", (const char *)outer->arg);
    g_autofree char *path = in_dir("second.qcow2");
    g_autoptr(GError) error = NULL;
    Node *second;
    assert_int_equal(chain_open(self, path, &outer->options, &second, NULL, &error), 0);
    NodeExtent extent;
    for (uint64_t off = 0; off < 2 << 20; off += 65536) {
        assert_reads(self, second, off, 0);
        assert_reads(self, outer->node, off, 0);
        assert_int_equal(node_status(self, second, guest_off(off), 65536, &extent), 0);
    }
    node_unref_close(self, second);
}

static void two_overlays_of_a_base(const char *make_base_command, const char *change)
{
    shell("%s", make_base_command);
    shell("qemu-img create -q -f qcow2 -b base.raw -F raw first.qcow2 && "
          "qemu-img create -q -f qcow2 -b base.raw -F raw second.qcow2");
    g_autofree char *first = in_dir("first.qcow2");
    OpenTest t = {.path = first,
                  .options = {.read_only = true},
                  .with = while_the_bases_holes_change,
                  .arg = (void *)change};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
}

static void a_base_whose_page_cache_is_dropped_is_read_without_eio(void **state)
{
    two_overlays_of_a_base("fallocate -l 2M base.raw && cat base.raw >/dev/null",
                           "dd if=base.raw iflag=nocache count=0 && "
                           "dd of=base.raw oflag=nocache conv=notrunc,fdatasync count=0");
}

static void a_base_that_is_dug_up_meanwhile_is_read_without_eio(void **state)
{
    two_overlays_of_a_base("dd if=/dev/zero of=base.raw bs=1M count=2 conv=fsync",
                           "fallocate -d base.raw");
}

static void while_the_base_is_written(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    assert_reads(self, t->node, 0, 0);
    shell("qemu-io -f raw -c 'write -P 0x11 0 64k' base.raw");
    assert_reads(self, t->node, 0, 0x11);
}

static void a_raw_base_that_another_program_writes_is_not_remembered_as_holes(void **state)
{
    shell("truncate -s 2M base.raw && "
          "qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    OpenTest t = {
        .path = over, .options = {.force_share = true}, .with = while_the_base_is_written};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
}

static void above_an_empty_base_there_are_zeros(void **state)
{
    shell(": >empty.img && qemu-img create -q -f qcow2 -b empty.img -F raw over.qcow2 64M");
    g_autofree char *over = in_dir("over.qcow2");
    assert_opens(over, NULL, 2, reads_zeros);
}

static void write_and_read(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    uint8_t buf[512];
    memset(buf, 0x33, sizeof buf);
    assert_int_equal(node_write(self, t->node, guest_off(1000), buf, sizeof buf, 0), 0);
    assert_int_equal(node_flush(self, t->node), 0);
    assert_reads(self, t->node, 1000, 0x33);
    assert_reads(self, t->node, 2000, 0x11);
}

static void copy_on_write_reads_through_the_map(void **state)
{
    make_base("base.qcow2");
    shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 && "
          "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 over.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    OpenTest t = {.path = over, .with = write_and_read};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
    shell("qemu-img check over.qcow2 && "
          "qemu-io -r -c 'read -P 0x11 0 1000' -c 'read -P 0x33 1000 512' -c 'read -P 0x11 1512 "
          "1000' "
          "over.qcow2 | tee x && ! grep -q failed x");
}

// -- depth
// Above the top, where requests enter, and between two backing layers, where a merged map ends.
static void filters_under_load(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    enum { TIMES = 1000 };
    Port port;
    port_init(&port, t->node, "test");
    Load load;
    load_start(self, &load, &port);
    load_insert_and_remove(self, &load, t->node, TIMES);
    load_insert_and_remove(self, &load, chain_backing(t->node), TIMES);
    load_insert_and_remove(self, &load, chain_backing(chain_backing(t->node)), TIMES);
    load_stop(self, &load);
    load_print_stall("qcow2 chain", NULL, &load, 3 * TIMES);
    port_done(self, &port);
    assert_int_equal(node_flush(self, t->node), 0);
}

static void filters_come_and_go_in_a_chain_under_load(void **state)
{
    shell("qemu-img create -q -f qcow2 a.qcow2 %u && "
          "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 && "
          "qemu-img create -q -f qcow2 -o cluster_size=4k -b b.qcow2 -F qcow2 c.qcow2",
          LOAD_SIZE);
    g_autofree char *top = in_dir("c.qcow2");
    OpenTest t = {.path = top, .with = filters_under_load};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
    shell("qemu-img check a.qcow2 && qemu-img check b.qcow2 && qemu-img check c.qcow2");
}

// --------------------------------------------------------------------------------------------

typedef struct MakeLayers {
    unsigned n;
} MakeLayers;

static void make_layers(Fiber *self, void *arg)
{
    const MakeLayers *make = arg;
    for (unsigned i = 1; i < make->n; i++) {
        g_autofree char *name = g_strdup_printf("%s/d%u", dir, i);
        g_autofree char *backing = i == 1 ? g_strdup("base.qcow2") : g_strdup_printf("d%u", i - 1);
        Qcow2CreateOptions options = {
            .size_bytes = 1 << 20, .backing_name = backing, .backing_format = "qcow2"};
        g_autoptr(GError) error = NULL;
        if (qcow2_create(self, name, &options, &error) < 0)
            fail_msg("%s", error->message);
    }
}

static void a_thousand_layers_open_and_one_more_does_not(void **state)
{
    make_base("base.qcow2");
    MakeLayers make = {CHAIN_MAX_LAYERS + 1};
    on_loop(make_layers, &make);
    g_autofree char *last = in_dir("d999"), *beyond = in_dir("d1000"), *some = in_dir("d199");
    gint64 start = g_get_monotonic_time();
    assert_opens(some, NULL, 200, reads_11_at_0);
    gint64 took = g_get_monotonic_time() - start;
    print_message("# opening, reading and closing 200 layers: %.1f ms\n", (double)took / 1e3);
    start = g_get_monotonic_time();
    assert_opens(last, NULL, 1000, reads_11_at_0);
    print_message("# the same with 1000: %.1f ms\n",
                  (double)(g_get_monotonic_time() - start) / 1e3);
    REFUSED(beyond, NULL, "1000 layers");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    if (getenv("CHAIND_TEST_SEED"))
        seed = strtoull(getenv("CHAIND_TEST_SEED"), NULL, 0);
    print_message("# seed %" G_GUINT64_FORMAT " (CHAIND_TEST_SEED)\n", seed);
    g_autofree char *qemu_io = g_find_program_in_path("qemu-io");
    if (!qemu_io) {
        print_message("1..0 # SKIP qemu-io is not installed\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        TEST(backing_names_are_found_as_qemu_finds_them),
        TEST(a_backing_name_may_have_1023_bytes),
        TEST(json_backing_names_are_understood),
        TEST(the_top_is_guessed_only_by_the_magic_of_qcow2),
        TEST(a_devices_content_is_never_believed),
        TEST(a_backing_image_needs_a_recorded_format),
        TEST(a_missing_backing_file_names_both_files),
        TEST(loops_are_found_by_the_files_identity),
        TEST(a_refused_chain_is_not_written_to),
        TEST(data_files_are_in_the_folder_of_the_image),
        TEST(unknown_snapshots_are_refused),
        TEST(locks_keep_qemu_and_us_apart),
        TEST(a_second_writer_is_refused_and_force_share_is_not),
        TEST(readers_share_and_keep_writers_out),
        TEST(random_chains_show_what_qemu_shows),
        TEST(a_base_whose_page_cache_is_dropped_is_read_without_eio),
        TEST(a_base_that_is_dug_up_meanwhile_is_read_without_eio),
        TEST(a_raw_base_that_another_program_writes_is_not_remembered_as_holes),
        TEST(above_an_empty_base_there_are_zeros),
        TEST(copy_on_write_reads_through_the_map),
        TEST(filters_come_and_go_in_a_chain_under_load),
        TEST(a_thousand_layers_open_and_one_more_does_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
