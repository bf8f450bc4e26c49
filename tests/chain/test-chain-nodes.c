// SPDX-License-Identifier: LGPL-2.1-or-later
// Nodes made from descriptions: which nodes come to be, how they are opened, and how nodes that
// there are already are used.
#include "chain-core/raw.h"
#include "chain-fixture.h"

#include <errno.h>

// What a test opens, and the nodes that it can name: "one" and "two".
typedef struct NodesTest {
    LayerOptions options;
    Node *one, *two;
    GArray *nodes;
    GError *error;
} NodesTest;

static Node *find_node(void *arg, const char *name)
{
    const NodesTest *t = arg;
    return g_str_equal(name, "one") ? t->one : g_str_equal(name, "two") ? t->two : NULL;
}

// `format` is JSON with single quotes, in which %s is the test's folder (at most three times).
static int open_nodes(Fiber *self, NodesTest *t, const char *format)
{
    g_autoptr(GString) text = g_string_new(format);
    g_string_replace(text, "'", "\"", 0);
    g_string_replace(text, "%s", dir, 0);
    json_t *object = json_loads(text->str, 0, NULL);
    assert_non_null(object);
    NodeConfig *config = NULL;
    int r = node_config_new(object, true, &config, &t->error);
    json_decref(object);
    if (r == 0)
        r = chain_open_nodes(self, config, &t->options, &t->nodes, &t->error);
    for (guint i = 0; r == 0 && i < t->nodes->len; i++)
        g_array_index(t->nodes, ChainNode, i).config = NULL; // which ends here
    node_config_free(config);
    return r;
}

static Node *opens(Fiber *self, NodesTest *t, const char *format)
{
    if (open_nodes(self, t, format) < 0)
        fail_msg("%s: %s", format, t->error->message);
    return g_array_index(t->nodes, ChainNode, 0).node;
}

static void refuses(Fiber *self, NodesTest *t, const char *format, const char *word)
{
    assert_true(open_nodes(self, t, format) < 0);
    if (!strstr(t->error->message, word))
        fail_msg("'%s' does not speak of '%s'", t->error->message, word);
    g_clear_error(&t->error);
}

static void assert_nodes(const NodesTest *t, const char *expected)
{
    g_autoptr(GString) got = g_string_new(NULL);
    for (guint i = 0; i < t->nodes->len; i++) {
        const ChainNode *each = &g_array_index(t->nodes, ChainNode, i);
        g_string_append_printf(got, "%s%s", i ? " " : "", each->driver->name);
        if (each->role)
            g_string_append_printf(got, "=%u.%s", each->parent, each->role);
    }
    assert_string_equal(got->str, expected);
}

static void test_init(NodesTest *t)
{
    *t = (NodesTest){.options = {.memory = map_memory_new(8 << 20), .find_node = find_node}};
    t->options.find_arg = t;
}

static void test_done(Fiber *self, NodesTest *t)
{
    if (t->nodes)
        chain_nodes_close(self, t->nodes);
    node_unref_close(self, t->one);
    node_unref_close(self, t->two);
    map_memory_free((MapMemory *)t->options.memory);
}

// Keeps the top of what was opened under a name.
static Node *keep(Fiber *self, NodesTest *t)
{
    Node *node = node_ref(g_array_index(t->nodes, ChainNode, 0).node);
    chain_nodes_close(self, g_steal_pointer(&t->nodes));
    return node;
}

static void open_chain(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *top =
        opens(self, &t, "{'driver':'qcow2','file':{'driver':'file','filename':'%s/over.qcow2'}}");
    assert_nodes(&t, "qcow2 file=0.file qcow2=0.backing file=2.file");
    assert_false(top->read_only);
    assert_true(g_array_index(t.nodes, ChainNode, 2).node->read_only);
    assert_non_null(g_array_index(t.nodes, ChainNode, 2).own_config);
    assert_ptr_equal(node_file(g_array_index(t.nodes, ChainNode, 1).node), node_file(top));
    assert_reads(self, top, 0, 0x11);
    test_done(self, &t);
}

static void make_chain(void)
{
    make_base("base.qcow2");
    shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
}

static void a_format_brings_all_that_lies_below_it(void **state)
{
    make_chain();
    on_loop(open_chain, NULL);
}

static void open_with_backing(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *top = opens(self, &t,
                      "{'driver':'qcow2','backing':null,'file':{'driver':'file','filename':"
                      "'%s/over.qcow2'}}");
    assert_nodes(&t, "qcow2 file=0.file");
    assert_reads(self, top, 0, 0);
    chain_nodes_close(self, g_steal_pointer(&t.nodes));

    opens(self, &t,
          "{'driver':'qcow2','read-only':true,'file':{'driver':'file','filename':"
          "'%s/base.qcow2'}}");
    t.one = keep(self, &t);
    top = opens(self, &t,
                "{'driver':'qcow2','backing':'one','file.driver':'file','file.filename':"
                "'%s/over.qcow2'}");
    assert_nodes(&t, "qcow2 file=0.file");
    assert_reads(self, top, 0, 0x11);
    assert_ptr_equal(chain_backing(top), t.one);
    test_done(self, &t);
}

