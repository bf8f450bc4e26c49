// SPDX-License-Identifier: LGPL-2.1-or-later
// Disks opened and closed together: one that hangs holds up no other, a full loop can be stopped,
// failures are told. Exports that are being added, and a server that stops. The chains are made up
// (chain_open_nodes() is replaced), and so is the log.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../node/memory-node.h"
#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/remote-call.h"
#include "disks.h"

enum { N_DISKS = 3 };
static const uint64_t TIMEOUT_NS = UINT64_C(2000000000);

// -- made up chains and log -----------------------------------------------------------------------

static atomic_uint n_flushed, n_closed;
static Loop *hung_loop; // on which a flush waits for ever
static FiberQueue hung;
static GString *logged;
static void (*on_late)(void); // called when the log says that a disk is late

static int made_up_flush(Fiber *self, Node *node)
{
    if (g_str_equal(node->name, "hung")) {
        hung_loop = fiber_loop(self);
        fiber_queue_wait(self, &hung, false, "a hung flush");
    }
    n_flushed++;
    return g_str_equal(node->name, "broken") ? -EIO : 0;
}

static void made_up_close(Fiber *self, Node *node)
{
    n_closed++;
    memory_close(self, node);
}

static const NodeOps made_up_ops = {
    .driver = "memory",
    .read_start = memory_read_start,
    .write = memory_write,
    .flush = made_up_flush,
    .close = made_up_close,
};

int __wrap_chain_open_nodes(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                            GArray **ret_nodes, GError **error);
int __wrap_chain_open_nodes(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                            GArray **ret_nodes, GError **error)
{
    const char *path = driver_value_str(node_config_file(config)->values, "filename", NULL);
    if (g_str_equal(path, "refused"))
        return -EACCES;
    MemoryNode *m = g_new0(MemoryNode, 1);
    node_init(&m->node, &made_up_ops, fiber_loop(self), path, 4096);
    m->data = g_malloc0(4096);
    ChainNode made = {.node = &m->node, .driver = driver_find("raw"), .config = config};
    *ret_nodes = g_array_new(FALSE, TRUE, sizeof(ChainNode));
    g_array_append_val(*ret_nodes, made);
    return 0;
}

static void note_line(const char *format, va_list args)
{
    g_autofree char *line = g_strdup_vprintf(format, args);
    g_string_append_printf(logged, "%s\n", line);
    if (strstr(line, "not closed yet") && on_late)
        on_late();
}

void log_line(LogLevel level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_line(format, args);
    va_end(args);
}

void log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_line(format, args);
    va_end(args);
}

// Another export is removed and freed on its loop, of which control has not heard yet.
static atomic_bool is_removal_watched, is_freed, may_go_on;

void __real_nbds_server_remove_export(Fiber *self, NbdsExport *export);
void __wrap_nbds_server_remove_export(Fiber *self, NbdsExport *export);
void __wrap_nbds_server_remove_export(Fiber *self, NbdsExport *export)
{
    __real_nbds_server_remove_export(self, export);
    if (!is_removal_watched)
        return;
    is_freed = true;
    while (!may_go_on)
        g_thread_yield();
}

// -- fixture --------------------------------------------------------------------------------------

typedef struct World {
    Options options;
    Loops *loops, *control;
    MapMemory *memory;
    Nodes *nodes;
    NbdServer *server;
    Exports *exports;
    int result;
    GError *error;
} World;

static void add_disk(World *w, const char *name)
{
    DiskOption *disk = g_new0(DiskOption, 1);
    disk->name = disk->file = (char *)name;
    g_ptr_array_add(w->options.disks, disk);
}

static void on_control(World *w, FiberFn *fn)
{
    assert_int_equal(remote_call_reserve(loops_get(w->control, 0), fn, w), 0);
}

static void start_server(Fiber *self, void *arg)
{
    nbd_server_start(((World *)arg)->server, NULL);
}

static void stop_server(Fiber *self, void *arg)
{
    World *w = arg;
    nbd_server_stop(self, w->server);
    nbd_server_end(w->server);
}

