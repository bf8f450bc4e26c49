// SPDX-License-Identifier: LGPL-2.1-or-later
// Accepting clients, and what happens when there is no room for one.
#include "listener.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "chain-core/remote-call.h"
#include "chain-core/stream.h"
#include "connection-life.h"
#include "server-state.h"

// When the host has no descriptor or memory left.
static const uint64_t ACCEPT_RETRY_NS = 50000000;
// Descriptors may become free without a client that leaves.
static const uint64_t RETRY_NS = 1000000000;

struct NbdsListener {
    NbdsServerLoop *server_loop;
    NbdsTls tls;
    int fd;                 // before it started
    StreamListener *stream; // while it runs
    Fiber *fiber;           // likewise
    LoopCall start_call, stop_call;
    LoopTimer retry_timer;
    Fiber *remover; // waits for its end; of any loop
    LoopCall ended_call;
    bool has_ended; // on the remover's loop
};

// --- Room ---

// Descriptors are numbered from the lowest free one on, so the number of a client's tells how many
// are in use. The last eighth is left to images and jobs.
static unsigned first_reserved_descriptor(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > INT_MAX)
        return INT_MAX;
    return limit.rlim_cur - CLAMP(limit.rlim_cur / 8, 1, 1024);
}

// Moves `*fd` below what is reserved if it can.
static bool has_descriptor(int *fd)
{
    unsigned end = first_reserved_descriptor();
    if ((unsigned)*fd < end)
        return true;
    int lowest = fcntl(*fd, F_DUPFD_CLOEXEC, 0);
    if (lowest < 0)
        return false;
    bool is_free = (unsigned)lowest < end;
    close(is_free ? *fd : lowest);
    if (is_free)
        *fd = lowest;
    return is_free;
}

// NBDS_FULL_NOT: the server counts one client more, which has `*fd`.
static NbdsFull try_admit(NbdsListener *l, int *fd)
{
    NbdsServer *server = l->server_loop->server;
    if (l->server_loop->handshakes.length >= server->limits.max_handshakes)
        return NBDS_FULL_HANDSHAKES;
    if (!has_descriptor(fd))
        return NBDS_FULL_DESCRIPTORS;
    return nbds_server_try_enter(server) ? NBDS_FULL_NOT : NBDS_FULL_CONNECTIONS;
}

static void retry(LoopTimer *timer)
{
    NbdsListener *l = (NbdsListener *)((char *)timer - offsetof(NbdsListener, retry_timer));
    fiber_queue_wake_all(&l->server_loop->room);
}

// How long a handshake may yet go on when others want its place.
static uint64_t grace_left_ns(const NbdsConnection *c)
{
    uint64_t grace = c->server_loop->server->limits.handshake_grace_ns;
    uint64_t age = loop_now_ns(c->server_loop->loop) - c->accepted_ns;
    return grace - MIN(age, grace);
}

// Tells the server, drops the oldest handshake or has the listener look again when it may be.
static void meet_full(NbdsListener *l, NbdsFull full)
{
    NbdsServerLoop *server_loop = l->server_loop;
    uint64_t retry_ns = RETRY_NS;
    const NbdsConnection *oldest = g_queue_peek_tail(&server_loop->handshakes);
    if (oldest) {
        uint64_t grace_ns = grace_left_ns(oldest);
        if (!grace_ns) {
            stream_shutdown(oldest->stream); // its end wakes the listener
            nbds_server_report_full(server_loop->server, NBDS_FULL_HANDSHAKES,
                                    loop_now_ns(server_loop->loop));
        } else {
            retry_ns = MIN(retry_ns, grace_ns);
        }
    }
    if (full != NBDS_FULL_HANDSHAKES)
        nbds_server_report_full(server_loop->server, full, loop_now_ns(server_loop->loop));
    loop_timer_stop(server_loop->loop, &l->retry_timer);
    loop_timer_start(server_loop->loop, &l->retry_timer, retry_ns);
}

// 0 when a client was admitted that has `*fd`, or -ECANCELED.
static int wait_for_room(Fiber *self, NbdsListener *l, int *fd)
{
    NbdsFull full;
    while ((full = try_admit(l, fd)) != NBDS_FULL_NOT) {
        if (nbds_server_want_room(l->server_loop))
            continue;
        meet_full(l, full);
        int result =
            fiber_queue_wait(self, &l->server_loop->room, true, "nbd: no room for a client");
        if (result < 0)
            return result;
    }
    return 0;
}

// --- Accepting ---

