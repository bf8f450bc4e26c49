// SPDX-License-Identifier: LGPL-2.1-or-later
// The states of a connection, and how it is drained.
//
//     state         leaves when                                             to
//     HANDSHAKE     GO or EXPORT_NAME succeeded                             TRANSMISSION
//                   ABORT, time out, stop, EOF, breach                      CLOSED
//     TRANSMISSION  parked for another loop, and arrived there              TRANSMISSION
//                   DISC, EOF, breach, stop, export removed, send failed    DRAINING
//     DRAINING      nothing in flight, sender ended                         CLOSED
//
// On the connection's loop.
#include "connection.h"

#include <assert.h>

void nbds_connection_set_state(NbdsConnection *c, NbdsState state)
{
    static const unsigned allowed[] = {
        [NBDS_STATE_HANDSHAKE] = 1 << NBDS_STATE_TRANSMISSION | 1 << NBDS_STATE_CLOSED,
        [NBDS_STATE_TRANSMISSION] = 1 << NBDS_STATE_TRANSMISSION | 1 << NBDS_STATE_DRAINING |
                                    1 << NBDS_STATE_CLOSED, // not arrived
        [NBDS_STATE_DRAINING] = 1 << NBDS_STATE_CLOSED,
        [NBDS_STATE_CLOSED] = 0,
    };
    assert(allowed[c->state] & (1u << state));
    c->state = state;
}

void nbds_connection_unthrottle(NbdsConnection *c)
{
    throttle_member_leave(g_steal_pointer(&c->throttle));
}

static void cut(LoopTimer *timer)
{
    NbdsConnection *c = (NbdsConnection *)((char *)timer - offsetof(NbdsConnection, timer));
    stream_shutdown(c->stream);
}

void nbds_connection_limit_time(NbdsConnection *c, uint64_t ns)
{
    loop_timer_stop(c->server_loop->loop, &c->timer);
    c->timer.fn = cut;
    loop_timer_start(c->server_loop->loop, &c->timer, ns);
}

void nbds_connection_begin_draining(NbdsConnection *c, uint64_t timeout_ns)
{
    nbds_connection_set_state(c, NBDS_STATE_DRAINING);
    nbds_connection_unthrottle(c);
    nbds_connection_limit_time(c, timeout_ns);
}

void nbds_connection_drain(NbdsConnection *c, uint64_t timeout_ns)
{
    switch (c->state) {
    case NBDS_STATE_HANDSHAKE:
        if (c->fiber)
            fiber_cancel(c->fiber);
        break;
    case NBDS_STATE_TRANSMISSION:
        c->is_stopped = true;
        nbds_connection_begin_draining(c, timeout_ns);
        if (!c->flow.n_executing)
            fiber_cancel(c->fiber);
        break;
    case NBDS_STATE_DRAINING: // the client is leaving already
        c->is_stopped = true; // nor is what it began gone on with
        if (c->timer.deadline_ns > loop_now_ns(c->server_loop->loop) + timeout_ns)
            nbds_connection_limit_time(c, timeout_ns);
        break;
    case NBDS_STATE_CLOSED:
        break;
    }
}

void nbds_connection_finish_execution(NbdsConnection *c)
{
    if (c->flow.n_executing)
        return;
    nbds_admission_excuse_execution(&c->admission);
    if (c->state == NBDS_STATE_DRAINING)
        fiber_cancel(c->fiber); // its clean-up waits for the replies
}
