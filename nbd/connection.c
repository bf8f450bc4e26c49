// SPDX-License-Identifier: LGPL-2.1-or-later
// The life of a connection.
//
//     state         leaves when                                             to
//     HANDSHAKE     GO or EXPORT_NAME succeeded                             TRANSMISSION
//                   ABORT, time out, stop, EOF, breach                      CLOSED
//     TRANSMISSION  parked for another loop, and arrived there              TRANSMISSION
//                   DISC, EOF, breach, stop, export removed, send failed    DRAINING
//     DRAINING      nothing in flight, sender ended                         CLOSED
//
// Parking: the receiver ends at a request boundary, what is in flight is answered, the sender ends.
// The connection then owns nothing of its loop, only the descriptor and the bytes that were
// received and not parsed, and is posted to another. A handshake, which leaves no such bytes, ends
// the same way. On the connection's loop.
#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handshake.h"
#include "server.h"

// How long one may take to close its side when the server stops.
static const uint64_t LINGER_NS = 1000000000ull;
// How long a client that ended its sending side may take to read the replies still due.
static const uint64_t LEAVE_TIMEOUT_NS = 30 * 1000000000ull;

static void set_state(NbdsConnection *c, NbdsState state)
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

static void cut(LoopTimer *timer)
{
    NbdsConnection *c = (NbdsConnection *)((char *)timer - offsetof(NbdsConnection, timer));
    stream_shutdown(c->stream);
}

static void limit_time(NbdsConnection *c, uint64_t ns)
{
    loop_timer_stop(c->home->loop, &c->timer);
    c->timer.fn = cut;
    loop_timer_start(c->home->loop, &c->timer, ns);
}

// No fiber of it is left, or only the calling one.
static void close_connection(NbdsConnection *c)
{
    NbdsServer *server = c->home->server;
    loop_timer_stop(c->home->loop, &c->timer);
    nbds_server_loop_remove(c->home, c);
    set_state(c, NBDS_STATE_CLOSED);
    stream_shutdown(c->stream);
    stream_free(c->stream);
    nbds_session_done(&c->session);
    nbds_receiver_done(&c->receiver);
    nbds_export_unref(c->export);
    nbds_export_unref(c->destination);
    g_free(c);
    nbds_server_leave(server);
}

// There is no fiber for it.
static void close_without_memory(NbdsConnection *c)
{
    nbds_server_report_full(c->home->server, NBDS_FULL_MEMORY, loop_now_ns(c->home->loop));
    close_connection(c);
}

// --- Draining ---

static void begin_draining(NbdsConnection *c, uint64_t timeout_ns)
{
    set_state(c, NBDS_STATE_DRAINING);
    limit_time(c, timeout_ns);
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
        begin_draining(c, timeout_ns);
        if (!c->n_executing)
            fiber_cancel(c->fiber);
        break;
    case NBDS_STATE_DRAINING: // the client is leaving already
        if (c->timer.deadline_ns > loop_now_ns(c->home->loop) + timeout_ns)
            limit_time(c, timeout_ns);
        break;
    case NBDS_STATE_CLOSED:
        break;
    }
}

void nbds_connection_finish_execution(NbdsConnection *c)
{
    assert(c->n_executing > 0);
    if (--c->n_executing == 0 && c->state == NBDS_STATE_DRAINING)
        fiber_cancel(c->fiber); // its clean-up waits for the replies
}

// --- Transmission ---

static void hand_over(NbdsConnection *c);

static void transmit(Fiber *self, NbdsConnection *c)
{
    nbds_receiver_run(self, &c->receiver);
    if (c->state == NBDS_STATE_TRANSMISSION && !c->destination)
        begin_draining(c, LEAVE_TIMEOUT_NS);
    while (c->admission.n_requests)
        fiber_queue_wait(self, &c->admission.quiet, false, "nbd: requests in flight");
    bool lingers = c->is_stopped && c->is_tcp;
    if (lingers)
        limit_time(c, LINGER_NS);
    nbds_sender_stop(self, &c->sender, lingers);
    nbds_flow_done(&c->flow);
    nbds_export_leave(c->export);
    if (c->state != NBDS_STATE_TRANSMISSION)
        return close_connection(c);
    loop_timer_stop(c->home->loop, &c->timer);
    nbds_server_loop_remove(c->home, c);
    nbds_export_unref(c->export);
    c->export = g_steal_pointer(&c->destination);
    hand_over(c);
}