static void report_failure(NbdsListener *l, int error)
{
    uint64_t now = loop_now_ns(l->server_loop->loop);
    if (error == -EMFILE || error == -ENFILE)
        nbds_server_report_full(l->server_loop->server, NBDS_FULL_DESCRIPTORS, now);
    else if (error == -ENOMEM || error == -ENOBUFS)
        nbds_server_report_full(l->server_loop->server, NBDS_FULL_MEMORY, now);
}

static void accept_clients(Fiber *self, NbdsListener *l)
{
    for (;;) {
        int fd = stream_accept(self, l->stream);
        if (fd < 0 && !fiber_is_cancelled(self)) {
            report_failure(l, fd);
            fiber_sleep(self, ACCEPT_RETRY_NS);
        } else if (fd < 0) {
            return;
        } else if (fiber_is_cancelled(self) || wait_for_room(self, l, &fd) < 0) {
            close(fd);
            return;
        } else {
            nbds_connection_start(l->server_loop, fd, &l->tls);
        }
    }
}

static void listener_fiber(Fiber *self, void *arg)
{
    NbdsListener *l = arg;
    accept_clients(self, l);
    loop_timer_stop(l->server_loop->loop, &l->retry_timer);
    stream_listener_free(l->stream);
    l->stream = NULL;
    l->fiber = NULL;
    NbdsServer *server = l->server_loop->server;
    if (l->remover)
        loop_post(fiber_loop(l->remover), &l->ended_call); // l is the other loop's from here
    nbds_server_release(server);
}

// --- Life ---

static void start(LoopCall *call)
{
    NbdsListener *l = (NbdsListener *)((char *)call - offsetof(NbdsListener, start_call));
    NbdsServer *server = l->server_loop->server;
    if (server->is_stopping) {
        close(l->fd);
        nbds_server_release(server);
        return;
    }
    l->stream = stream_listener_new_fd(l->server_loop->loop, l->fd);
    if (fiber_spawn(l->server_loop->loop, "nbd listener", listener_fiber, l, &l->fiber) < 0) {
        g_clear_pointer(&l->stream, stream_listener_free);
        nbds_server_release(server);
    }
}

static void stop(LoopCall *call)
{
    NbdsListener *l = (NbdsListener *)((char *)call - offsetof(NbdsListener, stop_call));
    if (l->fiber)
        fiber_cancel(l->fiber);
}

NbdsListener *nbds_listener_new(NbdsServerLoop *server_loop, int fd, const NbdsTls *tls)
{
    NbdsListener *l = g_new0(NbdsListener, 1);
    l->tls = nbds_tls_copy(tls);
    l->server_loop = server_loop;
    l->fd = fd;
    l->start_call.fn = start;
    l->stop_call.fn = stop;
    l->retry_timer.fn = retry;
    return l;
}

void nbds_listener_free(NbdsListener *l)
{
    assert(!l->fiber);
    nbds_tls_clear(&l->tls);
    g_free(l);
}

void nbds_listener_start(NbdsListener *l)
{
    nbds_server_hold(l->server_loop->server);
    loop_post(l->server_loop->loop, &l->start_call);
}

void nbds_listener_stop(NbdsListener *l)
{
    loop_post(l->server_loop->loop, &l->stop_call);
}

// After start(), which was posted to this loop before.
static void begin_end(void *arg)
{
    NbdsListener *l = arg;
    if (l->fiber)
        fiber_cancel(l->fiber);
    else
        l->has_ended = true;
}

static void ended(LoopCall *call)
{
    NbdsListener *l = (NbdsListener *)((char *)call - offsetof(NbdsListener, ended_call));
    l->has_ended = true;
    fiber_wake(l->remover);
}

void nbds_listener_end(Fiber *self, NbdsListener *l)
{
    l->remover = self;
    l->ended_call.fn = ended;
    remote_call_plain(self, l->server_loop->loop, begin_end, l);
    while (!l->has_ended)
        fiber_suspend(self, "nbd: a listener's end");
}

typedef struct TlsChange {
    NbdsListener *listener;
    NbdsTls tls;
} TlsChange;

static void change_tls(void *arg)
{
    TlsChange *change = arg;
    NbdsTls before = change->listener->tls;
    change->listener->tls = change->tls;
    change->tls = before;
}

void nbds_listener_set_tls(Fiber *self, NbdsListener *l, const NbdsTls *tls)
{
    TlsChange change = {l, nbds_tls_copy(tls)};
    remote_call_plain(self, l->server_loop->loop, change_tls, &change);
    nbds_tls_clear(&change.tls);
}
