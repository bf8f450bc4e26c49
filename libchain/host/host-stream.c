// SPDX-License-Identifier: LGPL-2.1-or-later
// Sockets. A receive is a ring operation: handed over with whatever else the turn submitted, it
// completes at once when data is there, and otherwise when some comes. What was coalesced is
// received at once. A send is a ring operation too (see docs/performance.md for what was measured),
// unless somebody waits for it (docs/scheduling.md). Cancelling asks the kernel to end the
// operation and waits for its completion: until then the buffer is the kernel's. On the stream's
// loop.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/backlog.h"
#include "host/host-loop.h"
#include "io/stream-private.h"
#include "loop/valgrind-hints.h"

// One operation and the fiber that waits for it.
typedef struct SocketOp {
    LoopOp op;
    HostLoop *host;
    Fiber *fiber;
    bool is_pending, is_cancelling;
    int result;
} SocketOp;

typedef struct HostStream {
    Stream stream;
    int fd;
    bool is_drained; // the last receive got less than it asked for
    Backlog backlog;
    LoopTimer timeout; // of let_peer_read()
    SocketOp recv, send, writable;
} HostStream;

typedef struct HostListener {
    StreamListener listener;
    int fd;
    SocketOp accept;
} HostListener;

static void op_done(LoopOp *op, int result)
{
    SocketOp *o = (SocketOp *)op;
    o->is_pending = false;
    o->result = result;
    fiber_wake(o->fiber);
}

static void op_cancel(SocketOp *o)
{
    if (!o->is_pending || o->is_cancelling)
        return;
    o->is_cancelling = true;
    host_ring_cancel(&o->host->ring, &o->op);
}

static void op_cancel_fn(Fiber *fiber, void *arg)
{
    op_cancel(arg);
}

static struct io_uring_sqe *op_start(SocketOp *o, Fiber *self)
{
    o->fiber = self;
    o->is_pending = true;
    o->is_cancelling = false;
    return host_ring_get_sqe(&o->host->ring, &o->op);
}

static int op_wait(SocketOp *o, Fiber *self, const char *where)
{
    bool armed = fiber_begin_cancellable(self, op_cancel_fn, o);
    assert(armed); // stream.c looked
    while (o->is_pending)
        fiber_suspend(self, where);
    fiber_end_cancellable(self);
    if (o->result < 0 && o->is_cancelling)
        return -ECANCELED;
    return o->result;
}

static void op_init(SocketOp *o, Loop *loop)
{
    *o = (SocketOp){.op.done = op_done, .host = (HostLoop *)loop};
}

// The ring waits for a socket only when that is blocking.
static int set_blocking(int fd, bool is_blocking)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = is_blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

// --- streams -------------------------------------------------------------------------------------

static bool is_unix(int fd)
{
    int domain = 0;
    socklen_t len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

static void set_send_buffer(HostStream *s, uint32_t wanted_bytes)
{
    int bytes = (int)wanted_bytes / 2; // the kernel doubles it: socket(7)
    socklen_t len = sizeof bytes;
    setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    if (getsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &bytes, &len) == 0)
        s->backlog.buffer_bytes = (uint32_t)bytes;
}

static void read_timed_out(LoopTimer *timer)
{
    HostStream *s = (HostStream *)((char *)timer - offsetof(HostStream, timeout));
    backlog_timed_out(&s->backlog);
    op_cancel(&s->writable);
}

// Waits until the peer has read most of what it was sent, if it has much to read (backlog.h). Not
// for long: a peer may send more than the sockets hold before it reads. True if it waited.
static bool let_peer_read(Fiber *self, HostStream *s)
{
    enum { TIMEOUT_NS = 5000000 };
    int unread;
    if (!backlog_shall_look(&s->backlog) || ioctl(s->fd, SIOCOUTQ, &unread) < 0)
        return false;
    bool shall_wait = backlog_learn(&s->backlog, (uint32_t)unread, s->stream.unsent_bytes);
    uint32_t buffer_bytes = backlog_better_buffer(&s->backlog);
    if (buffer_bytes)
        set_send_buffer(s, buffer_bytes);
    if (!shall_wait)
        return false;
    struct io_uring_sqe *sqe = op_start(&s->writable, self);
    io_uring_prep_poll_add(sqe, s->fd, POLLOUT);
    loop_timer_start(s->stream.loop, &s->timeout, TIMEOUT_NS);
    op_wait(&s->writable, self, "receive: lets the peer read first");
    loop_timer_stop(s->stream.loop, &s->timeout);
    return true;
}

// What has come while the peer was left to read: bytes, 0 at the end, -EAGAIN or -ECANCELED.
static ssize_t recv_coalesced(Fiber *self, HostStream *s, void *buf, size_t len)
{
    if (!let_peer_read(self, s))
        return -EAGAIN;
    if (fiber_is_cancelled(self) || s->stream.is_shut_down)
        return -ECANCELED;
    ssize_t n = recv(s->fd, buf, len, MSG_DONTWAIT);
    s->is_drained = n < (ssize_t)len;
    return n < 0 ? -EAGAIN : n; // the ring will find out
}

