// SPDX-License-Identifier: LGPL-2.1-or-later
// The server: its exports, listeners and loops, and how it stops. The lock protects the lists only
// and is never held over a call that waits; connections take it once per handshake,
// and when they leave a full server.
//
// Everything that must be gone before a stop returns (listeners, connections, the server's own
// running state) holds one of `n_alive`; who lets the last one go wakes the stopping fiber.
#include "server.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/stream.h"
#include "connection.h"
#include "server-loop.h"

static const uint64_t SECOND_NS = 1000000000;
// When the host has no descriptor left.
static const uint64_t ACCEPT_RETRY_NS = SECOND_NS / 20;

typedef struct Listener {
    NbdsServerLoop *home;
    int fd;
    StreamListener *listener; // NULL before it started and after it ended
    Fiber *fiber;
    LoopCall start_call, stop_call;
    FiberQueue room;        // the fiber, at the connection limit
    atomic_bool wants_room; // whoever clears it posts `room_call` or is the fiber itself
    LoopCall room_call;
} Listener;

struct NbdsServer {
    NbdsLimits limits;
    void (*last_client_left)(void *arg);
    void *arg;

    pthread_mutex_t lock; // sanitizers do not see GLib's
    GPtrArray *exports;   // of NbdsExport, one reference each
    GPtrArray *loops;     // of NbdsServerLoop, owned
    GPtrArray *listeners; // of Listener, owned
    uint64_t next_serial;
    NbdsExportTable *table; // as of `table_generation`, or NULL
    unsigned table_generation;

    atomic_uint generation;
    atomic_bool is_stopping;
    atomic_uint n_clients;
    atomic_uint n_alive;
    Fiber *stopper;
    LoopCall stopped_call;
    bool is_stopped; // on the stopper's loop
};

static unsigned default_to(unsigned value, unsigned other)
{
    return value ? value : other;
}

static uint64_t default_to_u64(uint64_t value, uint64_t other)
{
    return value ? value : other;
}

NbdsServer *nbds_server_new(const NbdsServerConfig *config)
{
    NbdsServer *server = g_new0(NbdsServer, 1);
    const NbdsLimits *l = &config->limits;
    server->limits = (NbdsLimits){
        .max_connections = default_to(l->max_connections, 256),
        .handshake_timeout_ns = default_to_u64(l->handshake_timeout_ns, 10 * SECOND_NS),
        .stop_timeout_ns = default_to_u64(l->stop_timeout_ns, 5 * SECOND_NS),
        .max_requests = default_to(l->max_requests, 256),
        .max_bytes = default_to_u64(l->max_bytes, 64 << 20),
        .max_loop_bytes = default_to_u64(l->max_loop_bytes, 256 << 20),
        .stall_timeout_ns = default_to_u64(l->stall_timeout_ns, 10 * SECOND_NS),
    };
    // A waiting request must be able to get its bytes.
    server->limits.max_loop_bytes = MAX(server->limits.max_loop_bytes, 2 * NBDS_MAX_PAYLOAD);
    server->last_client_left = config->last_client_left;
    server->arg = config->arg;
    pthread_mutex_init(&server->lock, NULL);
    server->exports = g_ptr_array_new();
    server->loops = g_ptr_array_new_with_free_func((GDestroyNotify)nbds_server_loop_free);
    server->listeners = g_ptr_array_new_with_free_func(g_free);
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

const NbdsLimits *nbds_server_limits(const NbdsServer *server)
{
    return &server->limits;
}

bool nbds_server_is_stopping(const NbdsServer *server)
{
    return server->is_stopping;
}

unsigned nbds_server_generation(const NbdsServer *server)
{
    return server->generation;
}

unsigned nbds_server_n_clients(const NbdsServer *server)
{
    return server->n_clients;
}

// With the lock held.
static NbdsServerLoop *get_loop(NbdsServer *server, Loop *loop)
{
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *home = server->loops->pdata[i];
        if (home->loop == loop)
            return home;
    }
    NbdsServerLoop *home = nbds_server_loop_new(server, loop, server->limits.max_loop_bytes);
    g_ptr_array_add(server->loops, home);
    return home;
}

static void let_go(NbdsServer *server)
{
    if (atomic_fetch_sub(&server->n_alive, 1) == 1)
        loop_post(fiber_loop(server->stopper), &server->stopped_call);
}

static void offer_room(NbdsServer *server)
{
    pthread_mutex_lock(&server->lock);
    for (unsigned i = 0; i < server->listeners->len; i++) {
        Listener *l = server->listeners->pdata[i];
        if (atomic_exchange(&l->wants_room, false)) {
            server->n_alive++;
            loop_post(l->home->loop, &l->room_call);
        }
    }
    pthread_mutex_unlock(&server->lock);
}

