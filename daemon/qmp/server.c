// SPDX-License-Identifier: LGPL-2.1-or-later
// Accepts clients of QMP and keeps the list of their monitors. Control loop.
#include "server.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/stream.h"
#include "daemon/log.h"
#include "monitor.h"
#include "table.h"

enum {
    MAX_MONITORS = 256, // who may connect may do anything: a bound for programs gone wild
    MAX_READERS = 64,   // of sockets for queries only: they leave room for who may change something
};

static const uint64_t ACCEPT_RETRY_NS = 50000000;  // when the host has no descriptor or memory left
static const uint64_t END_TIMEOUT_NS = 1000000000; // for clients to take what is unsent at the end

typedef struct Listener {
    QmpServer *server;
    StreamListener *stream;
    char *name;
    QmpPolicy policy;
    Fiber *fiber;
} Listener;

typedef struct Client {
    QmpServer *server;
    QmpMonitor *monitor;
    char *name;
    SocketProcess *peer;
    bool is_reader;
} Client;

struct QmpServer {
    Loop *loop;
    Daemon *daemon;
    QmpTable *table;
    GPtrArray *listeners; // Listener, running
    GPtrArray *clients;   // Client, running
    unsigned n_readers;   // of these
    FiberQueue left;      // a client has
    FiberWaitGroup fibers, running;
};

QmpServer *qmp_server_new(Loop *loop, Daemon *daemon, const QmpFamily *const *families)
{
    QmpServer *server = g_new0(QmpServer, 1);
    server->loop = loop;
    server->daemon = daemon;
    server->table = qmp_table_new(families);
    server->listeners = g_ptr_array_new();
    server->clients = g_ptr_array_new();
    return server;
}

void qmp_server_free(QmpServer *server)
{
    if (!server)
        return;
    g_assert(!server->listeners->len && !server->clients->len);
    g_ptr_array_unref(server->listeners);
    g_ptr_array_unref(server->clients);
    qmp_table_free(server->table);
    g_free(server);
}

const QmpTable *qmp_server_table(const QmpServer *server)
{
    return server->table;
}

// -- clients --------------------------------------------------------------------------------------

static void client_free(Client *client)
{
    qmp_monitor_free(client->monitor);
    socket_process_free(client->peer);
    g_free(client->name);
    g_free(client);
}

static void remove_client(QmpServer *server, Client *client)
{
    g_ptr_array_remove(server->clients, client);
    server->n_readers -= client->is_reader;
    client_free(client);
}

static void run_client(Fiber *self, void *arg)
{
    Client *client = arg;
    QmpServer *server = client->server;
    qmp_monitor_run(self, client->monitor);
    remove_client(server, client);
    fiber_queue_wake_all(&server->left);
    fiber_wait_group_done(&server->fibers);
}

