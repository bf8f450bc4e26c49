// SPDX-License-Identifier: LGPL-2.1-or-later
// The list of connections on one loop, and the free lists that they share.
#include "server-loop.h"

#include <assert.h>

#include "connection.h"
#include "request.h"
#include "server.h"

// A connection takes two fibers; what all may take is left to them, up to three quarters of the
// loop's. Requests do not use up the rest either: new clients and the program itself need some.
static unsigned max_request_fibers(const Loop *loop, unsigned max_connections)
{
    unsigned max = loop_max_fibers(loop);
    uint64_t for_connections = MIN(UINT64_C(2) * max_connections, max / 4 * 3);
    return MAX((max - for_connections) / 4 * 3, 1);
}

NbdsServerLoop *nbds_server_loop_new(NbdsServer *server, Loop *loop)
{
    const NbdsLimits *limits = nbds_server_limits(server);
    NbdsServerLoop *home = g_new0(NbdsServerLoop, 1);
    home->server = server;
    home->loop = loop;
    home->budget_bytes = limits->max_loop_bytes;
    home->max_request_fibers = max_request_fibers(loop, limits->max_connections);
    nbds_scheduler_init(&home->scheduler, loop);
    nbds_flow_init(&home->handshake_flow, &home->scheduler);
    return home;
}

void nbds_server_loop_free(NbdsServerLoop *home)
{
    assert(!home->connections.first && !home->handshakes.first);
    while (home->free_requests) {
        NbdsRequest *request = home->free_requests;
        home->free_requests = request->next;
        g_free(request);
    }
    nbds_buffer_pool_done(&home->pool);
    nbds_flow_done(&home->handshake_flow);
    nbds_scheduler_done(&home->scheduler);
    g_free(home);
}

void nbds_server_loop_insert(NbdsServerLoop *home, NbdsConnection *c, bool in_handshake)
{
    NbdsConnectionList *list = in_handshake ? &home->handshakes : &home->connections;
    home->n_handshakes += in_handshake;
    c->in_handshake = in_handshake;
    c->prev = NULL;
    c->next = list->first;
    if (list->first)
        list->first->prev = c;
    else
        list->last = c;
    list->first = c;
}

void nbds_server_loop_remove(NbdsServerLoop *home, NbdsConnection *c)
{
    NbdsConnectionList *list = c->in_handshake ? &home->handshakes : &home->connections;
    if (c->prev)
        c->prev->next = c->next;
    else
        list->first = c->next;
    if (c->next)
        c->next->prev = c->prev;
    else
        list->last = c->prev;
    c->prev = c->next = NULL;
    if (c->in_handshake) {
        home->n_handshakes--;
        fiber_queue_wake_all(&home->room);
    } else if (!list->first) {
        loop_timer_stop(home->loop, &home->stall_timer);
    }
}