void nbds_server_leave(NbdsServer *server)
{
    unsigned n_before = atomic_fetch_sub(&server->n_clients, 1);
    if (n_before >= server->limits.max_connections)
        offer_room(server);
    if (n_before == 1 && server->last_client_left)
        server->last_client_left(server->arg);
    let_go(server);
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
static int add_export(NbdsServer *server, const NbdsExportConfig *config, NbdsExport **ret_export,
                      GError **error)
{
    if (has_export(server, config->name)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "there is already an export named '%.256s': choose another name", config->name);
        return -EEXIST;
    }
    NbdsServerLoop *home = get_loop(server, config->node->loop);
    NbdsExport *export = nbds_export_new(home, config, ++server->next_serial, error);
    if (!export)
        return -EINVAL;
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

void nbds_server_refresh_size(NbdsExport *export)
{
    export->size_bytes = export->port.node->size_bytes;
    export->home->server->generation++;
}

// With the lock held.
static NbdsExportTable *make_table(const NbdsServer *server)
{
    unsigned n = server->exports->len;
    NbdsExportInfo *infos = g_new(NbdsExportInfo, n);
    GPtrArray *owners = g_ptr_array_new_full(n, (GDestroyNotify)nbds_export_unref);
    for (unsigned i = 0; i < n; i++) {
        infos[i] = nbds_export_info(server->exports->pdata[i]);
        g_ptr_array_add(owners, nbds_export_ref(server->exports->pdata[i]));
    }
    return nbds_export_table_new(infos, n, owners);
}

NbdsExportTable *nbds_server_export_table(NbdsServer *server)
{
    pthread_mutex_lock(&server->lock);
    unsigned generation = server->generation;
    if (!server->table || server->table_generation != generation) {
        nbds_export_table_unref(server->table);
        server->table = make_table(server);
        server->table_generation = generation;
    }
    NbdsExportTable *table = nbds_export_table_ref(server->table);
    pthread_mutex_unlock(&server->lock);
    return table;
}

static void drain_connections(NbdsServerLoop *home, const NbdsExport *export)
{
    uint64_t timeout_ns = nbds_server_limits(home->server)->stop_timeout_ns;
    for (NbdsConnection *c = home->connections; c; c = c->next) {
        if (!export || c->export == export)
            nbds_connection_drain(c, timeout_ns);
    }
}

void nbds_server_remove_export(Fiber *self, NbdsExport *export)
{
    NbdsServer *server = export->home->server;
    pthread_mutex_lock(&server->lock);
    g_ptr_array_remove(server->exports, export);
    server->generation++;
    pthread_mutex_unlock(&server->lock);
    export->is_removed = true;
    drain_connections(export->home, export);
    while (export->n_connections)
        fiber_queue_wait(self, &export->emptied, false, "nbd: clients of a removed export");
    port_done(self, &export->port);
    nbds_export_unref(export);
}

// --- Listeners ---

static bool has_room(const NbdsServer *server)
{
    return server->n_clients < server->limits.max_connections;
}

static void room_offered(LoopCall *call)
{
    Listener *l = (Listener *)((char *)call - offsetof(Listener, room_call));
    fiber_queue_wake_all(&l->room);
    let_go(l->home->server);
}

// 0 or -ECANCELED.
static int wait_for_room(Fiber *self, Listener *l)
{
    while (!has_room(l->home->server)) {
        l->wants_room = true;
        // Somebody may have left before that was seen; else the call is on its way.
        if (has_room(l->home->server) && atomic_exchange(&l->wants_room, false))
            return 0;
        int result = fiber_queue_wait(self, &l->room, true, "nbd: at the connection limit");
        if (result < 0)
            return result;
    }
    return 0;
}

static void accept_clients(Fiber *self, Listener *l)
{
    NbdsServer *server = l->home->server;
    for (;;) {
        int fd = wait_for_room(self, l);
        if (fd == 0)
            fd = stream_accept(self, l->listener);
        if (fd == -ECANCELED || fiber_is_cancelled(self)) {
            if (fd >= 0)
                close(fd);
            return;
        }
        if (fd < 0) {
            fiber_sleep(self, ACCEPT_RETRY_NS);
            continue;
        }
        server->n_clients++;
        server->n_alive++;
        nbds_connection_start(l->home, fd);
    }
}

static void listener_fiber(Fiber *self, void *arg)
{
    Listener *l = arg;
    accept_clients(self, l);
    stream_listener_free(l->listener);
    l->listener = NULL;
    l->fiber = NULL;
    let_go(l->home->server);
}

static void start_listener(LoopCall *call)
{
    Listener *l = (Listener *)((char *)call - offsetof(Listener, start_call));
    if (nbds_server_is_stopping(l->home->server)) {
        close(l->fd);
        let_go(l->home->server);
        return;
    }
    l->listener = stream_listener_new_fd(l->home->loop, l->fd);
    if (fiber_spawn(l->home->loop, "nbd listener", listener_fiber, l, &l->fiber) < 0) {
        stream_listener_free(l->listener);
        l->listener = NULL;
        let_go(l->home->server);
    }
}

static void stop_listener(LoopCall *call)
{
    Listener *l = (Listener *)((char *)call - offsetof(Listener, stop_call));
    if (l->fiber)
        fiber_cancel(l->fiber);
}

void nbds_server_add_listener(NbdsServer *server, Loop *loop, int fd)
{
    Listener *l = g_new0(Listener, 1);
    l->fd = fd;
    l->start_call.fn = start_listener;
    l->stop_call.fn = stop_listener;
    l->room_call.fn = room_offered;
    pthread_mutex_lock(&server->lock);
    l->home = get_loop(server, loop);
    g_ptr_array_add(server->listeners, l);
    pthread_mutex_unlock(&server->lock);
    server->n_alive++;
    loop_post(loop, &l->start_call);
}

// --- Stop ---

static void drain_loop(LoopCall *call)
{
    NbdsServerLoop *home = (NbdsServerLoop *)((char *)call - offsetof(NbdsServerLoop, drain_call));
    drain_connections(home, NULL);
    let_go(home->server);
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
    for (unsigned i = 0; i < server->listeners->len; i++) {
        Listener *l = server->listeners->pdata[i];
        loop_post(l->home->loop, &l->stop_call);
    }
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *home = server->loops->pdata[i];
        home->drain_call.fn = drain_loop;
        server->n_alive++;
        loop_post(home->loop, &home->drain_call);
    }
    pthread_mutex_unlock(&server->lock);
    let_go(server);
    while (!server->is_stopped)
        fiber_suspend(self, "nbd: server's stop");
}
