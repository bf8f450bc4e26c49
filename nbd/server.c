// SPDX-License-Identifier: LGPL-2.1-or-later
// The server: how exports and listeners come and go, and how it stops.
#include "nbd/server.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "connection.h"
#include "contexts.h"
#include "export-move.h"
#include "listener.h"
#include "request.h"
#include "server-state.h"

static const uint64_t SECOND_NS = 1000000000;

static unsigned default_to(unsigned value, unsigned other)
{
    return value ? value : other;
}

static uint64_t default_to_u64(uint64_t value, uint64_t other)
{
    return value ? value : other;
}

static void free_loop(gpointer data)
{
    nbds_requests_free(data);
    nbds_server_loop_free(data);
}

NbdsServer *nbds_server_new(const NbdsServerConfig *config)
{
    NbdsServer *server = g_new0(NbdsServer, 1);
    const NbdsLimits *l = &config->limits;
    server->limits = (NbdsLimits){
        .max_connections = default_to(l->max_connections, UINT_MAX),
        .max_handshakes = default_to(l->max_handshakes, 256),
        .handshake_grace_ns = default_to_u64(l->handshake_grace_ns, SECOND_NS),
        .handshake_timeout_ns = default_to_u64(l->handshake_timeout_ns, 10 * SECOND_NS),
        .stop_timeout_ns = default_to_u64(l->stop_timeout_ns, 5 * SECOND_NS),
        .max_requests = default_to(l->max_requests, 256),
        .max_bytes = default_to_u64(l->max_bytes, 64 << 20),
        .max_loop_bytes = default_to_u64(l->max_loop_bytes, 256 << 20),
        .stall_timeout_ns = default_to_u64(l->stall_timeout_ns, 10 * SECOND_NS),
    };
    // A waiting request must be able to get its bytes.
    server->limits.max_loop_bytes = MAX(server->limits.max_loop_bytes, 2 * NBDS_MAX_PAYLOAD);
    server->may_use = config->may_use;
    server->last_client_left = config->last_client_left;
    server->clients_changed = config->clients_changed;
    server->full = config->full;
    server->tls_failed = config->tls_failed;
    server->arg = config->arg;
    pthread_mutex_init(&server->lock, NULL);
    server->exports = g_ptr_array_new();
    server->loops = g_ptr_array_new_with_free_func(free_loop);
    server->listeners = g_ptr_array_new_with_free_func((GDestroyNotify)nbds_listener_free);
    atomic_init(&server->n_alive, 1);
    return server;
}

void nbds_server_free(NbdsServer *server)
{
    if (!server)
        return;
    assert(!server->exports->len && !server->n_clients);
    nbds_export_table_unref(server->table);
    g_ptr_array_unref(server->exports);
    g_ptr_array_unref(server->listeners);
    g_ptr_array_unref(server->loops);
    pthread_mutex_destroy(&server->lock);
    g_free(server);
}

unsigned nbds_server_n_clients(const NbdsServer *server)
{
    return server->n_clients;
}

uint64_t nbds_server_n_executing(NbdsServer *server, const Loop *loop)
{
    uint64_t n = 0;
    pthread_mutex_lock(&server->lock);
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *server_loop = server->loops->pdata[i];
        if (server_loop->loop == loop)
            n = atomic_load_explicit(&server_loop->n_executing, memory_order_relaxed);
    }
    pthread_mutex_unlock(&server->lock);
    return n;
}

// --- Exports ---

static bool has_export(const NbdsServer *server, const char *name)
{
    for (unsigned i = 0; i < server->exports->len; i++) {
        const NbdsExport *export = server->exports->pdata[i];
        if (!strcmp(export->info.name, name))
            return true;
    }
    return false;
}

// With the lock held.
void nbds_server_refresh_size(NbdsExport *export)
{
    export->size_bytes = export->port.node->size_bytes;
    export->server_loop->server->generation++;
}

// Clients that it has keep the size that they were told.
static void port_resized(Port *port)
{
    nbds_server_refresh_size((NbdsExport *)((char *)port - offsetof(NbdsExport, port)));
}

