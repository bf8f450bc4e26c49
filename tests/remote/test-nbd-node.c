// SPDX-License-Identifier: LGPL-2.1-or-later
// The nbd driver beside nbdkit: every command, servers that lack some of them or want whole blocks,
// what block status says, and connections that are lost and come again.
#include "node/driver-node.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "qcow2/host.h"

enum { SIZE = 4 << 20 };

typedef struct Scene {
    char *dir;
    FiberFn *fn;
    const char *options; // more of the node's
    Node *node;
} Scene;

static void start_server(const Scene *s, const char *arguments)
{
    host_shell(s->dir, "rm -f s pid; nbdkit -U s -P pid %s", arguments);
}

static void kill_server(const Scene *s)
{
    host_shell(s->dir, "kill -9 $(cat pid); while kill -0 $(cat pid) 2>/dev/null; do :; done");
}

static int try_make(Fiber *self, Scene *s, bool is_writable, GError **error)
{
    g_autofree char *text =
        g_strdup_printf("{'driver': 'nbd', 'server': {'type': 'unix', 'path': '%s/s'}%s}", s->dir,
                        s->options ?: "");
    DriverOptions options = {.name = "test", .is_writable = is_writable};
    return driver_node_try(self, text, &options, NULL, &s->node, error);
}

static void run_fiber(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autoptr(GError) error = NULL;
    if (try_make(self, s, true, &error) < 0)
        fail_msg("%s", error->message);
    s->fn(self, s);
    node_unref_close(self, s->node);
}

static void run_with(const char *arguments, const char *options, FiberFn *fn)
{
    Scene s = {.dir = host_make_dir(), .fn = fn, .options = options};
    start_server(&s, arguments);
    host_run(run_fiber, &s);
    host_shell(s.dir, "kill $(cat pid) 2>/dev/null; :");
    host_remove_dir(s.dir);
}

// --- commands ------------------------------------------------------------------------------------

typedef struct Guest {
    Node *node;
    uint8_t *shadow;
    HostRandom random;
    uint64_t start, end; // its own part of the disk
    FiberWaitGroup *group;
} Guest;

static void guest_step(Fiber *self, Guest *g, uint64_t off, uint64_t len, uint8_t *buf)
{
    NodeIoFlags fua = host_random(&g->random, 4) ? 0 : NODE_IO_FUA;
    int r = 0;
    switch (host_random(&g->random, 5)) {
    case 0:
        r = node_zero(self, g->node, guest_off(off), len, fua);
        memset(g->shadow + off, 0, len);
        break;
    case 1:
        r = node_discard(self, g->node, guest_off(off), len, fua);
        assert_int_equal(r, 0);
        // A hint: zeros, or as before.
        r = node_read(self, g->node, guest_off(off), g->shadow + off, len);
        break;
    case 2:
        r = node_read(self, g->node, guest_off(off), buf, len);
        assert_memory_equal(buf, g->shadow + off, len);
        break;
    default:
        for (uint64_t i = 0; i < len; i++)
            g->shadow[off + i] = (uint8_t)host_random(&g->random, 256);
        r = node_write(self, g->node, guest_off(off), g->shadow + off, len, fua);
    }
    assert_int_equal(r, 0);
}

static void guest_fiber(Fiber *self, void *arg)
{
    Guest *g = arg;
    g_autofree uint8_t *buf = g_malloc(SIZE);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t off = g->start + host_random(&g->random, g->end - g->start);
        uint64_t len = 1 + host_random(&g->random, MIN(g->end - off, 100000));
        guest_step(self, g, off, len, buf);
    }
    fiber_wait_group_done(g->group);
}

// Several at once, whose parts meet inside a block.
static void use_every_command(Fiber *self, void *arg)
{
    enum { N = 6 };
    Node *node = ((Scene *)arg)->node;
    g_autofree uint8_t *shadow = g_malloc0(SIZE), *got = g_malloc(SIZE);
    Guest guests[N];
    FiberWaitGroup group = {0};
    assert_int_equal(node->size_bytes, SIZE);
    fiber_wait_group_add(&group, N);
    for (unsigned i = 0; i < N; i++) {
        guests[i] = (Guest){node, shadow, {i}, SIZE / N * i, SIZE / N * (i + 1), &group};
        assert_int_equal(fiber_spawn(fiber_loop(self), "guest", guest_fiber, &guests[i], NULL), 0);
    }
    fiber_wait_group_wait(self, &group);
    assert_int_equal(node_flush(self, node), 0);
    assert_int_equal(node_read(self, node, guest_off(0), got, SIZE), 0);
    assert_memory_equal(got, shadow, SIZE);
}

static void commands_do_what_they_say(void **state)
{
    run_with("memory 4M", NULL, use_every_command);
}

static void servers_that_want_whole_blocks_get_them(void **state)
{
    run_with("--filter=blocksize-policy memory 4M blocksize-minimum=4096 blocksize-preferred=64K "
             "blocksize-maximum=128K blocksize-error-policy=error",
             NULL, use_every_command);
}

