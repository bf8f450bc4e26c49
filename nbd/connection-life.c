// SPDX-License-Identifier: LGPL-2.1-or-later
// The life of a connection: the handshake, the transmission on its export's loop, and what is
// between loops.
//
// Parking: the receiver ends at a request boundary, what is in flight is answered, the sender ends.
// The connection then owns nothing of its loop, only its detached stream and the bytes that were
// received and not parsed, and is posted to another. A handshake, which leaves no such bytes, ends
// the same way. On the connection's loop.
#include "connection-life.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handshake.h"
#include "peer.h"
#include "receiver.h"
#include "server-state.h"
#include "throttle.h"

// How long one may take to close its side when the server stops.
static const uint64_t LINGER_NS = 1000000000ull;
// How long a client that ended its sending side may take to read the replies still due.
static const uint64_t LEAVE_TIMEOUT_NS = 30 * 1000000000ull;

static void enlist(NbdsConnection *c, GQueue *list)
{
    c->list = list;
    g_queue_push_head_link(list, &c->link);
}

static void delist(NbdsConnection *c)
{
    g_queue_unlink(c->list, &c->link);
    if (c->list == &c->server_loop->handshakes)
        fiber_queue_wake_all(&c->server_loop->room);
}

// No fiber of it is left, or only the calling one.
static void close_connection(NbdsConnection *c)
{
    NbdsServer *server = c->server_loop->server;
    loop_timer_stop(c->server_loop->loop, &c->timer);
    nbds_connection_unthrottle(c);
    delist(c);
    nbds_connection_set_state(c, NBDS_STATE_CLOSED);
    stream_end_sending(c->stream); // TLS has a last word
    stream_shutdown(c->stream);
    stream_free(c->stream);
    nbds_session_done(&c->session);
    nbds_tls_clear(&c->tls);
    nbds_peer_free(c->peer);
    nbds_receiver_free(c->receiver);
    if (c->export)
        nbds_export_client_left(c->export);
    nbds_export_unref(c->export);
    nbds_export_unref(c->destination);
    g_free(c);
    nbds_server_leave(server);
}

// There is no fiber for it.
static void close_without_memory(NbdsConnection *c)
{
    nbds_server_report_full(c->server_loop->server, NBDS_FULL_MEMORY,
                            loop_now_ns(c->server_loop->loop));
    close_connection(c);
}

// --- Transmission ---

static void hand_over(NbdsConnection *c);

static void transmit(Fiber *self, NbdsConnection *c)
{
    nbds_receiver_run(self, c->receiver);
    if (c->state == NBDS_STATE_TRANSMISSION && !c->destination)
        nbds_connection_begin_draining(c, LEAVE_TIMEOUT_NS);
    while (c->admission.n_requests)
        fiber_queue_wait(self, &c->admission.quiet, false, "nbd: requests in flight");
    bool lingers = c->is_stopped && c->is_tcp;
    if (lingers)
        nbds_connection_limit_time(c, LINGER_NS);
    nbds_sender_stop(self, &c->sender, lingers);
    nbds_admission_done(&c->admission);
    nbds_flow_done(&c->flow);
    nbds_export_leave(c->export);
    if (c->state != NBDS_STATE_TRANSMISSION)
        return close_connection(c);
    loop_timer_stop(c->server_loop->loop, &c->timer);
    delist(c);
    nbds_export_client_came(c->destination);
    nbds_export_client_left(c->export);
    nbds_export_unref(c->export);
    c->export = g_steal_pointer(&c->destination);
    hand_over(c);
}

void nbds_connection_move(NbdsConnection *c, NbdsExport *to, uint64_t timeout_ns)
{
    if (c->state != NBDS_STATE_TRANSMISSION || c->destination)
        return;
    c->destination = nbds_export_ref(to);
    nbds_connection_unthrottle(c);
    if (timeout_ns != UINT64_MAX)
        nbds_connection_limit_time(c, timeout_ns);
    fiber_cancel(c->fiber); // a new one continues
}