static int add_export(NbdsServer *server, const NbdsExportConfig *config, NbdsExport **ret_export,
                      GError **error)
{
    if (has_export(server, config->name)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "there is already an export named '%.256s': choose another name", config->name);
        return -EEXIST;
    }
    NbdsServerLoop *server_loop = nbds_server_get_loop(server, config->node->loop);
    NbdsExport *export = nbds_export_new(server_loop, config, ++server->next_serial, error);
    if (!export)
        return -EINVAL;
    export->port.move_ops = &nbds_export_move_ops;
    export->port.resized = port_resized;
    g_ptr_array_add(server->exports, export);
    server->generation++;
    *ret_export = export;
    return 0;
}

int nbds_server_add_export(NbdsServer *server, const NbdsExportConfig *config,
                           NbdsExport **ret_export, GError **error)
{
    pthread_mutex_lock(&server->lock);
    int result = add_export(server, config, ret_export, error);
    pthread_mutex_unlock(&server->lock);
    return result;
}

static void drain_connections(NbdsServerLoop *server_loop, const NbdsExport *export)
{
    uint64_t timeout_ns = server_loop->server->limits.stop_timeout_ns;
    for (const GList *l = server_loop->connections.head; l; l = l->next) {
        NbdsConnection *c = l->data;
        if (!export || c->export == export)
            nbds_connection_drain(c, timeout_ns);
    }
    for (const GList *l = export ? NULL : server_loop->handshakes.head; l; l = l->next)
        nbds_connection_drain(l->data, timeout_ns);
}

void nbds_server_remove_export(Fiber *self, NbdsExport *export)
{
    NbdsServer *server = export->server_loop->server;
    pthread_mutex_lock(&server->lock);
    g_ptr_array_remove(server->exports, export);
    server->generation++;
    pthread_mutex_unlock(&server->lock);
    export->is_removed = true;
    drain_connections(export->server_loop, export);
    while (export->n_connections)
        fiber_queue_wait(self, &export->emptied, false, "nbd: clients of a removed export");
    nbds_contexts_release(self, export->info.contexts);
    port_done(self, &export->port);
    nbds_export_unref(export);
}

static guint find_listener(const NbdsServer *server, const NbdsListener *listener)
{
    guint i;
    bool is_there = g_ptr_array_find(server->listeners, listener, &i);
    assert(is_there);
    return i;
}

NbdsListener *nbds_server_add_listener(NbdsServer *server, Loop *loop, int fd, const NbdsTls *tls)
{
    pthread_mutex_lock(&server->lock);
    NbdsListener *listener = nbds_listener_new(nbds_server_get_loop(server, loop), fd, tls);
    g_ptr_array_add(server->listeners, listener);
    nbds_listener_start(listener);
    pthread_mutex_unlock(&server->lock);
    return listener;
}

void nbds_server_remove_listener(Fiber *self, NbdsServer *server, NbdsListener *listener)
{
    pthread_mutex_lock(&server->lock);
    g_ptr_array_steal_index_fast(server->listeners, find_listener(server, listener));
    pthread_mutex_unlock(&server->lock);
    nbds_listener_end(self, listener);
    nbds_listener_free(listener);
}

void nbds_server_refresh_access(NbdsServer *server)
{
    server->generation++;
}

// --- Stop ---

static void drain_loop(LoopCall *call)
{
    NbdsServerLoop *server_loop =
        (NbdsServerLoop *)((char *)call - offsetof(NbdsServerLoop, drain_call));
    drain_connections(server_loop, NULL);
    nbds_server_release(server_loop->server);
}

static void stopped(LoopCall *call)
{
    NbdsServer *server = (NbdsServer *)((char *)call - offsetof(NbdsServer, stopped_call));
    server->is_stopped = true;
    fiber_wake(server->stopper);
}

void nbds_server_stop(Fiber *self, NbdsServer *server)
{
    assert(!server->stopper);
    server->stopper = self;
    server->stopped_call.fn = stopped;
    // Set before the messages: a connection that reaches a loop after its message sees it.
    server->is_stopping = true;
    pthread_mutex_lock(&server->lock);
    for (unsigned i = 0; i < server->listeners->len; i++)
        nbds_listener_stop(server->listeners->pdata[i]);
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *server_loop = server->loops->pdata[i];
        server_loop->drain_call.fn = drain_loop;
        nbds_server_hold(server);
        loop_post(server_loop->loop, &server_loop->drain_call);
    }
    pthread_mutex_unlock(&server->lock);
    nbds_server_release(server);
    while (!server->is_stopped)
        fiber_suspend(self, "nbd: server's stop");
}
