// SPDX-License-Identifier: LGPL-2.1-or-later
// A libnbd handle on our loop. libnbd does no I/O by itself: it says whether it waits to read or to
// write, and is told when it can. That is done by two fibers; a request only leaves its command and
// sleeps until the callback of its completion wakes it. The handle is used by one thread, and never
// from inside a callback.
//
// The descriptor that is waited for is a duplicate: libnbd closes its own whenever it likes. A
// server that breaks the protocol kills the handle, which fails all that is in flight.
#include "remote/nbd-session.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "chain-core/fd-wait.h"
#include "chain-core/fiber-sync.h"
#include "remote/nbd-tunnel.h"

struct NbdSession {
    struct nbd_handle *handle;
    NbdTunnel *tunnel; // between the handle and a server that speaks TLS; NULL: there is none
    int fd;            // a duplicate of the handle's
    Loop *loop;
    NbdSessionFacts facts;
    bool is_lost, is_pausing;
    bool has_answered;
    bool is_broken; // the server sends more than it was asked for, and might do so for ever
    NbdSessionLostFn *lost;
    void *lost_arg;
    Fiber *reader, *writer; // NULL: not running
    FiberQueue direction_changed, ended;
};

enum {
    MAX_REQUEST_BYTES = 32 << 20, // what any server takes
    ASSUMED_MAX_BYTES = 32 << 20, // of one that does not say
};

static uint64_t max_command_bytes(const NbdSessionFacts *facts)
{
    uint64_t max = (UINT64_C(1) << 32) - 1; // the field of a header
    return max - max % facts->min_bytes;
}

// --- opening -------------------------------------------------------------------------------------

static int fail(NbdSession *s, const NbdAddress *address, GError **error)
{
    const char *why = nbd_get_error();
    int number = nbd_get_errno();
    return error_set(error, number ? -number : -ECONNABORTED, "%s: %s", address->text,
                     why ? why : "the server closed the connection");
}

static bool is_connecting(NbdSession *s)
{
    return nbd_aio_is_connecting(s->handle) == 1 || nbd_aio_is_negotiating(s->handle) == 1;
}

