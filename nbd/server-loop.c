// SPDX-License-Identifier: LGPL-2.1-or-later
// How a loop's part of the server begins and ends.
#include "server-loop.h"

#include <assert.h>

// A connection takes two fibers; what all may take is left to them, up to three quarters of the
// loop's. Requests do not use up the rest either: new clients and the program itself need some.
static unsigned max_request_fibers(const Loop *loop, unsigned max_connections)
{
    unsigned max = loop_max_fibers(loop);
    uint64_t for_connections = MIN(UINT64_C(2) * max_connections, max / 4 * 3);
    return MAX((max - for_connections) / 4 * 3, 1);
}

NbdsServerLoop *nbds_server_loop_new(NbdsServer *server, const NbdsLimits *limits, Loop *loop)
{
    NbdsServerLoop *server_loop = g_new0(NbdsServerLoop, 1);
    server_loop->server = server;
    server_loop->loop = loop;
    nbds_budget_init(&server_loop->budget, loop, limits);
    server_loop->max_request_fibers = max_request_fibers(loop, limits->max_connections);
    nbds_scheduler_init(&server_loop->scheduler, loop);
    nbds_flow_init(&server_loop->handshake_flow, &server_loop->scheduler);
    return server_loop;
}

void nbds_server_loop_free(NbdsServerLoop *server_loop)
{
    assert(!server_loop->connections.head && !server_loop->handshakes.head &&
           !server_loop->free_requests);
    nbds_buffer_pool_done(&server_loop->pool);
    nbds_flow_done(&server_loop->handshake_flow);
    nbds_scheduler_done(&server_loop->scheduler);
    g_free(server_loop);
}