// Enters transmission on the export's loop; false when it must be closed instead.
static bool begin_transmission(NbdsConnection *c)
{
    if (c->server_loop->server->is_stopping || !nbds_export_try_enter(c->export))
        return false;
    nbds_flow_init(&c->flow, &c->server_loop->scheduler);
    nbds_admission_init(&c->admission, &c->server_loop->budget, &c->export->has_privileged,
                        &c->flow, c->stream);
    if (nbds_sender_start(&c->sender, c->stream, &c->admission, &c->flow) < 0) {
        nbds_server_report_full(c->server_loop->server, NBDS_FULL_MEMORY,
                                loop_now_ns(c->server_loop->loop));
        nbds_admission_done(&c->admission);
        nbds_export_leave(c->export);
        return false;
    }
    nbds_connection_set_state(c, NBDS_STATE_TRANSMISSION);
    nbds_throttle_join(c);
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

// On c->server_loop, in no list. True: it does not stay there, and is not the caller's any more.
static bool go_elsewhere(NbdsConnection *c)
{
    NbdsServerLoop *server_loop = c->export->server_loop;
    if (server_loop == c->server_loop && !c->export->is_moving)
        return false;
    if (server_loop == c->server_loop)
        g_queue_push_tail_link(&c->export->parked, &c->link);
    else
        nbds_connection_resume(c);
    return true;
}

static void arrive(LoopCall *call)
{
    NbdsConnection *c = (NbdsConnection *)((char *)call - offsetof(NbdsConnection, call));
    if (go_elsewhere(c))
        return;
    stream_attach(c->stream, c->server_loop->loop);
    enlist(c, &c->server_loop->connections);
    if (fiber_spawn(c->server_loop->loop, "nbd receiver", transmit_fiber, c, &c->fiber) < 0)
        close_without_memory(c);
}

void nbds_connection_resume(NbdsConnection *c)
{
    c->server_loop = c->export->server_loop;
    c->call.fn = arrive;
    loop_post(c->server_loop->loop, &c->call); // c is the other loop's from here
}

// It is in no list. To its export's loop.
static void hand_over(NbdsConnection *c)
{
    stream_detach(c->stream);
    c->fiber = NULL;
    if (!go_elsewhere(c))
        nbds_connection_resume(c); // the export did not move, or is back
}

// --- Handshake ---

// On the export's loop.
static void begin_serving(Fiber *self, NbdsConnection *c)
{
    delist(c);
    if (c->export->server_loop != c->server_loop || c->export->is_moving)
        return hand_over(c);
    enlist(c, &c->server_loop->connections);
    transmit_fiber(self, c);
}

static void handshake_fiber(Fiber *self, void *arg)
{
    NbdsConnection *c = arg;
    nbds_connection_limit_time(c, c->server_loop->server->limits.handshake_timeout_ns);
    NbdsAgreement agreement;
    int result = nbds_handshake_run(self, c->server_loop, &c->tls, c->peer, &c->stream, &agreement);
    loop_timer_stop(c->server_loop->loop, &c->timer);
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

void nbds_connection_start(NbdsServerLoop *server_loop, int fd, const NbdsTls *tls)
{
    NbdsConnection *c = g_new0(NbdsConnection, 1);
    c->tls = nbds_tls_copy(tls);
    if (server_loop->server->may_use)
        c->peer = nbds_peer_new(fd);
    c->is_tcp = is_tcp(fd);
    if (c->is_tcp)
        set_tcp_options(fd);
    c->server_loop = server_loop;
    c->link.data = c;
    c->receiver = nbds_receiver_new(c);
    c->stream = stream_new_fd(server_loop->loop, fd);
    c->accepted_ns = loop_now_ns(server_loop->loop);
    enlist(c, &server_loop->handshakes);
    if (fiber_spawn(server_loop->loop, "nbd handshake", handshake_fiber, c, &c->fiber) < 0)
        close_without_memory(c);
}