static int make_world(void **state)
{
    World *w = g_new0(World, 1);
    w->options.disks = g_ptr_array_new_with_free_func(g_free);
    w->loops = loops_start("loop", 1, NULL, NULL);
    w->control = loops_start("control", 1, NULL, NULL);
    w->memory = map_memory_new(1 << 20);
    w->nodes = nodes_new(w->loops, w->memory, NULL, NULL);
    w->server = nbd_server_new(&(NbdsServerConfig){.limits.max_connections = 1}, w->loops);
    w->exports = exports_new(w->nodes, w->server, NULL, NULL);
    n_flushed = n_closed = 0;
    on_late = NULL;
    logged = g_string_new("");
    on_control(w, start_server);
    *state = w;
    return 0;
}

static int remove_world(void **state)
{
    World *w = *state;
    on_control(w, stop_server);
    loops_stop(w->control);
    loops_stop(w->loops);
    loops_free(w->control);
    loops_free(w->loops);
    exports_free(w->exports);
    nbd_server_free(w->server);
    nodes_free(w->nodes);
    map_memory_free(w->memory);
    g_ptr_array_unref(w->options.disks);
    g_clear_error(&w->error);
    g_free(w);
    g_string_free(logged, true);
    return 0;
}

static void open_all(Fiber *self, void *arg)
{
    World *w = arg;
    w->result = disks_open(self, &w->options, w->nodes, w->exports, &w->error);
}

static void open_disks(World *w, const char *const names[N_DISKS])
{
    for (unsigned i = 0; i < N_DISKS; i++)
        add_disk(w, names[i]);
    on_control(w, open_all);
    assert_int_equal(w->result, 0);
}

static void close_all(Fiber *self, void *arg)
{
    World *w = arg;
    w->result = disks_close_all(self, w->nodes, w->exports, TIMEOUT_NS);
}

static int close_disks(World *w)
{
    on_control(w, close_all);
    return w->result;
}

// -- tests ----------------------------------------------------------------------------------------

static void release(Fiber *self, void *arg)
{
    fiber_queue_wake_all(&hung);
}

static void others_are_closed_by_now(void)
{
    assert_int_equal(n_flushed, N_DISKS - 1);
    assert_int_equal(n_closed, N_DISKS - 1);
    assert_int_equal(remote_call_reserve(hung_loop, release, NULL), 0);
}

static void a_disk_that_hangs_is_named_and_holds_up_no_other(void **state)
{
    World *w = *state;
    on_late = others_are_closed_by_now;
    open_disks(w, (const char *const[]){"hung", "b", "c"});
    assert_int_equal(close_disks(w), 0);
    assert_int_equal(n_closed, N_DISKS);
    assert_non_null(strstr(logged->str, "'hung' is not closed yet"));
    assert_null(strstr(logged->str, "'b'"));
}

static void a_flush_that_fails_is_told_and_is_the_result(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"broken", "b", "c"});
    assert_int_equal(close_disks(w), -EIO);
    assert_int_equal(n_closed, N_DISKS);
    assert_non_null(strstr(logged->str, "'broken' could not be flushed"));
}

static void a_failure_without_a_sentence_is_a_failure(void **state)
{
    World *w = *state;
    add_disk(w, "good");
    add_disk(w, "refused");
    on_control(w, open_all);
    assert_int_equal(w->result, -EACCES);
    assert_non_null(strstr(w->error->message, "'refused' cannot be opened: Permission denied"));
    assert_int_equal(n_closed, 1);
}

static void wait_for_release(Fiber *self, void *arg)
{
    fiber_queue_wait(self, &hung, false, "one of many");
}

static void fill_loop(Fiber *self, void *arg)
{
    while (fiber_spawn(fiber_loop(self), "one of many", wait_for_release, NULL, NULL) == 0)
        ;
}

static void a_loop_full_of_fibers_can_be_stopped(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"a", "b", "c"});
    assert_int_equal(remote_call_reserve(loops_get(w->loops, 0), fill_loop, NULL), 0);
    assert_int_equal(close_disks(w), 0);
    assert_int_equal(n_flushed, N_DISKS);
    assert_int_equal(remote_call_reserve(loops_get(w->loops, 0), release, NULL), 0);
}

typedef struct Second {
    World *w;
    FiberWaitGroup added;
    Export *export;
    int result;
} Second;