static ssize_t host_recv(Fiber *self, Stream *stream, void *buf, size_t len)
{
    HostStream *s = (HostStream *)stream;
    len = MIN(len, INT_MAX);
    ssize_t n = stream->is_coalescing ? recv_coalesced(self, s, buf, len) : -EAGAIN;
    if (n != -EAGAIN)
        return n;
    struct io_uring_sqe *sqe = op_start(&s->recv, self);
    io_uring_prep_recv(sqe, s->fd, buf, len, 0);
    if (s->is_drained)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; // rather than to try first
    n = op_wait(&s->recv, self, "receive");
    s->is_drained = n > 0 && (size_t)n < len;
    if (n > 0)
        (void)VALGRIND_MAKE_MEM_DEFINED(buf, (size_t)n);
    if (n == 0 && stream->is_shut_down)
        return -ECANCELED;
    return n;
}

static ssize_t host_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov)
{
    HostStream *s = (HostStream *)stream;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = MIN(n_iov, IOV_MAX)};
    struct io_uring_sqe *sqe = op_start(&s->send, self);
    if (n_iov == 1)
        io_uring_prep_send(sqe, s->fd, iov->iov_base, MIN(iov->iov_len, INT_MAX),
                           MSG_NOSIGNAL | MSG_WAITALL);
    else
        io_uring_prep_sendmsg(sqe, s->fd, &msg, MSG_NOSIGNAL | MSG_WAITALL);
    int n = op_wait(&s->send, self, "send");
    if (n > 0)
        backlog_sent(&s->backlog, (size_t)n);
    return n;
}

static ssize_t host_try_send(Stream *stream, const void *buf, size_t len)
{
    HostStream *s = (HostStream *)stream;
    ssize_t n = send(s->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    backlog_sent(&s->backlog, (size_t)n);
    // The kernel likes to wake the peer on the sender's processor, where it would wait until this
    // thread sleeps or the timer ticks.
    sched_yield();
    return n;
}

static void host_shutdown(Stream *stream)
{
    HostStream *s = (HostStream *)stream;
    shutdown(s->fd, SHUT_RDWR);
    op_cancel(&s->recv);
    op_cancel(&s->send);
    op_cancel(&s->writable);
}

static void host_end_sending(Stream *stream)
{
    shutdown(((HostStream *)stream)->fd, SHUT_WR);
}

static void stream_release(Stream *stream)
{
    HostStream *s = (HostStream *)stream;
    close(s->fd);
    g_free(s);
}

static void host_attach(Stream *stream, Loop *loop)
{
    HostStream *s = (HostStream *)stream;
    op_init(&s->recv, loop);
    op_init(&s->send, loop);
    op_init(&s->writable, loop);
}

static const StreamOps host_stream_ops = {
    .recv = host_recv,
    .send = host_send,
    .try_send = host_try_send,
    .shutdown = host_shutdown,
    .end_sending = host_end_sending,
    .attach = host_attach,
    .free = stream_release,
};

Stream *stream_new_fd(Loop *loop, int fd)
{
    HostStream *s = g_new0(HostStream, 1);
    s->stream.ops = &host_stream_ops;
    s->stream.loop = loop;
    s->fd = fd;
    host_attach(&s->stream, loop);
    s->timeout.fn = read_timed_out;
    if (is_unix(fd)) { // others do not tell what the peer has read
        s->backlog.asked_bytes = BACKLOG_MAX_BUFFER;
        set_send_buffer(s, BACKLOG_MAX_BUFFER);
    }
    set_blocking(fd, true);
    return &s->stream;
}

// --- listeners -----------------------------------------------------------------------------------

static int host_accept(Fiber *self, StreamListener *listener)
{
    HostListener *l = (HostListener *)listener;
    struct io_uring_sqe *sqe = op_start(&l->accept, self);
    io_uring_prep_accept(sqe, l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return op_wait(&l->accept, self, "accept");
}

static void listener_shutdown(StreamListener *listener)
{
    HostListener *l = (HostListener *)listener;
    op_cancel(&l->accept);
}

static void listener_release(StreamListener *listener)
{
    HostListener *l = (HostListener *)listener;
    close(l->fd);
    g_free(l);
}

static const StreamListenerOps host_listener_ops = {
    .accept = host_accept,
    .shutdown = listener_shutdown,
    .free = listener_release,
};

StreamListener *stream_listener_new_fd(Loop *loop, int fd)
{
    HostListener *l = g_new0(HostListener, 1);
    l->listener.ops = &host_listener_ops;
    l->listener.loop = loop;
    l->fd = fd;
    op_init(&l->accept, loop);
    set_blocking(fd, true);
    return &l->listener;
}