void nbds_connection_move(NbdsConnection *c, NbdsExport *to, uint64_t timeout_ns)
{
    if (c->state != NBDS_STATE_TRANSMISSION || c->destination)
        return;
    c->destination = nbds_export_ref(to);
    limit_time(c, timeout_ns);
    fiber_cancel(c->fiber); // a new one continues
}

// Enters transmission on the export's loop; false when it must be closed instead.
static bool begin_transmission(NbdsConnection *c)
{
    if (nbds_server_is_stopping(c->home->server) || !nbds_export_try_enter(c->export))
        return false;
    c->receiver.connection = c;
    nbds_flow_init(&c->flow, &c->home->scheduler);
    if (nbds_sender_start(&c->sender, c) < 0) {
        nbds_server_report_full(c->home->server, NBDS_FULL_MEMORY, loop_now_ns(c->home->loop));
        nbds_export_leave(c->export);
        return false;
    }
    set_state(c, NBDS_STATE_TRANSMISSION);
    return true;
}

static void transmit_fiber(Fiber *self, void *arg)
{
    NbdsConnection *c = arg;
    if (begin_transmission(c))
        transmit(self, c);
    else
        close_connection(c);
}

static void arrive(LoopCall *call)
{
    NbdsConnection *c = (NbdsConnection *)((char *)call - offsetof(NbdsConnection, call));
    c->stream = stream_new_fd(c->home->loop, c->fd);
    nbds_server_loop_insert(c->home, c, false);
    if (fiber_spawn(c->home->loop, "nbd receiver", transmit_fiber, c, &c->fiber) < 0)
        close_without_memory(c);
}

// It is in no list. To its export's loop.
static void hand_over(NbdsConnection *c)
{
    c->fd = stream_steal_fd(c->stream);
    c->stream = NULL;
    c->fiber = NULL;
    c->home = c->export->home;
    c->call.fn = arrive;
    loop_post(c->home->loop, &c->call); // c is the other loop's from here
}

// --- Handshake ---

// On the export's loop.
static void begin_serving(Fiber *self, NbdsConnection *c)
{
    nbds_server_loop_remove(c->home, c);
    if (c->export->home != c->home)
        return hand_over(c);
    nbds_server_loop_insert(c->home, c, false);
    transmit_fiber(self, c);
}

static void handshake_fiber(Fiber *self, void *arg)
{
    NbdsConnection *c = arg;
    limit_time(c, nbds_server_limits(c->home->server)->handshake_timeout_ns);
    NbdsAgreement agreement;
    int result = nbds_handshake_run(self, c->home, c->stream, &agreement);
    loop_timer_stop(c->home->loop, &c->timer);
    if (result >= 0) {
        c->export = agreement.export;
        c->session = agreement.session;
    }
    if (result < 0 || fiber_is_cancelled(self))
        close_connection(c);
    else
        begin_serving(self, c);
}

static bool is_tcp(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    return getsockname(fd, (struct sockaddr *)&address, &len) == 0 &&
           (address.ss_family == AF_INET || address.ss_family == AF_INET6);
}

static void set_tcp_options(int fd)
{
    // Best effort: without them the client is served, only slower, or kept longer when it vanished.
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 60}, {IPPROTO_TCP, TCP_KEEPINTVL, 15},
        {IPPROTO_TCP, TCP_KEEPCNT, 4},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

void nbds_connection_start(NbdsServerLoop *home, int fd)
{
    NbdsConnection *c = g_new0(NbdsConnection, 1);
    c->is_tcp = is_tcp(fd);
    if (c->is_tcp)
        set_tcp_options(fd);
    c->home = home;
    c->stream = stream_new_fd(home->loop, fd);
    c->accepted_ns = loop_now_ns(home->loop);
    nbds_server_loop_insert(home, c, true);
    if (fiber_spawn(home->loop, "nbd handshake", handshake_fiber, c, &c->fiber) < 0)
        close_without_memory(c);
}