static void backing_is_null_or_a_node_that_there_is(void **state)
{
    make_chain();
    on_loop(open_with_backing, NULL);
}

static void open_over_files(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *file = opens(self, &t, "{'driver':'file','filename':'%s/base.qcow2'}");
    assert_string_equal(file->ops->driver, "file");
    assert_false(file->read_only);
    t.one = keep(self, &t);
    Node *top = opens(self, &t, "{'driver':'qcow2','file':'one'}");
    assert_nodes(&t, "qcow2");
    assert_ptr_equal(node_file(top), node_file(t.one));
    assert_false(top->read_only);
    assert_reads(self, top, 0, 0x11);
    chain_nodes_close(self, g_steal_pointer(&t.nodes));
    node_unref_close(self, g_steal_pointer(&t.one));

    opens(self, &t, "{'driver':'file','read-only':true,'filename':'%s/base.qcow2'}");
    t.two = keep(self, &t);
    refuses(self, &t, "{'driver':'qcow2','file':'two'}", "read-only");
    top = opens(self, &t, "{'driver':'qcow2','auto-read-only':true,'file':'two'}");
    assert_true(top->read_only);
    test_done(self, &t);
}

static void a_format_lies_in_a_file_node_that_there_is(void **state)
{
    make_base("base.qcow2");
    on_loop(open_over_files, NULL);
}

static void open_wrongly(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    refuses(self, &t, "{'driver':'qcow2','file':'none'}", "node-name='none'");
    refuses(self, &t,
            "{'driver':'qcow2','backing':'none','file':{'driver':'file','filename':"
            "'%s/over.qcow2'}}",
            "node-name='none'");
    refuses(self, &t,
            "{'driver':'qcow2','data-file':{'driver':'file','filename':'%s/x'},'file':{'driver':"
            "'file','filename':'%s/over.qcow2'}}",
            "data-file");
    refuses(self, &t, "{'driver':'file','filename':'%s/missing'}", "missing");
    test_done(self, &t);
}

static void what_is_not_there_or_no_file_is_refused(void **state)
{
    make_chain();
    on_loop(open_wrongly, NULL);
}

// -- what is between an image and its file --------------------------------------------------------

#define IN_PART                                                                                    \
    "{'driver':'qcow2','file':{'driver':'raw','offset':4096,'file':{'driver':'blkdebug','image':"  \
    "{'driver':'file','filename':'%s/part'}}}}"

static void open_in_part(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *top = opens(self, &t, IN_PART);
    assert_nodes(&t, "qcow2 raw=0.file blkdebug=1.file file=2.image");
    assert_false(top->read_only);
    assert_reads(self, top, 0, 0x11);
    chain_nodes_close(self, g_steal_pointer(&t.nodes));

    opens(self, &t,
          "{'driver':'blkdebug','read-only':true,'image':{'driver':'raw','offset':4096,'file':"
          "{'driver':'blkdebug','image':{'driver':'file','filename':'%s/part'}}}}");
    assert_nodes(&t, "blkdebug raw=0.image blkdebug=1.file file=2.image");
    for (guint i = 0; i < t.nodes->len; i++)
        assert_true(g_array_index(t.nodes, ChainNode, i).node->read_only);
    t.one = keep(self, &t);
    top = opens(self, &t, "{'driver':'qcow2','read-only':true,'file':'one'}");
    assert_nodes(&t, "qcow2");
    assert_reads(self, top, 0, 0x11);
    chain_nodes_close(self, g_steal_pointer(&t.nodes));
    refuses(self, &t, "{'driver':'qcow2','file':'one'}", "Block node is read-only");
    // An image is one, too, to what has none of its own.
    node_unref_close(self, t.one);
    opens(self, &t, IN_PART);
    t.one = keep(self, &t);
    top =
        opens(self, &t, "{'driver':'raw','offset':512,'file':{'driver':'blkdebug','image':'one'}}");
    assert_nodes(&t, "raw blkdebug=0.file");
    assert_int_equal(top->size_bytes, t.one->size_bytes - 512);
    assert_reads(self, top, 0, 0x11);
    test_done(self, &t);
}

static void what_lies_between_an_image_and_its_file_are_nodes(void **state)
{
    make_base("base.qcow2");
    shell("head -c 4096 /dev/zero >part && cat base.qcow2 >>part");
    on_loop(open_in_part, NULL);
}

