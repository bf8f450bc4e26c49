// SPDX-License-Identifier: LGPL-2.1-or-later
// What is between a server that speaks TLS and libnbd:
//
//     server ══ TLS ══ secure ── two fibers ── plain ──── socket pair ──── libnbd
//
// The tunnel has said STARTTLS itself, so libnbd gets the server's greeting once more, and its
// answer, which the server has had, is dropped. On the tunnel's loop.
#include "remote/nbd-tunnel.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/tls-stream.h"
#include "format/nbd-starttls.h"

enum { RELAY_BYTES = 256 << 10 };
static const uint64_t CLOSE_NS = 1000000000; // for a server that does not read any more

struct NbdTunnel {
    Loop *loop; // NULL while it is paused
    Stream *secure, *plain;
    LoopTimer timer;  // cuts both
    size_t n_to_drop; // of what libnbd sends first
    bool is_pausing;
    Fiber *up, *down; // from and to libnbd; NULL: not running
    FiberQueue ended;
    uint8_t *up_bytes, *down_bytes;
};

// --- Passing on ---

static void cut(NbdTunnel *t)
{
    if (t->secure)
        stream_shutdown(t->secure);
    if (t->plain)
        stream_shutdown(t->plain);
}

static void time_out(LoopTimer *timer)
{
    cut((NbdTunnel *)((char *)timer - offsetof(NbdTunnel, timer)));
}

// Until one of them ends, or it is cancelled.
static void relay(Fiber *self, Stream *from, Stream *to, uint8_t *bytes, size_t *n_to_drop)
{
    ssize_t n;
    while ((n = stream_recv(self, from, bytes, RELAY_BYTES)) > 0) {
        size_t dropped = MIN((size_t)n, *n_to_drop);
        struct iovec iov = {bytes + dropped, (size_t)n - dropped};
        *n_to_drop -= dropped;
        if (stream_send(self, to, &iov, 1) < 0)
            return;
    }
}

static void end_relay(NbdTunnel *t, Fiber **which)
{
    *which = NULL;
    fiber_queue_wake_all(&t->ended);
}

static void up_fiber(Fiber *self, void *arg)
{
    NbdTunnel *t = arg;
    relay(self, t->plain, t->secure, t->up_bytes, &t->n_to_drop);
    if (!t->is_pausing) {
        stream_end_sending(t->secure);
        cut(t);
    }
    end_relay(t, &t->up);
}

static void down_fiber(Fiber *self, void *arg)
{
    NbdTunnel *t = arg;
    size_t nothing = 0;
    relay(self, t->secure, t->plain, t->down_bytes, &nothing);
    if (!t->is_pausing)
        cut(t);
    end_relay(t, &t->down);
}

static void wait_for_end(Fiber *self, NbdTunnel *t)
{
    while (t->up || t->down)
        fiber_queue_wait(self, &t->ended, false, "nbd: the end of a tunnel's fibers");
}

void nbd_tunnel_pause(Fiber *self, NbdTunnel *t)
{
    t->is_pausing = true;
    if (t->up)
        fiber_cancel(t->up);
    if (t->down)
        fiber_cancel(t->down);
    wait_for_end(self, t);
    if (!t->loop)
        return;
    stream_detach(t->secure);
    stream_detach(t->plain);
    t->loop = NULL;
}

static int start(NbdTunnel *t)
{
    t->is_pausing = false;
    int r = fiber_spawn(t->loop, "nbd client: to TLS", up_fiber, t, &t->up);
    return r < 0 ? r : fiber_spawn(t->loop, "nbd client: from TLS", down_fiber, t, &t->down);
}

int nbd_tunnel_resume(NbdTunnel *t, Loop *loop)
{
    if (t->loop)
        return 0;
    t->loop = loop;
    stream_attach(t->secure, loop);
    stream_attach(t->plain, loop);
    return start(t);
}

void nbd_tunnel_close(Fiber *self, NbdTunnel *t)
{
    if (!t)
        return;
    if (t->loop) {
        loop_timer_start(t->loop, &t->timer, CLOSE_NS);
        wait_for_end(self, t);
        loop_timer_stop(t->loop, &t->timer);
    }
    stream_free(t->secure);
    stream_free(t->plain);
    g_free(t->up_bytes);
    g_free(t->down_bytes);
    g_free(t);
}

// --- Opening ---

