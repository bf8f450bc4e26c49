// SPDX-License-Identifier: LGPL-2.1-or-later
// One server after the other, each with its sockets. Control loop.
#include "nbd-server.h"

#include "chain-core/fiber-sync.h"

struct NbdServer {
    NbdsServerConfig config;
    const Loops *loops;
    NbdsServer *running; // NULL: none
    bool is_stopping, is_disconnecting;
    FiberWaitGroup ending; // listeners
    GMutex mutex;          // of what follows, for the way out in a hurry
    GPtrArray *listeners;  // changed here only
};

NbdServer *nbd_server_new(const NbdsServerConfig *config, const Loops *loops)
{
    NbdServer *server = g_new0(NbdServer, 1);
    server->config = *config;
    server->loops = loops;
    g_mutex_init(&server->mutex);
    server->listeners = g_ptr_array_new_with_free_func((GDestroyNotify)listeners_free);
    return server;
}

void nbd_server_free(NbdServer *server)
{
    if (!server)
        return;
    g_assert(!server->running);
    g_ptr_array_unref(server->listeners);
    g_mutex_clear(&server->mutex);
    g_free(server);
}

NbdsServer *nbd_server_get(const NbdServer *server)
{
    return server->running;
}

bool nbd_server_is_stopping(const NbdServer *server)
{
    return server->is_stopping;
}

void nbd_server_start(NbdServer *server, const NbdServerBounds *bounds)
{
    static const int64_t FOREVER_S = 100 * 365 * 86400LL;
    static const uint64_t SECOND_NS = 1000000000;
    g_assert(!server->running);
    NbdsServerConfig config = server->config;
    NbdsLimits *limits = &config.limits;
    if (bounds && bounds->max_connections)
        limits->max_connections = MIN(limits->max_connections, bounds->max_connections);
    if (bounds)
        limits->handshake_timeout_ns =
            (uint64_t)(bounds->handshake_s ? bounds->handshake_s : FOREVER_S) * SECOND_NS;
    server->running = nbds_server_new(&config);
}

void nbd_server_listen(NbdServer *server, Listeners *listeners)
{
    listeners_serve(listeners, server->running, server->loops);
    g_mutex_lock(&server->mutex);
    g_ptr_array_add(server->listeners, listeners);
    g_mutex_unlock(&server->mutex);
}

Listeners *nbd_server_find_listeners(const NbdServer *server, const char *address)
{
    for (guint i = 0; i < server->listeners->len; i++)
        if (g_strcmp0(listeners_address(server->listeners->pdata[i]), address) == 0)
            return server->listeners->pdata[i];
    return NULL;
}

void nbd_server_end_listeners(Fiber *self, NbdServer *server, Listeners *listeners)
{
    guint i;
    g_mutex_lock(&server->mutex);
    if (g_ptr_array_find(server->listeners, listeners, &i))
        g_ptr_array_steal_index(server->listeners, i);
    g_mutex_unlock(&server->mutex);
    fiber_wait_group_add(&server->ending, 1);
    listeners_end(self, listeners, server->running);
    fiber_wait_group_done(&server->ending);
}

char **nbd_server_uris(const NbdServer *server, const char *export_name)
{
    g_autoptr(GStrvBuilder) all = g_strv_builder_new();
    for (guint i = 0; i < server->listeners->len; i++) {
        g_auto(GStrv) uris = listeners_uris(server->listeners->pdata[i], export_name);
        g_strv_builder_addv(all, (const char **)uris);
    }
    return g_strv_builder_end(all);
}

void nbd_server_remove_files(NbdServer *server)
{
    if (!server)
        return;
    g_mutex_lock(&server->mutex);
    for (guint i = 0; i < server->listeners->len; i++)
        listeners_remove_files(server->listeners->pdata[i]);
    g_mutex_unlock(&server->mutex);
}

bool nbd_server_begin_stop(NbdServer *server)
{
    if (!server->running || server->is_stopping)
        return false;
    server->is_stopping = true;
    return true;
}

void nbd_server_stop(Fiber *self, NbdServer *server)
{
    nbd_server_begin_stop(server);
    if (server->running && !server->is_disconnecting) {
        server->is_disconnecting = true;
        nbds_server_stop(self, server->running);
    }
    fiber_wait_group_wait(self, &server->ending);
    g_mutex_lock(&server->mutex);
    g_ptr_array_set_size(server->listeners, 0);
    g_mutex_unlock(&server->mutex);
}

void nbd_server_end(NbdServer *server)
{
    nbds_server_free(g_steal_pointer(&server->running));
    server->is_stopping = server->is_disconnecting = false;
}