static void servers_that_lack_commands_get_others(void **state)
{
    run_with("--filter=nozero --filter=fua memory 4M zeromode=none", NULL, use_every_command);
    run_with("--filter=nozero memory 4M zeromode=notrim", NULL, use_every_command);
    run_with("--no-sr memory 4M", NULL, use_every_command);
}

static void transfer_much(Fiber *self, void *arg)
{
    enum { LEN = 80 << 20 }; // more than one request may have
    Node *node = ((Scene *)arg)->node;
    g_autofree uint8_t *data = g_malloc(LEN), *got = g_malloc0(LEN);
    for (size_t i = 0; i < LEN; i++)
        data[i] = (uint8_t)(i >> 12);
    assert_int_equal(node_write(self, node, guest_off(1 << 20), data, LEN, 0), 0);
    assert_int_equal(node_read(self, node, guest_off(1 << 20), got, LEN), 0);
    assert_memory_equal(data, got, LEN);
    assert_int_equal(node_zero(self, node, guest_off(0), node->size_bytes, 0), 0);
    assert_int_equal(node_read(self, node, guest_off(1 << 20), got, LEN), 0);
    assert_true(!got[0] && memcmp(got, got + 1, LEN - 1) == 0);
}

static void transfers_may_be_larger_than_a_request(void **state)
{
    run_with("memory 6G", NULL, transfer_much);
}