static int fail(Fiber *self, const NbdAddress *address, int r, GError **error)
{
    if (r == -ECANCELED && !fiber_is_cancelled(self))
        return error_set(error, -ETIMEDOUT, "%s: the server does not finish the handshake",
                         address->text);
    if (r == -ECONNRESET)
        return error_set(error, r, "%s: the server closed the connection", address->text);
    return error_set(error, r, "%s: %s", address->text, g_strerror(-r));
}

// Before TLS. `greeting` is what libnbd will get.
static int start_tls(Fiber *self, NbdTunnel *t, const NbdAddress *address,
                     uint8_t greeting[static NBD_STARTTLS_GREETING_BYTES], GError **error)
{
    uint8_t request[NBD_STARTTLS_REQUEST_BYTES], reply[NBD_STARTTLS_REPLY_BYTES];
    uint16_t flags;
    uint32_t text_bytes;
    int r = stream_recv_all(self, t->secure, greeting, NBD_STARTTLS_GREETING_BYTES);
    if (r < 0)
        return fail(self, address, r, error);
    if (!nbd_starttls_parse_greeting(greeting, &flags))
        return error_set(error, -EPROTO, "%s: the server has no options, and so no TLS",
                         address->text);
    nbd_starttls_make_request(flags, request);
    struct iovec iov = {request, sizeof request};
    r = stream_send(self, t->secure, &iov, 1);
    if (r == 0)
        r = stream_recv_all(self, t->secure, reply, sizeof reply);
    if (r < 0)
        return fail(self, address, r, error);
    const char *why = nbd_starttls_parse_reply(reply, &text_bytes);
    return why ? error_set(error, -EPROTO, "%s: the server does not begin TLS: %s", address->text,
                           why)
               : 0;
}

static int secure(Fiber *self, NbdTunnel *t, const NbdAddress *address, GError **error)
{
    g_autoptr(GError) fault = NULL;
    Stream *stream = tls_stream_new(
        t->secure,
        &(TlsStreamConfig){.creds = address->tls_creds, .hostname = address->tls_hostname}, &fault);
    t->secure = stream ? stream : t->secure;
    int r = stream ? tls_stream_handshake(self, stream, &fault) : -ENOMEM;
    if (r == -ECANCELED)
        return fail(self, address, r, error);
    return r < 0 ? error_set(error, r, "%s: %s", address->text, fault->message) : 0;
}

// libnbd's end of `plain`, where its greeting is.
static int make_pair(NbdTunnel *t, const uint8_t *greeting, int *ret_fd)
{
    int fds[2];
    t->up_bytes = g_try_malloc(RELAY_BYTES);
    t->down_bytes = g_try_malloc(RELAY_BYTES);
    if (!t->up_bytes || !t->down_bytes)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    t->plain = stream_new_fd(t->loop, fds[0]);
    ssize_t n = stream_try_send(t->plain, greeting, NBD_STARTTLS_GREETING_BYTES);
    if (n != NBD_STARTTLS_GREETING_BYTES) {
        close(fds[1]);
        return n < 0 ? (int)n : -EAGAIN;
    }
    t->n_to_drop = NBD_STARTTLS_FLAGS_BYTES;
    *ret_fd = fds[1];
    return 0;
}

int nbd_tunnel_open(Fiber *self, int fd, const NbdAddress *address, uint64_t timeout_ns,
                    NbdTunnel **ret_tunnel, int *ret_fd, GError **error)
{
    uint8_t greeting[NBD_STARTTLS_GREETING_BYTES];
    NbdTunnel *t = g_new0(NbdTunnel, 1);
    t->loop = fiber_loop(self);
    t->timer.fn = time_out;
    t->secure = stream_new_fd(t->loop, fd);
    loop_timer_start(t->loop, &t->timer, timeout_ns);
    int r = start_tls(self, t, address, greeting, error);
    if (r == 0)
        r = secure(self, t, address, error);
    loop_timer_stop(t->loop, &t->timer);
    if (r == 0) {
        r = make_pair(t, greeting, ret_fd);
        int started = r == 0 ? start(t) : r;
        if (r == 0 && started < 0)
            close(*ret_fd);
        if (started < 0)
            r = fail(self, address, started, error);
    }
    if (r < 0) {
        cut(t);
        nbd_tunnel_close(self, t);
    } else {
        *ret_tunnel = t;
    }
    return r;
}
