// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of nodes: which names there are, who uses whom, what goes with whom, and what is
// refused with which words. On raw files of a temporary folder.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/remote-call.h"
#include "log.h"
#include "nodes.h"

typedef struct World {
    char *dir;
    Loops *loops, *control;
    MapMemory *memory;
    Nodes *nodes;
    FiberFn *test; // what runs on the control loop
} World;

void log_line(LogLevel level, const char *format, ...)
{
}

void log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
}

static int make_world(void **state)
{
    World *w = g_new0(World, 1);
    w->dir = g_dir_make_tmp("chaind-test-nodes-XXXXXX", NULL);
    w->loops = loops_start("loop", 2, NULL, NULL);
    w->control = loops_start("control", 1, NULL, NULL);
    w->memory = map_memory_new(1 << 20);
    w->nodes = nodes_new(w->loops, w->memory, NULL, NULL);
    for (char name = 'a'; name <= 'c'; name++) {
        g_autofree char *path = g_strdup_printf("%s/%c", w->dir, name);
        g_autofree char *data = g_malloc0(8192);
        g_assert_true(g_file_set_contents(path, data, 8192, NULL));
    }
    *state = w;
    return 0;
}

static int remove_world(void **state)
{
    World *w = *state;
    loops_stop(w->control);
    loops_stop(w->loops);
    loops_free(w->control);
    loops_free(w->loops);
    nodes_free(w->nodes);
    map_memory_free(w->memory);
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", w->dir);
    int r = system(command);
    g_free(w->dir);
    g_free(w);
    return r;
}

// `format` is JSON with single quotes, in which % is the folder.
static int add(Fiber *self, World *w, const char *format, NamedNode **ret_named, GError **error)
{
    g_autoptr(GString) text = g_string_new(format);
    g_string_replace(text, "'", "\"", 0);
    g_string_replace(text, "%", w->dir, 0);
    json_t *object = json_loads(text->str, 0, NULL);
    g_assert_nonnull(object);
    NodeConfig *config = NULL;
    int r = node_config_new(object, true, &config, error);
    json_decref(object);
    return r < 0 ? r : nodes_add(self, w->nodes, config, NULL, ret_named, error);
}

static NamedNode *adds(Fiber *self, World *w, const char *format)
{
    g_autoptr(GError) error = NULL;
    NamedNode *named = NULL;
    if (add(self, w, format, &named, &error) < 0)
        g_error("%s: %s", format, error->message);
    return named;
}

static void refuses(Fiber *self, World *w, const char *format, const char *words)
{
    g_autoptr(GError) error = NULL;
    NamedNode *named = NULL;
    g_assert_cmpint(add(self, w, format, &named, &error), <, 0);
    if (!strstr(error->message, words))
        g_error("'%s' does not say '%s'", error->message, words);
}

static void deletes(Fiber *self, World *w, NamedNode *named)
{
    int flushed = -1;
    g_assert_cmpint(nodes_delete(self, w->nodes, named, &flushed, NULL), ==, 0);
    g_assert_cmpint(flushed, ==, 0);
}

static void stays(Fiber *self, World *w, NamedNode *named, const char *words)
{
    g_autoptr(GError) error = NULL;
    int flushed;
    g_assert_cmpint(nodes_delete(self, w->nodes, named, &flushed, &error), <, 0);
    if (!strstr(error->message, words))
        g_error("'%s' does not say '%s'", error->message, words);
}

static void run(void **state, FiberFn *test)
{
    World *w = *state;
    assert_int_equal(remote_call_reserve(loops_get(w->control, 0), test, w), 0);
    assert_int_equal(nodes_all(w->nodes)->len, 0);
}

#define RAW(name, file) "{'driver':'raw','node-name':'" name "','file':" file "}"
#define FILE_AT(path) "{'driver':'file','filename':'%/" path "'}"