// In one line, which fits into the socket's buffer, so nobody waits.
static void turn_away(int fd, const char *name, const SocketProcess *peer)
{
    g_autofree char *who = peer ? socket_process_text(peer) : g_strdup("nobody knows who");
    g_autofree char *line = g_strdup_printf(
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"%s may not use this socket\", "
        "\"reason\": \"denied\"}}\r\n",
        who);
    log_line(LOG_WARNING, "%s is turned away from '%s', which is for others", who, name);
    send(fd, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
    close(fd);
}

int qmp_server_add_client(QmpServer *server, int fd, const char *name, const QmpPolicy *policy)
{
    static const QmpPolicy no_policy = {0};
    SocketProcess *peer = socket_process_find(fd);
    policy = policy ? policy : &no_policy;
    if (!qmp_policy_allows(policy, peer)) {
        turn_away(fd, name, peer);
        socket_process_free(peer);
        return 0;
    }
    Client *client = g_new0(Client, 1);
    client->server = server;
    client->name = g_strdup(name);
    client->peer = peer;
    client->is_reader = policy->is_read_only;
    server->n_readers += client->is_reader;
    client->monitor =
        qmp_monitor_new(stream_new_fd(server->loop, fd), &(QmpMonitorConfig){
                                                             .name = client->name,
                                                             .daemon = server->daemon,
                                                             .table = server->table,
                                                             .running = &server->running,
                                                             .is_read_only = client->is_reader,
                                                             .peer = peer,
                                                         });
    g_ptr_array_add(server->clients, client);
    fiber_wait_group_add(&server->fibers, 1);
    int r = fiber_spawn(server->loop, "qmp monitor", run_client, client, NULL);
    if (r < 0) {
        remove_client(server, client);
        fiber_wait_group_done(&server->fibers);
    }
    return r;
}

static bool is_full(const QmpServer *server, const Listener *listener)
{
    return server->clients->len >= MAX_MONITORS ||
           (listener->policy.is_read_only && server->n_readers >= MAX_READERS);
}

static void listener_free(Listener *listener)
{
    stream_listener_free(listener->stream);
    qmp_policy_clear(&listener->policy);
    g_free(listener->name);
    g_free(listener);
}

static void accept_clients(Fiber *self, void *arg)
{
    Listener *listener = arg;
    QmpServer *server = listener->server;
    while (!fiber_is_cancelled(self)) {
        if (is_full(server, listener)) {
            fiber_queue_wait(self, &server->left, true, "qmp: many monitors");
            continue;
        }
        int fd = stream_accept(self, listener->stream);
        if (fd < 0)
            fiber_sleep(self, ACCEPT_RETRY_NS);
        else if (fiber_is_cancelled(self))
            close(fd);
        else
            qmp_server_add_client(server, fd, listener->name, &listener->policy);
    }
    g_ptr_array_remove(server->listeners, listener);
    listener_free(listener);
    fiber_wait_group_done(&server->fibers);
}

int qmp_server_add_listener(QmpServer *server, int fd, const char *name, const QmpPolicy *policy)
{
    Listener *listener = g_new0(Listener, 1);
    listener->server = server;
    listener->name = g_strdup(name);
    listener->policy = qmp_policy_copy(policy);
    listener->stream = stream_listener_new_fd(server->loop, fd);
    g_ptr_array_add(server->listeners, listener);
    fiber_wait_group_add(&server->fibers, 1);
    int r = fiber_spawn(server->loop, "qmp listener", accept_clients, listener, &listener->fiber);
    if (r < 0) {
        g_ptr_array_remove(server->listeners, listener);
        listener_free(listener);
        fiber_wait_group_done(&server->fibers);
    }
    return r;
}

unsigned qmp_server_n_clients(const QmpServer *server, const char *name)
{
    unsigned n = 0;
    for (guint i = 0; i < server->clients->len; i++)
        n += g_str_equal(((const Client *)server->clients->pdata[i])->name, name);
    return n;
}

// -- events ---------------------------------------------------------------------------------------

void qmp_server_emit(QmpServer *server, const char *event, json_t *data)
{
    gint64 now_us = g_get_real_time();
    g_assert(qmp_table_find_event(server->table, event));
    json_auto_t *message = json_pack("{s:{s:I, s:I}, s:s}", "timestamp", "seconds",
                                     (json_int_t)(now_us / G_USEC_PER_SEC), "microseconds",
                                     (json_int_t)(now_us % G_USEC_PER_SEC), "event", event);
    if (data)
        json_object_set_new(message, "data", data);
    char *text = json_dumps(message, JSON_ENSURE_ASCII);
    for (guint i = 0; i < server->clients->len; i++)
        qmp_monitor_send_event(((Client *)server->clients->pdata[i])->monitor, text);
    free(text);
}

// -- the end --------------------------------------------------------------------------------------

void qmp_server_end_commands(Fiber *self, QmpServer *server)
{
    for (guint i = 0; i < server->listeners->len; i++)
        fiber_cancel(((Listener *)server->listeners->pdata[i])->fiber);
    for (guint i = 0; i < server->clients->len; i++)
        qmp_monitor_end_commands(((Client *)server->clients->pdata[i])->monitor);
    fiber_wait_group_wait(self, &server->running);
}

void qmp_server_stop(Fiber *self, QmpServer *server)
{
    for (guint i = 0; i < server->clients->len; i++)
        qmp_monitor_end(((Client *)server->clients->pdata[i])->monitor, END_TIMEOUT_NS);
    fiber_wait_group_wait(self, &server->fibers);
}
