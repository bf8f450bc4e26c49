// SPDX-License-Identifier: LGPL-2.1-or-later
// What jobs hold of named nodes: of whole chains at once, who is in the way and in whose way they
// are, and layers that several loops have open. On images in a temporary folder.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/qcow2-create.h"
#include "chain-core/remote-call.h"
#include "log.h"
#include "named-hold.h"
#include "node-instances.h"

typedef struct World {
    char *dir;
    Loops *loops, *control;
    MapMemory *memory;
    Nodes *nodes;
} World;

void log_line(LogLevel level, const char *format, ...)
{
}

void log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
}

static void create_images(Fiber *self, void *arg)
{
    static const char *const names[] = {"base", "middle", "top", "branch"};
    const World *w = arg;
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(w->dir, names[i], NULL);
        Qcow2CreateOptions options = {.size_bytes = 1 << 20};
        g_assert_cmpint(qcow2_create(self, path, &options, NULL), ==, 0);
    }
}

static int make_world(void **state)
{
    World *w = g_new0(World, 1);
    w->dir = g_dir_make_tmp("chaind-test-hold-XXXXXX", NULL);
    w->loops = loops_start("loop", 2, NULL, NULL);
    w->control = loops_start("control", 1, NULL, NULL);
    w->memory = map_memory_new(1 << 20);
    w->nodes = nodes_new(w->loops, w->memory, NULL, NULL);
    *state = w;
    return remote_call_reserve(loops_get(w->loops, 0), create_images, w);
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

// An image of that name, over `backing` (JSON, with single quotes).
static NamedNode *add(Fiber *self, World *w, const char *name, const char *backing,
                      const char *options)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_autoptr(GError) error = NULL;
    g_string_printf(text,
                    "{'driver':'qcow2','node-name':'%s','backing':%s,'file':{'driver':'file',"
                    "'filename':'%s/%s'}%s}",
                    name, backing, w->dir, name, options);
    g_string_replace(text, "'", "\"", 0);
    json_t *object = json_loads(text->str, 0, NULL);
    NodeConfig *config = NULL;
    NamedNode *named = NULL;
    if (node_config_new(object, true, &config, &error) < 0 ||
        nodes_add(self, w->nodes, config, NULL, &named, &error) < 0)
        g_error("%s: %s", text->str, error->message);
    json_decref(object);
    return named;
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

// As a commit needs them; the table in node-hold.h.
enum {
    GRAPH = NODE_PERM_PLACE | NODE_PERM_BACKING,
    CHANGES = GRAPH | NODE_PERM_WRITE | NODE_PERM_RESIZE,
};
static const NodePerms of_top = {NODE_PERM_CONSISTENT_READ | NODE_PERM_PLACE,
                                 NODE_PERM_ALL & ~GRAPH & ~NODE_PERM_RESIZE};
static const NodePerms of_middle = {NODE_PERM_CONSISTENT_READ | GRAPH,
                                    NODE_PERM_ALL & ~CHANGES & ~NODE_PERM_CONSISTENT_READ};
static const NodePerms of_base = {NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE | NODE_PERM_RESIZE,
                                  NODE_PERM_ALL & ~CHANGES & ~NODE_PERM_CONSISTENT_READ};

typedef struct Chain {
    NamedNode *base, *middle, *top;
} Chain;

static Chain add_chain(Fiber *self, World *w)
{
    Chain c;
    c.base = add(self, w, "base", "null", ",'read-only':true");
    c.middle = add(self, w, "middle", "'base'", ",'read-only':true");
    c.top = add(self, w, "top", "'middle'", "");
    return c;
}

static void delete_chain(Fiber *self, World *w, Chain *c)
{
    deletes(self, w, c->top);
    deletes(self, w, c->middle);
    deletes(self, w, c->base);
}

static int hold(Fiber *self, World *w, const Chain *c, NamedHold **ret_hold, GError **error)
{
    NamedNeed needs[] = {{c->top, "top", of_top},
                         {c->middle, "intermediate node", of_middle},
                         {c->base, "base", of_base}};
    return named_hold_new(self, w->nodes, "block job 'j'", needs, 3, ret_hold, error);
}

static NamedHold *holds(Fiber *self, World *w, const Chain *c)
{
    g_autoptr(GError) error = NULL;
    NamedHold *held;
    if (hold(self, w, c, &held, &error) < 0)
        g_error("%s", error->message);
    return held;
}

static void refuses(Fiber *self, World *w, const Chain *c, const char *words)
{
    g_autoptr(GError) error = NULL;
    NamedHold *held;
    g_assert_cmpint(hold(self, w, c, &held, &error), <, 0);
    if (!strstr(error->message, words))
        g_error("'%s' does not say '%s'", error->message, words);
}

static void run(void **state, FiberFn *test)
{
    World *w = *state;
    assert_int_equal(remote_call_reserve(loops_get(w->control, 0), test, w), 0);
    assert_int_equal(nodes_all(w->nodes)->len, 0);
}

static void hold_chain(Fiber *self, void *arg)
{
    World *w = arg;
    Chain c = add_chain(self, w);
    NamedHold *held = holds(self, w, &c);
    g_autoptr(GError) error = NULL;
    stays(self, w, c.top, "block job 'j'");
    g_assert_cmpint(named_node_check_change(c.top, NODE_PERM_PLACE, "a snapshot", &error), <, 0);
    g_assert_nonnull(strstr(error->message, "block job 'j' is at work on it"));
    refuses(self, w, &c, "block job 'j'");
    NodeUse reader = {.role = "backing", .user = (char *)"node 'other'"};
    g_assert_cmpint(named_node_check_use(c.base, &reader, NULL), <, 0);
    g_assert_cmpint(named_node_check_use(c.top, &reader, NULL), ==, 0);
    g_assert_cmpint(named_hold_release(self, w->nodes, held), ==, 0);
    g_assert_cmpint(named_node_check_use(c.base, &reader, NULL), ==, 0);
    delete_chain(self, w, &c);
}

static void a_chain_is_held_and_others_are_told(void **state)
{
    run(state, hold_chain);
}

static void hold_beside_others(Fiber *self, void *arg)
{
    World *w = arg;
    Chain c = add_chain(self, w);
    NodeUse *use = nodes_use(c.middle, "block export 'e'", false);
    refuses(self, w, &c,
            "unshared by block job 'j' (uses node 'middle' as 'intermediate node' child)");
    g_assert_cmpint(nodes_end_use(self, w->nodes, use), ==, 0);
    use = nodes_use(c.top, "block export 'e'", true); // it sees the same before and after
    NamedHold *held = holds(self, w, &c);
    g_assert_cmpint(named_hold_release(self, w->nodes, held), ==, 0);
    g_assert_cmpint(nodes_end_use(self, w->nodes, use), ==, 0);
    delete_chain(self, w, &c); // nothing of what was refused is left
}

static void who_is_in_the_way_is_named(void **state)
{
    run(state, hold_beside_others);
}

static void hold_on_two_loops(Fiber *self, void *arg)
{
    World *w = arg;
    Chain c = add_chain(self, w);
    NamedNode *branch = add(self, w, "branch", "'middle'", "");
    while (named_node_loop(branch) == named_node_loop(c.top)) { // they come in turn
        deletes(self, w, branch);
        branch = add(self, w, "branch", "'middle'", "");
    }
    NamedNeed fill = {c.middle, "main node", {NODE_PERM_WRITE_UNCHANGED, NODE_PERM_ALL & ~GRAPH}};
    g_autoptr(GError) error = NULL;
    NamedHold *held;
    g_assert_cmpint(named_hold_new(self, w->nodes, "block job 'j'", &fill, 1, &held, &error), <, 0);
    g_assert_nonnull(strstr(error->message, "read by chains on 2 loops"));
    deletes(self, w, branch);

    // Where only one of the loops is left, the layers come to it.
    held = holds(self, w, &c);
    g_assert_true(named_node_loop(c.base) == named_node_loop(c.top));
    g_assert_true(named_node_loop(c.middle) == named_node_loop(c.top));
    g_assert_false(node_instances_exist(c.base) || node_instances_exist(c.middle));
    g_assert_cmpint(named_hold_release(self, w->nodes, held), ==, 0);
    delete_chain(self, w, &c);
}

static void what_several_loops_have_open_is_not_changed(void **state)
{
    run(state, hold_on_two_loops);
}

static void hold_to_the_end(Fiber *self, void *arg)
{
    World *w = arg;
    NamedNode *base = add(self, w, "base", "null", "");
    NamedNeed need = {base, "main node", of_base};
    NamedHold *held;
    g_assert_cmpint(named_hold_new(self, w->nodes, "block job 'j'", &need, 1, &held, NULL), ==, 0);
    g_assert_cmpint(nodes_close(self, w->nodes, base), ==, 0);
    g_assert_true(nodes_find(w->nodes, "base") == base);
    g_assert_cmpint(named_hold_release(self, w->nodes, held), ==, 0);
    g_assert_null(nodes_find(w->nodes, "base"));
}

static void what_is_held_is_closed_at_the_end_of_the_hold(void **state)
{
    run(state, hold_to_the_end);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, remove_world)
    const struct CMUnitTest tests[] = {
        TEST(a_chain_is_held_and_others_are_told),
        TEST(who_is_in_the_way_is_named),
        TEST(what_several_loops_have_open_is_not_changed),
        TEST(what_is_held_is_closed_at_the_end_of_the_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
