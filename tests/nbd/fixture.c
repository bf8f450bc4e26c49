// SPDX-License-Identifier: LGPL-2.1-or-later
// The test server. Waiting for another thread is polling with a deadline: the condition decides,
// never the time.
#include "fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <glib/gstdio.h>
#include <unistd.h>

#include "chain-core/remote-call.h"
#include "nbd/listen.h"
#include "server-state.h"

void fixture_run(Fixture *f, FiberFn *fn, void *arg)
{
    assert_int_equal(remote_call(f->loops[f->n_loops - 1], fn, arg), 0);
}

static void *loop_thread(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void count_empty(void *arg)
{
    ((Fixture *)arg)->n_times_empty++;
}

static void count_full(void *arg, NbdsFull why)
{
    ((Fixture *)arg)->n_full[why]++;
}

static void count_tls_failure(void *arg, const char *sentence)
{
    ((Fixture *)arg)->n_tls_failures++;
}

typedef struct AddExport {
    Fixture *f;
    const FixtureConfig *config;
    unsigned index;
} AddExport;

static void add_export(Fiber *self, void *arg)
{
    AddExport *a = arg;
    Fixture *f = a->f;
    MemoryNode *node =
        memory_node_new(fiber_loop(self), a->config->size_bytes ? a->config->size_bytes : 1 << 20);
    const char *name = a->config->names[a->index];
    NbdsExportConfig config = {
        .name = name ? name : "",
        .description = "a memory node",
        .node = &node->node,
        .read_only = a->config->read_only,
        .allocation_depth = true,
    };
    GError *error = NULL;
    int result = nbds_server_add_export(f->server, &config, &f->exports[a->index], &error);
    assert_int_equal(result, 0);
    f->nodes[a->index] = node;
    node_unref_close(self, &node->node); // the export's port holds it
}

// On a slow machine a test that does not care for a time limit must not reach it.
static NbdsLimits generous(NbdsLimits limits)
{
    static const uint64_t hour_ns = 3600000000000;
    uint64_t *const times[] = {&limits.handshake_timeout_ns, &limits.stop_timeout_ns,
                               &limits.stall_timeout_ns};
    for (unsigned i = 0; i < G_N_ELEMENTS(times); i++) {
        if (!*times[i])
            *times[i] = hour_ns;
    }
    return limits;
}

Fixture *fixture_new(const FixtureConfig *config)
{
    Fixture *f = g_new0(Fixture, 1);
    f->n_loops = config->two_loops ? 2 : 1;
    for (unsigned i = 0; i < f->n_loops; i++) {
        g_autoptr(GError) error = NULL;
        f->loops[i] = loop_new(
            &(LoopConfig){.max_fibers = config->max_fibers, .busy_poll_ns = config->busy_poll_ns},
            &error);
        if (!f->loops[i])
            fail_msg("%s", error->message);
        f->threads[i] = g_thread_new("loop", loop_thread, f->loops[i]);
    }
    NbdsServerConfig server_config = {
        .limits = generous(config->limits),
        .may_use = config->may_use,
        .last_client_left = count_empty,
        .full = count_full,
        .tls_failed = count_tls_failure,
        .arg = f,
    };
    f->server = nbds_server_new(&server_config);
    f->n_exports = config->n_exports ? config->n_exports : 1;
    for (unsigned i = 0; i < f->n_exports; i++) {
        AddExport a = {f, config, i};
        unsigned on = config->spreads_exports ? (i + 1) % f->n_loops : f->n_loops - 1;
        assert_int_equal(remote_call(f->loops[on], add_export, &a), 0);
    }
    f->dir = g_dir_make_tmp("nbd-test-XXXXXX", NULL);
    assert_non_null(f->dir);
    f->socket_path = g_build_filename(f->dir, "s", NULL);
    g_autoptr(GError) error = NULL;
    int fd = nbds_listen_unix(f->socket_path, 0600, -1, -1, &error);
    if (fd < 0)
        fail_msg("%s", error->message);
    f->listener = nbds_server_add_listener(f->server, f->loops[0], fd, &config->tls);
    return f;
}

static void stop_server(Fiber *self, void *arg)
{
    nbds_server_stop(self, ((Fixture *)arg)->server);
}

static void *stop_thread(void *arg)
{
    Fixture *f = arg;
    assert_int_equal(remote_call_reserve(f->loops[0], stop_server, f), 0);
    return NULL;
}

void fixture_begin_stop(Fixture *f)
{
    if (!f->stopper)
        f->stopper = g_thread_new("stop", stop_thread, f);
    while (!f->server->is_stopping)
        g_usleep(200);
}

static void remove_export(Fiber *self, void *arg)
{
    nbds_server_remove_export(self, arg);
}

void fixture_remove_export(Fixture *f, unsigned export_index)
{
    NbdsExport *export = f->exports[export_index];
    assert_int_equal(remote_call(nbds_export_loop(export), remove_export, export), 0);
    f->exports[export_index] = NULL;
}

void fixture_free(Fixture *f)
{
    if (!f->stopper)
        f->stopper = g_thread_new("stop", stop_thread, f);
    g_thread_join(f->stopper);
    for (unsigned i = 0; i < f->n_exports; i++) {
        if (f->exports[i])
            fixture_remove_export(f, i);
    }
    for (unsigned i = 0; i < f->n_loops; i++) {
        loop_stop(f->loops[i]);
        g_thread_join(f->threads[i]);
    }
    nbds_server_free(f->server);
    for (unsigned i = 0; i < f->n_loops; i++)
        loop_free(f->loops[i]);
    g_unlink(f->socket_path);
    g_rmdir(f->dir);
    g_free(f->socket_path);
    g_free(f->dir);
    g_free(f);
}

static void hold(Fiber *self, void *arg)
{
    memory_node_hold(arg);
}

static void release(Fiber *self, void *arg)
{
    memory_node_release(arg);
}

void fixture_hold(Fixture *f, unsigned export_index)
{
    Loop *loop = nbds_export_loop(f->exports[export_index]);
    assert_int_equal(remote_call_reserve(loop, hold, f->nodes[export_index]), 0);
}

void fixture_release(Fixture *f, unsigned export_index)
{
    Loop *loop = nbds_export_loop(f->exports[export_index]);
    assert_int_equal(remote_call_reserve(loop, release, f->nodes[export_index]), 0);
}

void wait_at_least(atomic_uint *counter, unsigned value)
{
    for (int64_t end = g_get_monotonic_time() + HANG_S * G_USEC_PER_SEC; *counter < value;) {
        if (g_get_monotonic_time() > end)
            fail_msg("still %u, not %u", *counter, value);
        g_usleep(1000);
    }
}

void wait_for_clients(Fixture *f, unsigned n)
{
    for (int64_t end = g_get_monotonic_time() + HANG_S * G_USEC_PER_SEC;
         nbds_server_n_clients(f->server) != n;) {
        if (g_get_monotonic_time() > end)
            fail_msg("still %u clients, not %u", nbds_server_n_clients(f->server), n);
        g_usleep(1000);
    }
}
