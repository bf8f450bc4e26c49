// SPDX-License-Identifier: LGPL-2.1-or-later
// The list of connections on one loop, and the free lists that they share.
#include "server-loop.h"

#include <assert.h>

#include "connection.h"
#include "request.h"

NbdsServerLoop *nbds_server_loop_new(NbdsServer *server, Loop *loop, uint64_t max_loop_bytes)
{
    NbdsServerLoop *home = g_new0(NbdsServerLoop, 1);
    home->server = server;
    home->loop = loop;
    home->budget_bytes = max_loop_bytes;
    return home;
}

void nbds_server_loop_free(NbdsServerLoop *home)
{
    assert(!home->connections);
    while (home->free_requests) {
        NbdsRequest *request = home->free_requests;
        home->free_requests = request->next;
        g_free(request);
    }
    nbds_buffer_pool_done(&home->pool);
    g_free(home);
}

void nbds_server_loop_insert(NbdsServerLoop *home, NbdsConnection *connection)
{
    connection->prev = NULL;
    connection->next = home->connections;
    if (home->connections)
        home->connections->prev = connection;
    else
        home->last_connection = connection;
    home->connections = connection;
}

void nbds_server_loop_remove(NbdsServerLoop *home, NbdsConnection *connection)
{
    if (connection->prev)
        connection->prev->next = connection->next;
    else
        home->connections = connection->next;
    if (connection->next)
        connection->next->prev = connection->prev;
    else
        home->last_connection = connection->prev;
    connection->prev = connection->next = NULL;
    if (!home->connections) {
        loop_timer_stop(home->loop, &home->stall_timer);
        nbds_pace_stop(home->loop, &home->pace);
    }
}
