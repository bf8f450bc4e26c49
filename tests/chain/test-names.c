// SPDX-License-Identifier: LGPL-2.1-or-later
// Names that say more than a path: file:, json: with a replaced backing file, and parts of raw
// files; with qemu-img and qemu-io as oracles.
#include <errno.h>

#include "chain-fixture.h"

static void reads_22_at_0(Fiber *self, void *arg)
{
    assert_reads(self, ((OpenTest *)arg)->node, 0, 0x22);
}

static void reads_zeros_at_0(Fiber *self, void *arg)
{
    assert_reads(self, ((OpenTest *)arg)->node, 0, 0);
}

static void names_with_file_in_front_are_paths_as_in_qemu(void **state)
{
    make_base("base.qcow2");
    const char *const slashes[] = {"", "/", "//", "///"};
    for (size_t i = 0; i < G_N_ELEMENTS(slashes); i++) {
        g_autofree char *name = g_strdup_printf("file:%s%s/base.qcow2", slashes[i], dir);
        assert_opens(name, NULL, 1, reads_11_at_0);
        shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 over.qcow2", name);
        g_autofree char *over = in_dir("over.qcow2");
        assert_opens(over, NULL, 2, reads_11_at_0);
    }
}

// -- replaced backing files -----------------------------------------------------------------------

static char *json_over(const char *backing)
{
    return g_strdup_printf("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":"
                           "\"%s/over.qcow2\"},\"backing\":%s}",
                           dir, backing);
}

// Bases with 0x11 and 0x22, and an overlay whose header names the first.
static void make_two_bases(void)
{
    make_base("base.qcow2");
    shell("qemu-img create -q -f qcow2 other.qcow2 1M && "
          "qemu-io -c 'write -P 0x22 0 64k' other.qcow2 && "
          "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
}

static void a_json_name_may_replace_the_backing_file(void **state)
{
    make_two_bases();
    g_autofree char *object = g_strdup_printf(
        "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"%s/other.qcow2\"}}",
        dir);
    g_autofree char *name = json_over(object);
    assert_opens(name, NULL, 2, reads_22_at_0);
    OpenTest writable = {.path = name, .with = reads_22_at_0};
    on_loop(open_and_close, &writable);
    assert_int_equal(writable.result, 0);
    assert_int_equal(writable.info.n_layers, 2);
    open_test_clear(&writable);

    // As QEMU records it in an image above.
    shell("qemu-img create -q -f qcow2 -b '%s' -F qcow2 top.qcow2 && "
          "qemu-io -r -c 'read -P 0x22 0 64k' top.qcow2 | tee x && ! grep -q failed x",
          name);
    g_autofree char *top = in_dir("top.qcow2");
    assert_opens(top, NULL, 3, reads_22_at_0);
}

static void a_json_name_may_say_that_nothing_lies_below(void **state)
{
    make_two_bases();
    g_autofree char *name = json_over("null");
    assert_opens(name, NULL, 1, reads_zeros_at_0);
}

static void a_replaced_backing_file_needs_a_format(void **state)
{
    make_two_bases();
    g_autofree char *object = g_strdup_printf("{\"file.filename\":\"%s/other.qcow2\"}", dir);
    g_autofree char *name = json_over(object);
    REFUSED(name, NULL, "over.qcow2", "other.qcow2", "\"driver\"");
}

static void a_json_name_that_says_a_format_needs_none_recorded(void **state)
{
    make_base("base.qcow2");
    g_autofree char *over = in_dir("over.qcow2");
    shell("qemu-img create -q -u -f qcow2 -F qcow2 -b "
          "'json:{\"driver\":\"file\",\"filename\":\"%s/base.qcow2\"}' over.qcow2 1M",
          dir);
    assert_opens(over, NULL, 2, reads_11_at_0);
    cut_out_recorded_format(over);
    REFUSED(over, NULL, "over.qcow2", "not recorded", "qemu-img rebase -u -F");
    shell("qemu-img create -q -u -f qcow2 -F qcow2 -b "
          "'json:{\"driver\":\"qcow2\",\"file.filename\":\"%s/base.qcow2\"}' over.qcow2 1M",
          dir);
    cut_out_recorded_format(over);
    assert_opens(over, NULL, 2, reads_11_at_0);
}

static void a_json_name_of_a_device_wants_one(void **state)
{
    make_base("base.qcow2");
    g_autofree char *name = g_strdup_printf("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":"
                                            "\"host_device\",\"filename\":\"%s/base.qcow2\"}}",
                                            dir);
    REFUSED(name, NULL, "base.qcow2", "to be either a character or block device");
}

static void a_name_and_a_format_that_disagree_are_refused(void **state)
{
    make_base("base.qcow2");
    g_autofree char *name =
        g_strdup_printf("json:{\"driver\":\"raw\",\"file.filename\":\"%s/base.qcow2\"}", dir);
    REFUSED(name, "qcow2", "raw", "qcow2");
    assert_opens(name, "raw", 1, NULL);
}

// -- parts of raw files ---------------------------------------------------------------------------

static char *json_part(const char *file, const char *options)
{
    return g_strdup_printf("json:{\"driver\":\"raw\",%s,\"file\":{\"driver\":\"file\","
                           "\"filename\":\"%s/%s\"}}",
                           options, dir, file);
}

// 4 MiB: 0x11 in the second MiB, a hole, 0x22 from 3 MiB on.
static void make_disk(void)
{
    shell("truncate -s 4M disk && "
          "qemu-io -f raw -c 'write -P 0x11 1M 1M' -c 'write -P 0x22 3M 1M' disk");
}

static void compare_with_copy(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    g_autofree char *copy = in_dir("copy"), *want = NULL;
    gsize len;
    assert_true(g_file_get_contents(copy, &want, &len, NULL));
    assert_int_equal(t->node->size_bytes, len);
    g_autofree char *got = g_malloc(len + 1);
    assert_int_equal(node_read(self, t->node, guest_off(0), got, len), 0);
    assert_memory_equal(got, want, len);
}

static void a_part_of_a_raw_file_shows_what_qemu_shows(void **state)
{
    static const char *const parts[] = {
        "\"offset\":1048576",
        "\"size\":1049088",
        "\"offset\":1048064,\"size\":2097664",
        "\"offset\":\"3M\",\"size\":\"1M\"",
        "\"offset\":4194304",
        "\"offset\":3000000,\"size\":0",
    };
    make_disk();
    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
        g_autofree char *name = json_part("disk", parts[i]);
        shell("qemu-img convert -O raw '%s' copy", name);
        assert_opens(name, NULL, 1, compare_with_copy);
        OpenTest direct = {.path = name, .options = {.direct = true}, .with = compare_with_copy};
        on_loop(open_and_close, &direct);
        assert_true(direct.result == 0 || direct.result == -EINVAL); // tmpfs has none
        open_test_clear(&direct);
        shell("qemu-img create -q -f qcow2 -b '%s' -F raw over.qcow2", name);
        g_autofree char *over = in_dir("over.qcow2");
        assert_opens(over, NULL, 2, compare_with_copy);
    }
}