static void name_nodes(Fiber *self, void *arg)
{
    World *w = arg;
    NamedNode *a = adds(self, w, RAW("a", FILE_AT("a")));
    g_assert_cmpuint(nodes_all(w->nodes)->len, ==, 2);
    NamedNode *file = named_node_child(a, "file");
    g_assert_true(file->name[0] == '#' && file->is_made_up && !file->is_added);
    g_assert_true(nodes_all(w->nodes)->pdata[0] == file); // as QEMU tells of them
    g_assert_true(g_str_has_suffix(named_node_file_name(a), "/a"));
    refuses(self, w, RAW("a", FILE_AT("b")), "Duplicate nodes with node-name='a'");
    refuses(self, w, RAW("9", FILE_AT("b")), "Invalid node-name: '9'");
    refuses(self, w, RAW("a b", FILE_AT("b")), "Invalid node-name: 'a b'");
    refuses(self, w, RAW("a2345678901234567890123456789012", FILE_AT("b")), "Node name too long");
    refuses(self, w, RAW("b", "{'driver':'file','node-name':'b','filename':'%/b'}"),
            "Duplicate nodes with node-name='b'");
    refuses(self, w, RAW("b", "'none'"), "Cannot find device='none' nor node-name='none'");
    refuses(self, w, RAW("b", FILE_AT("missing")), "missing");
    g_assert_null(nodes_find(w->nodes, "b"));
    deletes(self, w, a);
}

static void names_are_checked_before_anything_is_opened(void **state)
{
    run(state, name_nodes);
}

static void use_nodes(Fiber *self, void *arg)
{
    World *w = arg;
    NamedNode *file = adds(self, w, "{'driver':'file','node-name':'file','filename':'%/a'}");
    NamedNode *raw = adds(self, w, RAW("raw", "'file'"));
    g_assert_true(named_node_loop(raw) == named_node_loop(file));
    stays(self, w, file, "Block device file is in use by node 'raw' (as 'file')");
    // What raw does with it its users say.
    NamedNode *two = adds(self, w, RAW("two", "'file'"));
    deletes(self, w, two);
    refuses(self, w, "{'driver':'qcow2','node-name':'q','file':'file','backing':'file'}",
            "Permission conflict on node 'file'");
    NodeUse *use = nodes_use(raw, "a test", true);
    stays(self, w, raw, "Node raw is in use by a test");
    g_assert_cmpint(nodes_end_use(self, w->nodes, use), ==, 0);
    g_assert_nonnull(nodes_find(w->nodes, "raw"));
    deletes(self, w, raw);
    // It keeps nobody out any more.
    NamedNode *other = adds(self, w, RAW("other", FILE_AT("a")));
    deletes(self, w, other);
    deletes(self, w, file);
}

static void a_node_in_use_stays_and_says_who_uses_it(void **state)
{
    run(state, use_nodes);
}

static void keep_by_use(Fiber *self, void *arg)
{
    World *w = arg;
    NamedNode *a = adds(self, w, RAW("a", "{'driver':'file','node-name':'f','filename':'%/a'}"));
    NodeUse *use = nodes_use(a, "a test", false);
    g_assert_cmpint(nodes_close(self, w->nodes, a), ==, 0);
    g_assert_true(nodes_find(w->nodes, "a") == a);
    stays(self, w, nodes_find(w->nodes, "f"), "not owned by the monitor");
    g_assert_cmpint(nodes_end_use(self, w->nodes, use), ==, 0);
    g_assert_null(nodes_find(w->nodes, "a"));
    g_assert_null(nodes_find(w->nodes, "f"));
}

static void what_nobody_added_goes_with_its_last_user(void **state)
{
    run(state, keep_by_use);
}

static void write_facts(Fiber *self, void *arg)
{
    World *w = arg;
    NamedNode *a = adds(self, w, RAW("a", FILE_AT("a"))),
              *b = adds(self, w,
                        "{'driver':'raw','node-name':'b','read-only':true,'offset':4096,'file':"
                        "{'driver':'file','filename':'%/b'}}");
    g_autofree char *of_a = named_node_summary(a), *of_b = named_node_summary(b);
    g_assert_cmpstr(of_a, ==, "8 KiB raw, 1 layer");
    g_assert_cmpstr(of_b, ==, "4 KiB raw, 1 layer, read-only");
    g_assert_false(named_node_loop(a) == named_node_loop(b)); // in turn
    deletes(self, w, a);
    deletes(self, w, b);
}

static void what_is_told_of_a_node_needs_no_loop(void **state)
{
    run(state, write_facts);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, remove_world)
    const struct CMUnitTest tests[] = {
        TEST(names_are_checked_before_anything_is_opened),
        TEST(a_node_in_use_stays_and_says_who_uses_it),
        TEST(what_nobody_added_goes_with_its_last_user),
        TEST(what_is_told_of_a_node_needs_no_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