// Of the first disk's node.
static void add_second(Fiber *self, void *arg)
{
    Second *second = arg;
    World *w = second->w;
    const Export *first = exports_all(w->exports)->pdata[0];
    ExportSpec spec = {.id = "second", .name = "second"};
    second->result =
        exports_add(self, w->exports, export_node(first), &spec, &second->export, &w->error);
    fiber_wait_group_done(&second->added);
}

static void find_while_adding(Fiber *self, void *arg)
{
    World *w = arg;
    Second second = {.w = w};
    fiber_wait_group_add(&second.added, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "add", add_second, &second, NULL), 0);
    assert_int_equal(exports_all(w->exports)->len, N_DISKS + 1); // it waits for the node's loop
    assert_null(exports_find(w->exports, "second"));
    fiber_wait_group_wait(self, &second.added);
    assert_int_equal(second.result, 0);
    assert_ptr_equal(exports_find(w->exports, "second"), second.export);
}

static void an_export_is_not_found_before_it_is_made(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"a", "b", "c"});
    on_control(w, find_while_adding);
    assert_int_equal(close_disks(w), 0);
}

typedef struct RemoveOne {
    Exports *exports;
    Export *export;
    FiberWaitGroup removed;
} RemoveOne;

static void remove_one(Fiber *self, void *arg)
{
    RemoveOne *one = arg;
    exports_remove(self, one->exports, one->export);
    fiber_wait_group_done(&one->removed);
}

static void look_while_removing(Fiber *self, void *arg)
{
    World *w = arg;
    RemoveOne one = {.exports = w->exports, .export = exports_all(w->exports)->pdata[0]};
    NbdsExportStats stats;
    assert_true(exports_get_stats(one.export, &stats));
    is_removal_watched = true;
    fiber_wait_group_add(&one.removed, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "remove", remove_one, &one, NULL), 0);
    while (!is_freed)
        fiber_yield(self);
    assert_ptr_equal(exports_all(w->exports)->pdata[0], one.export);
    assert_false(exports_get_stats(one.export, &stats));
    may_go_on = true;
    fiber_wait_group_wait(self, &one.removed);
    is_removal_watched = false;
}

static void an_export_that_is_being_removed_has_no_statistics(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"a", "b", "c"});
    on_control(w, look_while_removing);
    assert_int_equal(close_disks(w), 0);
}

static void stop_while_adding(Fiber *self, void *arg)
{
    World *w = arg;
    Second second = {.w = w};
    fiber_wait_group_add(&second.added, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "add", add_second, &second, NULL), 0);
    assert_null(exports_find(w->exports, "second"));
    assert_true(nbd_server_begin_stop(w->server));
    exports_wait_added(self, w->exports);
    assert_non_null(exports_find(w->exports, "second"));
    fiber_wait_group_wait(self, &second.added);
}

static void an_export_under_way_is_there_when_the_server_stops(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"a", "b", "c"});
    on_control(w, stop_while_adding);
    assert_int_equal(close_disks(w), 0);
}

static void add_while_stopping(Fiber *self, void *arg)
{
    World *w = arg;
    assert_true(nbd_server_begin_stop(w->server));
    assert_false(nbd_server_begin_stop(w->server));
    Second second = {.w = w};
    fiber_wait_group_add(&second.added, 1);
    add_second(self, &second);
    w->result = second.result;
}

static void a_server_that_stops_takes_no_more_exports(void **state)
{
    World *w = *state;
    open_disks(w, (const char *const[]){"a", "b", "c"});
    on_control(w, add_while_stopping);
    assert_true(w->result < 0);
    assert_string_equal(w->error->message, "NBD server not running");
    assert_int_equal(close_disks(w), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, remove_world)
    const struct CMUnitTest tests[] = {
        TEST(a_disk_that_hangs_is_named_and_holds_up_no_other),
        TEST(a_flush_that_fails_is_told_and_is_the_result),
        TEST(a_failure_without_a_sentence_is_a_failure),
        TEST(a_loop_full_of_fibers_can_be_stopped),
        TEST(an_export_is_not_found_before_it_is_made),
        TEST(a_server_that_stops_takes_no_more_exports),
        TEST(an_export_under_way_is_there_when_the_server_stops),
        TEST(an_export_that_is_being_removed_has_no_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