// Up to and with the handshake.
static int negotiate(Fiber *self, NbdSession *s, const NbdAddress *address, uint64_t timeout_ns,
                     GError **error)
{
    uint64_t end_ns = loop_now_ns(s->loop) + timeout_ns;
    while (is_connecting(s)) {
        unsigned direction = nbd_aio_get_direction(s->handle);
        short events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                       (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
        uint64_t now_ns = loop_now_ns(s->loop);
        int r = now_ns < end_ns ? fd_wait(self, s->fd, events, end_ns - now_ns) : -ETIMEDOUT;
        if (r < 0)
            return error_set(error, r, "%s: the server does not finish the handshake: %s",
                             address->text, g_strerror(-r));
        struct pollfd ready = {.fd = s->fd, .events = events};
        if (poll(&ready, 1, 0) < 0)
            ready.revents = 0;
        if (ready.revents & (POLLIN | POLLHUP | POLLERR) && direction & LIBNBD_AIO_DIRECTION_READ)
            r = nbd_aio_notify_read(s->handle);
        else if (ready.revents & POLLOUT)
            r = nbd_aio_notify_write(s->handle);
        else if (ready.revents)
            return error_set(error, -ECONNRESET, "%s: the server closed the connection",
                             address->text);
        if (r < 0)
            return fail(s, address, error);
    }
    return nbd_aio_is_ready(s->handle) == 1 ? 0 : fail(s, address, error);
}

static bool is_power_of_two(uint64_t n)
{
    return n && !(n & (n - 1));
}

// A server may say anything.
static int learn_facts(NbdSession *s, const NbdAddress *address, GError **error)
{
    struct nbd_handle *h = s->handle;
    int64_t size = nbd_get_size(h);
    int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t preferred = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
    if (size < 0)
        return fail(s, address, error);
    min = min <= 0 ? 1 : min;
    max = max <= 0 ? ASSUMED_MAX_BYTES : max;
    if (!is_power_of_two((uint64_t)min) || min > 64 << 10 || max < min)
        return error_set(error, -EPROTO, "%s: the server's block sizes make no sense",
                         address->text);
    bool is_good = is_power_of_two((uint64_t)preferred) && preferred <= 2 << 20;
    s->facts = (NbdSessionFacts){
        .size_bytes = (uint64_t)size - (uint64_t)size % (uint64_t)min,
        .read_only = nbd_is_read_only(h) == 1,
        .can_flush = nbd_can_flush(h) == 1,
        .can_fua = nbd_can_fua(h) == 1,
        .can_trim = nbd_can_trim(h) == 1,
        .can_zero = nbd_can_zero(h) == 1,
        .can_fast_zero = nbd_can_fast_zero(h) == 1,
        .has_status = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1,
        .min_bytes = (uint32_t)min,
        .preferred_bytes = is_good ? (uint32_t)MAX(preferred, min) : (uint32_t)MAX(min, 4096),
        .max_bytes = (uint32_t)MIN(max - max % min, MAX_REQUEST_BYTES),
    };
    return 0;
}

// Takes `fd`.
static int set_up(NbdSession *s, const NbdAddress *address, int fd, GError **error)
{
    s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    s->handle = s->fd >= 0 ? nbd_create() : NULL;
    if (!s->handle) {
        close(fd);
        return error_set(error, -ENOMEM, "%s: no descriptor or memory for it", address->text);
    }
    if (nbd_set_export_name(s->handle, address->export_name) < 0 ||
        nbd_add_meta_context(s->handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0) {
        close(fd);
        return fail(s, address, error);
    }
    return nbd_aio_connect_socket(s->handle, fd) < 0 ? fail(s, address, error) : 0;
}

int nbd_session_open(Fiber *self, const NbdAddress *address, uint64_t timeout_ns,
                     NbdSession **ret_session, GError **error)
{
    int fd = nbd_address_connect(self, address, timeout_ns, error);
    if (fd < 0)
        return fd;
    NbdTunnel *tunnel = NULL;
    int r = address->tls_creds ? nbd_tunnel_open(self, fd, address, timeout_ns, &tunnel, &fd, error)
                               : 0;
    if (r < 0)
        return r;
    NbdSession *s = g_new0(NbdSession, 1);
    s->loop = fiber_loop(self);
    s->tunnel = tunnel;
    r = set_up(s, address, fd, error);
    if (r == 0)
        r = negotiate(self, s, address, timeout_ns, error);
    if (r == 0)
        r = learn_facts(s, address, error);
    if (r < 0)
        nbd_session_close(self, s);
    else
        *ret_session = s;
    return r;
}

const NbdSessionFacts *nbd_session_facts(const NbdSession *session)
{
    return &session->facts;
}

bool nbd_session_has_answered(const NbdSession *session)
{
    return session->has_answered;
}

// --- driving the handle --------------------------------------------------------------------------

// Once it is dead, which has failed all that was in flight.
static bool note_lost(NbdSession *s)
{
    if (nbd_aio_is_dead(s->handle) != 1 && nbd_aio_is_closed(s->handle) != 1)
        return s->is_lost;
    if (!s->is_lost) {
        s->is_lost = true;
        fiber_queue_wake_all(&s->direction_changed);
        if (s->reader)
            fiber_cancel(s->reader);
        if (s->writer)
            fiber_cancel(s->writer);
        if (s->lost)
            s->lost(s->lost_arg);
    }
    return true;
}

// Waits until libnbd wants to `direction`. False: it is time to end.
static bool wait_direction(Fiber *self, NbdSession *s, unsigned direction)
{
    while (!s->is_pausing && !note_lost(s)) {
        if (nbd_aio_get_direction(s->handle) & direction)
            return true;
        if (fiber_queue_wait(self, &s->direction_changed, true, "nbd: nothing to do") < 0)
            return false;
    }
    return false;
}

static void end_fiber(NbdSession *s, Fiber **which)
{
    *which = NULL;
    fiber_queue_wake_all(&s->ended);
}

// Whoever waits for an answer is told that there will be none: the end of the stream kills the
// handle, which calls back for each command.
static void kill_handle(NbdSession *s)
{
    shutdown(s->fd, SHUT_RDWR);
    for (unsigned i = 0; i < 64 && nbd_aio_is_dead(s->handle) == 0 &&
                         nbd_aio_is_closed(s->handle) == 0 && nbd_aio_is_created(s->handle) == 0;
         i++) {
        if (nbd_aio_get_direction(s->handle) & LIBNBD_AIO_DIRECTION_READ)
            nbd_aio_notify_read(s->handle);
        else
            nbd_aio_notify_write(s->handle);
    }
}

static void read_fiber(Fiber *self, void *arg)
{
    NbdSession *s = arg;
    while (wait_direction(self, s, LIBNBD_AIO_DIRECTION_READ)) {
        if (fd_wait(self, s->fd, POLLIN, 0) == -ECANCELED)
            break;
        if (nbd_aio_get_direction(s->handle) & LIBNBD_AIO_DIRECTION_READ)
            nbd_aio_notify_read(s->handle);
        if (s->is_broken)
            kill_handle(s);
        fiber_queue_wake_all(&s->direction_changed);
    }
    note_lost(s);
    end_fiber(s, &s->reader);
}

static void write_fiber(Fiber *self, void *arg)
{
    NbdSession *s = arg;
    while (wait_direction(self, s, LIBNBD_AIO_DIRECTION_WRITE)) {
        if (fd_wait(self, s->fd, POLLOUT, 0) == -ECANCELED)
            break;
        if (nbd_aio_get_direction(s->handle) & LIBNBD_AIO_DIRECTION_WRITE)
            nbd_aio_notify_write(s->handle);
        fiber_queue_wake_all(&s->direction_changed);
    }
    end_fiber(s, &s->writer);
}

int nbd_session_start(NbdSession *s, Loop *loop, NbdSessionLostFn *lost, void *arg)
{
    s->loop = loop;
    s->lost = lost;
    s->lost_arg = arg;
    s->is_pausing = false;
    int r = s->tunnel ? nbd_tunnel_resume(s->tunnel, loop) : 0;
    if (r == 0)
        r = fiber_spawn(s->loop, "nbd client: receives", read_fiber, s, &s->reader);
    if (r == 0)
        r = fiber_spawn(s->loop, "nbd client: sends", write_fiber, s, &s->writer);
    return r;
}

static void end_fibers(Fiber *self, NbdSession *s)
{
    s->is_pausing = true;
    if (s->reader)
        fiber_cancel(s->reader);
    if (s->writer)
        fiber_cancel(s->writer);
    while (s->reader || s->writer)
        fiber_queue_wait(self, &s->ended, false, "nbd: the end of a connection's fibers");
}

void nbd_session_pause(Fiber *self, NbdSession *s)
{
    end_fibers(self, s);
    if (s->tunnel)
        nbd_tunnel_pause(self, s->tunnel);
}

void nbd_session_cut(NbdSession *s)
{
    kill_handle(s);
    note_lost(s);
}

void nbd_session_close(Fiber *self, NbdSession *s)
{
    if (!s)
        return;
    s->lost = NULL;
    end_fibers(self, s);
    if (s->handle) {
        if (nbd_aio_is_ready(s->handle) == 1) // the polite end
            nbd_aio_disconnect(s->handle, 0);
        kill_handle(s);
        nbd_close(s->handle);
    }
    if (s->fd >= 0)
        close(s->fd);
    nbd_tunnel_close(self, s->tunnel);
    g_free(s);
}

// --- requests ------------------------------------------------------------------------------------

typedef struct Request {
    Fiber *fiber;
    NbdSession *session;
    bool is_done;
    int error;      // positive
    uint64_t bytes; // of a read: what came
    size_t len;     // and what was asked for
} Request;

static int completed(void *user_data, int *error)
{
    Request *request = user_data;
    request->is_done = true;
    request->error = *error;
    request->session->has_answered |= *error != ENOTCONN; // which is how libnbd gives up a command
    fiber_wake(request->fiber);
    return 1; // it is retired
}

// `cookie` of the command, of which `request` hears.
static int await(Fiber *self, NbdSession *s, Request *request, int64_t cookie)
{
    if (cookie < 0)
        return note_lost(s) ? -ENOTCONN : -(nbd_get_errno() ?: EIO);
    // It has begun to send, and may wait for the socket, or have found it closed.
    if (!note_lost(s))
        fiber_queue_wake_all(&s->direction_changed);
    while (!request->is_done)
        fiber_suspend(self, "nbd: an answer");
    if (request->error && nbd_aio_is_dead(s->handle) == 1)
        return -ENOTCONN;
    return -request->error;
}

#define COMPLETION(request)                                                                        \
    (nbd_completion_callback)                                                                      \
    {                                                                                              \
        .callback = completed, .user_data = request                                                \
    }

// libnbd sees to it that a piece lies within what was asked for, not that the pieces are all of
// that.
static int count_piece(void *user_data, const void *piece, size_t len, uint64_t off,
                       unsigned status, int *error)
{
    Request *request = user_data;
    if (status != LIBNBD_READ_ERROR)
        request->bytes += len;
    if (request->bytes > request->len)
        request->session->is_broken = true;
    return 0;
}

int nbd_session_read(Fiber *self, NbdSession *s, uint64_t off, void *buf, size_t len)
{
    Request request = {.fiber = self, .session = s, .len = len};
    nbd_chunk_callback count = {.callback = count_piece, .user_data = &request};
    int r =
        await(self, s, &request,
              nbd_aio_pread_structured(s->handle, buf, len, off, count, COMPLETION(&request), 0));
    return r == 0 && request.bytes != len ? -EIO : r;
}

int nbd_session_write(Fiber *self, NbdSession *s, uint64_t off, const void *buf, size_t len,
                      bool is_fua)
{
    Request request = {.fiber = self, .session = s};
    return await(self, s, &request,
                 nbd_aio_pwrite(s->handle, buf, len, off, COMPLETION(&request),
                                is_fua ? LIBNBD_CMD_FLAG_FUA : 0));
}

int nbd_session_zero(Fiber *self, NbdSession *s, uint64_t off, uint64_t len, NodeIoFlags flags)
{
    Request request = {.fiber = self, .session = s};
    uint32_t nbd_flags = (flags & NODE_IO_FUA ? LIBNBD_CMD_FLAG_FUA : 0) |
                         (flags & NODE_IO_NO_UNMAP ? LIBNBD_CMD_FLAG_NO_HOLE : 0) |
                         (flags & NODE_IO_FAST_ZERO ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
    return await(self, s, &request,
                 nbd_aio_zero(s->handle, len, off, COMPLETION(&request), nbd_flags));
}

int nbd_session_trim(Fiber *self, NbdSession *s, uint64_t off, uint64_t len, bool is_fua)
{
    Request request = {.fiber = self, .session = s};
    return await(
        self, s, &request,
        nbd_aio_trim(s->handle, len, off, COMPLETION(&request), is_fua ? LIBNBD_CMD_FLAG_FUA : 0));
}

int nbd_session_flush(Fiber *self, NbdSession *s)
{
    Request request = {.fiber = self, .session = s};
    return await(self, s, &request, nbd_aio_flush(s->handle, COMPLETION(&request), 0));
}

// Of base:allocation; what of the first entries is alike is one extent.
static int take_extents(void *user_data, const char *context, uint64_t off, uint32_t *entries,
                        size_t n_entries, int *error)
{
    NbdExtent *extent = user_data;
    if (!g_str_equal(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return 0;
    extent->len = 0;
    for (size_t i = 0; i + 1 < n_entries && (!i || entries[i + 1] == extent->flags); i += 2) {
        extent->flags = entries[i + 1];
        extent->len += entries[i];
    }
    return 0;
}

int nbd_session_status(Fiber *self, NbdSession *s, uint64_t off, uint64_t len,
                       NbdExtent *ret_extent)
{
    Request request = {.fiber = self, .session = s};
    NbdExtent extent = {0};
    nbd_extent_callback take = {.callback = take_extents, .user_data = &extent};
    len = MIN(len, max_command_bytes(&s->facts));
    int r = await(self, s, &request,
                  nbd_aio_block_status(s->handle, len, off, take, COMPLETION(&request), 0));
    if (r < 0)
        return r;
    if (!extent.len)
        return -EIO;
    *ret_extent = (NbdExtent){MIN(extent.len, len), extent.flags};
    return 0;
}