static void look_at_the_map(Fiber *self, void *arg)
{
    Node *node = ((Scene *)arg)->node;
    NodeExtent extent;
    uint8_t byte = 1;
    assert_int_equal(node_write(self, node, guest_off(1 << 20), &byte, 1, 0), 0);
    assert_int_equal(node_status(self, node, guest_off(5), SIZE - 5, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
    assert_int_equal(extent.len, (1 << 20) - 5);
    assert_int_equal(node_status(self, node, guest_off(1 << 20), 65536, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
    assert_ptr_equal(extent.node, node);
}

static void see_only_data(Fiber *self, void *arg)
{
    NodeExtent extent;
    assert_int_equal(node_status(self, ((Scene *)arg)->node, guest_off(0), SIZE, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
    assert_int_equal(extent.len, SIZE);
}

static void block_status_becomes_the_map(void **state)
{
    run_with("memory 4M", NULL, look_at_the_map);
    run_with("--filter=noextents memory 4M", NULL, see_only_data);
    run_with("--no-sr memory 4M", NULL, see_only_data);
}

static void meet_errors(Fiber *self, void *arg)
{
    Node *node = ((Scene *)arg)->node;
    uint8_t buf[512] = {0};
    assert_int_equal(node_write(self, node, guest_off(0), buf, 512, 0), -ENOSPC);
    assert_int_equal(node_read(self, node, guest_off(0), buf, 512), -EIO);
    assert_int_equal(node_zero(self, node, guest_off(0), 512, 0), 0);
}

static void errors_of_the_server_are_passed_on(void **state)
{
    run_with("--filter=error memory 4M error-pwrite=ENOSPC error-pread=EPERM "
             "error-pwrite-rate=100% error-pread-rate=100%",
             NULL, meet_errors);
}

// --- making one ----------------------------------------------------------------------------------

static void be_refused(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autoptr(GError) error = NULL;
    assert_int_equal(try_make(self, s, true, &error), -EACCES);
    assert_non_null(strstr(error->message, "read-only export"));
    g_clear_error(&error);
    assert_int_equal(try_make(self, s, false, &error), 0);
    assert_true(s->node->read_only);
    node_unref_close(self, s->node);
    s->options = ", 'tls-creds': 'tls0'";
    assert_int_equal(try_make(self, s, false, &error), -ENOENT);
    assert_non_null(strstr(error->message, "No TLS credentials with id 'tls0'"));
    g_clear_error(&error);
    s->options = "";
    kill_server(s);
    assert_int_equal(try_make(self, s, false, &error), -ECONNREFUSED);
    assert_non_null(strstr(error->message, "Failed to connect to"));
    g_clear_error(&error);
    host_shell(s->dir, "rm s");
    assert_int_equal(try_make(self, s, false, &error), -ENOENT);
    // Another try finds it.
    s->options = ", 'open-timeout': 60";
    host_shell(s->dir, "(sleep 1; nbdkit -U s -P pid memory 1M) >/dev/null 2>&1 &");
    assert_int_equal(try_make(self, s, true, NULL), 0);
    node_unref_close(self, s->node);
}

static void what_cannot_be_is_refused_and_what_comes_late_is_waited_for(void **state)
{
    Scene s = {.dir = host_make_dir()};
    start_server(&s, "-r memory 1M");
    host_run(be_refused, &s);
    host_shell(s.dir, "kill $(cat pid)");
    host_remove_dir(s.dir);
}

// --- lost connections ----------------------------------------------------------------------------

static int read_one(Fiber *self, Scene *s)
{
    uint8_t buf[512];
    return node_read(self, s->node, guest_off(0), buf, sizeof buf);
}

static void lose_the_server(Fiber *self, void *arg)
{
    Scene *s = arg;
    assert_int_equal(read_one(self, s), 0);
    kill_server(s);
    assert_int_equal(read_one(self, s), -EIO);
    start_server(s, "memory 4M");
    while (read_one(self, s) < 0)
        fiber_sleep(self, 10000000);
    kill_server(s);
    start_server(s, "memory 5M"); // another size: never used
    while (read_one(self, s) == 0)
        fiber_yield(self);
    fiber_sleep(self, 100000000);
    assert_int_equal(read_one(self, s), -EIO);
}

static void requests_fail_until_there_is_another_connection(void **state)
{
    run_with("memory 4M", NULL, lose_the_server);
}

static void survive(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t buf[512];
    memset(buf, 9, sizeof buf);
    for (unsigned i = 0; i < 3; i++) {
        kill_server(s);
        start_server(s, "file file=disk");
        assert_int_equal(node_write(self, s->node, guest_off(512), buf, sizeof buf, NODE_IO_FUA),
                         0);
        assert_int_equal(node_read(self, s->node, guest_off(512), buf, sizeof buf), 0);
        assert_int_equal(buf[0], 9);
    }
    assert_int_equal(node_flush(self, s->node), 0);
}

static void within_the_delay_requests_wait(void **state)
{
    Scene s = {.dir = host_make_dir(), .fn = survive, .options = ", 'reconnect-delay': 3600"};
    host_shell(s.dir, "truncate -s 4M disk");
    start_server(&s, "file file=disk");
    host_run(run_fiber, &s);
    host_shell(s.dir, "kill $(cat pid)");
    host_remove_dir(s.dir);
}

static void lose_writes(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t buf[512] = {1};
    assert_int_equal(node_write(self, s->node, guest_off(0), buf, 512, 0), 0);
    assert_int_equal(node_flush(self, s->node), 0);
    kill_server(s);
    start_server(s, "memory 4M");
    assert_int_equal(node_flush(self, s->node), 0); // all was durable
    assert_int_equal(node_write(self, s->node, guest_off(0), buf, 512, 0), 0);
    kill_server(s);
    start_server(s, "memory 4M");
    assert_int_equal(node_flush(self, s->node), -EIO);
    assert_int_equal(node_flush(self, s->node), 0);
}

static void a_flush_that_cannot_cover_what_was_written_fails(void **state)
{
    run_with("memory 4M", ", 'reconnect-delay': 3600", lose_writes);
}

// The request begins while the first server is known, and is carried out by the second.
#define LACKING "--filter=fua --filter=nozero --filter=noextents memory 4M"

static void meet_another_server(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t buf[512] = {1};
    NodeExtent extent;
    kill_server(s);
    start_server(s, "--filter=log memory 4M logfile=log");
    assert_int_equal(node_write(self, s->node, guest_off(0), buf, 512, NODE_IO_FUA), 0);
    host_shell(s->dir, "grep -q 'Write.*fua=1' log || grep -q Flush log");
    kill_server(s);
    start_server(s, "--filter=log " LACKING " logfile=log2");
    assert_int_equal(node_write(self, s->node, guest_off(0), buf, 512, NODE_IO_FUA), 0);
    host_shell(s->dir, "grep -q Flush log2");
    kill_server(s);
    start_server(s, "memory 4M");
    assert_int_equal(node_flush(self, s->node), 0);
    kill_server(s);
    start_server(s, LACKING);
    assert_int_equal(node_zero(self, s->node, guest_off(0), 1 << 20, NODE_IO_FUA), 0);
    assert_int_equal(node_map(self, s->node, guest_off(0), 512, &extent), 0);
    kill_server(s);
    start_server(s, "memory 4M");
    assert_int_equal(node_flush(self, s->node), 0);
    kill_server(s);
    start_server(s, LACKING);
    assert_int_equal(node_map(self, s->node, guest_off(0), 512, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
}

static void a_request_is_made_as_the_server_that_carries_it_out_can(void **state)
{
    run_with(LACKING, ", 'reconnect-delay': 3600", meet_another_server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_do_what_they_say),
        cmocka_unit_test(servers_that_want_whole_blocks_get_them),
        cmocka_unit_test(servers_that_lack_commands_get_others),
        cmocka_unit_test(transfers_may_be_larger_than_a_request),
        cmocka_unit_test(block_status_becomes_the_map),
        cmocka_unit_test(errors_of_the_server_are_passed_on),
        cmocka_unit_test(what_cannot_be_is_refused_and_what_comes_late_is_waited_for),
        cmocka_unit_test(requests_fail_until_there_is_another_connection),
        cmocka_unit_test(within_the_delay_requests_wait),
        cmocka_unit_test(a_request_is_made_as_the_server_that_carries_it_out_can),
        cmocka_unit_test(a_flush_that_cannot_cover_what_was_written_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