// qemu-img convert rounds what is data to sectors of the part, so a part that begins within a
// sector of the file is compared with the bytes themselves.
static void a_part_may_begin_within_a_sector(void **state)
{
    make_disk();
    g_autofree char *name = json_part("disk", "\"offset\":1048001,\"size\":65536");
    shell("tail -c +1048002 disk | head -c 65536 >copy");
    assert_opens(name, NULL, 1, compare_with_copy);
}

static void a_part_that_is_not_within_the_file_is_refused(void **state)
{
    static const char *const parts[] = {
        "\"offset\":4194305",
        "\"offset\":4194304,\"size\":512",
        "\"size\":4194816",
        "\"offset\":9223372036854775807",
        "\"offset\":512,\"size\":9223372036854775296",
    };
    make_disk();
    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
        g_autofree char *name = json_part("disk", parts[i]);
        REFUSED(name, NULL, "disk", "4194304 bytes");
        shell("! qemu-img convert -O raw '%s' copy", name);
    }
}

static void parts_that_make_no_sense_are_refused(void **state)
{
    static const char *const parts[] = {
        "\"offset\":-1",
        "\"offset\":\"1Q\"",
        "\"size\":\"8388608T\"",
        "\"size\":1000",
    };
    make_disk();
    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
        g_autofree char *name = json_part("disk", parts[i]);
        REFUSED(name, NULL, "disk", i < 2 ? "\"offset\"" : "\"size\"");
    }
}

