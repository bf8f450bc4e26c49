// SPDX-License-Identifier: LGPL-2.1-or-later
// Counting clients, telling listeners that one left, and the table of exports.
//
// Listeners that wait are woken by what happens on their loop (a handshake ends, the oldest one's
// grace ends) and, through a message, by clients that leave on any loop:
//
//     room_state    leaves when                                      to
//     IDLE          a listener found no room                         WANTED (it looks once more)
//     WANTED        a client left: the message is posted             POSTED
//     POSTED        the message has come; all listeners are woken    IDLE
#include "server-state.h"

// An episode of being full ends when for so long nobody had to wait.
static const uint64_t FULL_EPISODE_NS = 60 * 1000000000ull;

void nbds_server_hold(NbdsServer *server)
{
    server->n_alive++;
}

void nbds_server_release(NbdsServer *server)
{
    if (atomic_fetch_sub(&server->n_alive, 1) == 1)
        loop_post(fiber_loop(server->stopper), &server->stopped_call);
}

bool nbds_server_try_enter(NbdsServer *server)
{
    if (atomic_fetch_add(&server->n_clients, 1) >= server->limits.max_connections) {
        server->n_clients--;
        return false;
    }
    nbds_server_hold(server);
    if (server->clients_changed)
        server->clients_changed(server->arg);
    return true;
}

NbdsServerLoop *nbds_server_get_loop(NbdsServer *server, Loop *loop)
{
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *server_loop = server->loops->pdata[i];
        if (server_loop->loop == loop)
            return server_loop;
    }
    NbdsServerLoop *server_loop = nbds_server_loop_new(server, &server->limits, loop);
    g_ptr_array_add(server->loops, server_loop);
    return server_loop;
}

// --- Room ---

static void room_offered(LoopCall *call)
{
    NbdsServerLoop *server_loop =
        (NbdsServerLoop *)((char *)call - offsetof(NbdsServerLoop, room_call));
    server_loop->room_state = NBDS_ROOM_IDLE;
    fiber_queue_wake_all(&server_loop->room);
    nbds_server_release(server_loop->server);
}

static void offer_room(NbdsServer *server)
{
    pthread_mutex_lock(&server->lock);
    for (unsigned i = 0; i < server->loops->len; i++) {
        NbdsServerLoop *server_loop = server->loops->pdata[i];
        int wanted = NBDS_ROOM_WANTED;
        if (!atomic_compare_exchange_strong(&server_loop->room_state, &wanted, NBDS_ROOM_POSTED))
            continue;
        nbds_server_hold(server);
        server_loop->room_call.fn = room_offered;
        loop_post(server_loop->loop, &server_loop->room_call);
    }
    pthread_mutex_unlock(&server->lock);
}

bool nbds_server_want_room(NbdsServerLoop *server_loop)
{
    int idle = NBDS_ROOM_IDLE;
    if (!atomic_compare_exchange_strong(&server_loop->room_state, &idle, NBDS_ROOM_WANTED))
        return false;
    server_loop->server->wants_room = true;
    return true;
}

void nbds_server_leave(NbdsServer *server)
{
    unsigned n_before = atomic_fetch_sub(&server->n_clients, 1);
    if (atomic_exchange(&server->wants_room, false))
        offer_room(server);
    if (server->clients_changed)
        server->clients_changed(server->arg);
    if (n_before == 1 && server->last_client_left)
        server->last_client_left(server->arg);
    nbds_server_release(server);
}

void nbds_server_report_full(NbdsServer *server, NbdsFull why, uint64_t now_ns)
{
    uint64_t before = atomic_exchange(&server->full_ns[why], now_ns);
    bool is_new = !before || now_ns > before + FULL_EPISODE_NS;
    if (is_new && server->full)
        server->full(server->arg, why);
}

void nbds_server_report_tls(NbdsServer *server, const char *sentence, uint64_t now_ns)
{
    static const uint64_t PAUSE_NS = 1000000000;
    uint64_t before = server->tls_failed_ns;
    bool is_due = !before || now_ns >= before + PAUSE_NS;
    if (is_due && atomic_compare_exchange_strong(&server->tls_failed_ns, &before, now_ns) &&
        server->tls_failed)
        server->tls_failed(server->arg, sentence);
}

// --- Exports ---

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