// Nobody can open it for writing, not even root.
#define UNWRITABLE "/sys/kernel/uevent_seqnum"

static void open_unwritable(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *top = opens(self, &t,
                      "{'driver':'raw','auto-read-only':true,'file':{'driver':'file','filename':"
                      "'" UNWRITABLE "'}}");
    assert_true(top->read_only);
    test_done(self, &t);
}

static void auto_read_only_opens_what_cannot_be_written(void **state)
{
    if (access(UNWRITABLE, R_OK) < 0)
        skip();
    on_loop(open_unwritable, NULL);
}

static void set_mode(Fiber *self, Node *node, bool is_writable)
{
    GError *error = NULL;
    if (node_set_writable(self, node, is_writable, &error) < 0)
        fail_msg("%s", error->message);
}

static void change_modes(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    opens(self, &t, "{'driver':'file','filename':'%s/base.qcow2'}");
    t.one = keep(self, &t);
    Node *top = opens(self, &t, "{'driver':'qcow2','read-only':true,'file':'one'}");
    for (int i = 0; i < 2; i++) {
        set_mode(self, top, true);
        set_mode(self, top, false);
        assert_false(t.one->read_only);
    }
    chain_nodes_close(self, g_steal_pointer(&t.nodes));
    assert_int_equal(node_write(self, t.one, guest_off(0), "QFI", 3, 0), 0);

    set_mode(self, t.one, false);
    assert_int_equal(node_write(self, t.one, guest_off(0), "QFI", 3, 0), -EROFS);
    top = opens(self, &t, "{'driver':'qcow2','read-only':true,'file':'one'}");
    assert_int_equal(node_set_writable(self, top, true, NULL), -EACCES);
    set_mode(self, t.one, true);
    set_mode(self, top, true);
    test_done(self, &t);
}

static void a_file_that_is_a_node_keeps_its_mode(void **state)
{
    make_base("base.qcow2");
    on_loop(change_modes, NULL);
}

static void change_modes_with_file(Fiber *self, void *arg)
{
    NodesTest t;
    test_init(&t);
    Node *top = opens(self, &t,
                      "{'driver':'qcow2','read-only':true,'file':{'driver':'blkdebug','image':"
                      "{'driver':'file','filename':'%s/base.qcow2'}}}");
    assert_nodes(&t, "qcow2 blkdebug=0.file file=1.image");
    for (int i = 0; i < 4; i++) {
        set_mode(self, top, i % 2 == 0);
        for (guint n = 0; n < t.nodes->len; n++)
            assert_int_equal(g_array_index(t.nodes, ChainNode, n).node->read_only, i % 2);
    }
    test_done(self, &t);
}

static void a_file_that_came_with_its_format_has_its_mode_through_filters(void **state)
{
    make_base("base.qcow2");
    on_loop(change_modes_with_file, NULL);
}

static void fill_behind_filter(Fiber *self, void *arg)
{
    static uint8_t data[1 << 20], back[1 << 20];
    NodesTest t;
    test_init(&t);
    Node *top = opens(self, &t,
                      "{'driver':'qcow2','file':{'driver':'copy-on-read','file':{'driver':'file',"
                      "'filename':'%s/base.qcow2'}}}");
    memset(data, 0x77, sizeof data);
    assert_int_equal(node_write(self, top, guest_off(0), data, sizeof data, 0), 0);
    assert_int_equal(node_discard(self, top, guest_off(0), sizeof data / 2, 0), 0);
    assert_int_equal(node_write(self, top, guest_off(0), data, sizeof data, 0), 0);
    assert_int_equal(node_flush(self, top), 0);
    assert_int_equal(node_read(self, top, guest_off(0), back, sizeof back), 0);
    assert_memory_equal(data, back, sizeof data);
    test_done(self, &t);
}

static void an_image_behind_a_filter_grows_its_file(void **state)
{
    shell("qemu-img create -q -f qcow2 base.qcow2 1M");
    on_loop(fill_behind_filter, NULL);
    shell("qemu-img check -q base.qcow2 && qemu-io -r -c 'read -P 0x77 0 1M' base.qcow2 >out");
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
        TEST(a_format_brings_all_that_lies_below_it),
        TEST(backing_is_null_or_a_node_that_there_is),
        TEST(a_format_lies_in_a_file_node_that_there_is),
        TEST(what_is_not_there_or_no_file_is_refused),
        TEST(what_lies_between_an_image_and_its_file_are_nodes),
        TEST(auto_read_only_opens_what_cannot_be_written),
        TEST(a_file_that_is_a_node_keeps_its_mode),
        TEST(a_file_that_came_with_its_format_has_its_mode_through_filters),
        TEST(an_image_behind_a_filter_grows_its_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