static void check_part_map(Fiber *self, void *arg)
{
    Node *node = ((OpenTest *)arg)->node;
    NodeExtent extent;
    assert_int_equal(node_map(self, node, guest_off(0), node->size_bytes, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_DATA);
    assert_int_equal(extent.host.v, (1 << 20) + 4096);
    assert_int_equal(extent.len, (1 << 20) - 4096);
    assert_int_equal(
        node_map(self, node, guest_off(1 << 20), node->size_bytes - (1 << 20), &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
    assert_int_equal(extent.len, 4096); // and not the rest of the hole, which is outside
}

static void the_map_of_a_part_names_places_in_the_file(void **state)
{
    make_disk();
    g_autofree char *name = json_part("disk", "\"offset\":1052672,\"size\":1052672");
    assert_opens(name, NULL, 1, check_part_map);
}

static void write_all(Fiber *self, void *arg)
{
    Node *node = ((OpenTest *)arg)->node;
    uint64_t last = node->size_bytes - 512;
    uint8_t buf[512];
    memset(buf, 0x33, sizeof buf);
    assert_int_equal(node_write(self, node, guest_off(0), buf, sizeof buf, 0), 0);
    assert_int_equal(node_write(self, node, guest_off(last), buf, sizeof buf, NODE_IO_FUA), 0);
    assert_int_equal(node_zero(self, node, guest_off(512), last - 512, 0), 0);
    assert_int_equal(node_discard(self, node, guest_off(4096), 8192, 0), 0);
    assert_int_equal(node_flush(self, node), 0);
}

static void writes_to_a_part_stay_within_it(void **state)
{
    make_disk();
    g_autofree char *name = json_part("disk", "\"offset\":1049088,\"size\":65536");
    OpenTest t = {.path = name, .with = write_all};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
    shell("qemu-io -f raw -c 'read -P 0x11 1048576 512' -c 'read -P 0x33 1049088 512' "
          "-c 'read -P 0 1049600 64512' -c 'read -P 0x33 1114112 512' "
          "-c 'read -P 0x11 1114624 65536' disk | tee x && ! grep -q failed x && "
          "test $(stat -c %%s disk) = 4194304");
}

// Two overlays over two parts of one file, open at the same time with one memory for maps.
static void open_both(Fiber *self, void *arg)
{
    MapMemory *memory = map_memory_new(8 << 20);
    LayerOptions options = {.read_only = true, .memory = memory};
    char *paths[] = {in_dir("a.qcow2"), in_dir("b.qcow2")};
    Node *nodes[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(chain_open(self, paths[i], &options, &nodes[i], NULL, NULL), 0);
    for (int round = 0; round < 2; round++) {
        assert_reads(self, nodes[0], 0, 0x11);
        assert_reads(self, nodes[1], 0, 0x22);
    }
    for (size_t i = 0; i < 2; i++)
        node_unref_close(self, nodes[i]);
    map_memory_free(memory);
    g_free(paths[0]);
    g_free(paths[1]);
}

static void two_parts_of_a_file_share_no_map(void **state)
{
    make_disk();
    g_autofree char *a = json_part("disk", "\"offset\":1048576,\"size\":1048576");
    g_autofree char *b = json_part("disk", "\"offset\":3145728,\"size\":1048576");
    shell("qemu-img create -q -f qcow2 -b '%s' -F raw a.qcow2 && "
          "qemu-img create -q -f qcow2 -b '%s' -F raw b.qcow2",
          a, b);
    on_loop(open_both, NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    g_autofree char *qemu_io = g_find_program_in_path("qemu-io");
    if (!qemu_io) {
        print_message("1..0 # SKIP qemu-io is not installed\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        TEST(names_with_file_in_front_are_paths_as_in_qemu),
        TEST(a_json_name_may_replace_the_backing_file),
        TEST(a_json_name_may_say_that_nothing_lies_below),
        TEST(a_replaced_backing_file_needs_a_format),
        TEST(a_json_name_that_says_a_format_needs_none_recorded),
        TEST(a_json_name_of_a_device_wants_one),
        TEST(a_name_and_a_format_that_disagree_are_refused),
        TEST(a_part_of_a_raw_file_shows_what_qemu_shows),
        TEST(a_part_may_begin_within_a_sector),
        TEST(a_part_that_is_not_within_the_file_is_refused),
        TEST(parts_that_make_no_sense_are_refused),
        TEST(the_map_of_a_part_names_places_in_the_file),
        TEST(writes_to_a_part_stay_within_it),
        TEST(two_parts_of_a_file_share_no_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
