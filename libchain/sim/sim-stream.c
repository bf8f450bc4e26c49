// SPDX-License-Identifier: LGPL-2.1-or-later
// Simulated streams: a pair of pipes on one loop. Bytes travel for a while; each transfer moves as
// many of them as the seed likes; a sender waits while the pipe is full. On the streams' loop.
#include <errno.h>
#include <string.h>

#include "io/stream-private.h"
#include "sim/sim-private.h"

enum { PIPE_MAX_BYTES = 64 * 1024 };

// One direction.
typedef struct Pipe {
    uint32_t n_refs;          // its two ends and each Arrival
    GByteArray *bytes;        // sent, not yet received
    size_t n_arrived;         // of `bytes`, what the receiver can have
    size_t capacity_bytes;    // of `bytes`
    bool has_receiver;        // somebody may still take bytes out
    bool has_sender;          // bytes may still come
    Fiber *receiver, *sender; // waiting now
} Pipe;

typedef struct SimStream {
    Stream stream;
    Sim *sim;
    Pipe *in, *out;
} SimStream;

// Bytes on their way.
typedef struct Arrival {
    SimEvent event;
    Pipe *pipe;
    size_t n;
} Arrival;

static Pipe *pipe_new(Sim *sim)
{
    Pipe *pipe = g_new0(Pipe, 1);
    pipe->n_refs = 2;
    pipe->bytes = g_byte_array_new();
    pipe->capacity_bytes = 1 + sim_random_below(&sim->random, PIPE_MAX_BYTES);
    pipe->has_receiver = pipe->has_sender = true;
    return pipe;
}

static void pipe_unref(Pipe *pipe)
{
    if (--pipe->n_refs > 0)
        return;
    g_byte_array_unref(pipe->bytes);
    g_free(pipe);
}

static void pipe_wake(Pipe *pipe)
{
    if (pipe->receiver)
        fiber_wake(pipe->receiver);
    if (pipe->sender)
        fiber_wake(pipe->sender);
}

static void arrival_drop(SimEvent *event)
{
    pipe_unref(((Arrival *)event)->pipe);
    g_free(event);
}

static void arrival_happen(SimEvent *event)
{
    Arrival *arrival = (Arrival *)event;
    arrival->pipe->n_arrived += arrival->n;
    pipe_wake(arrival->pipe);
    arrival_drop(event);
}

static void wake_cancelled(Fiber *fiber, void *arg)
{
    fiber_wake(fiber);
}

// Waits for a change of the pipe. 0, or -ECANCELED.
static int pipe_wait(Fiber *self, Fiber **waiter, const char *where)
{
    if (!fiber_begin_cancellable(self, wake_cancelled, NULL))
        return -ECANCELED;
    *waiter = self;
    fiber_suspend(self, where);
    *waiter = NULL;
    fiber_end_cancellable(self);
    return fiber_is_cancelled(self) ? -ECANCELED : 0;
}

// Of `n` bytes that could move, how many do: often all, at times few.
static size_t fragment(Sim *sim, size_t n)
{
    return sim_random_chance(&sim->random, 50) ? n : 1 + sim_random_below(&sim->random, n);
}

static ssize_t op_recv(Fiber *self, Stream *stream, void *buf, size_t len)
{
    SimStream *s = (SimStream *)stream;
    Pipe *pipe = s->in;
    while (pipe->n_arrived == 0) {
        if (stream->is_shut_down)
            return -ECANCELED;
        if (!pipe->has_sender && pipe->bytes->len == 0)
            return 0;
        int r = pipe_wait(self, &pipe->receiver, "stream receive");
        if (r < 0)
            return r;
    }
    if (stream->is_shut_down)
        return -ECANCELED;
    size_t n = fragment(s->sim, MIN(len, pipe->n_arrived));
    memcpy(buf, pipe->bytes->data, n);
    g_byte_array_remove_range(pipe->bytes, 0, n);
    pipe->n_arrived -= n;
    pipe_wake(pipe);
    return (ssize_t)n;
}

static void pipe_put(SimStream *s, const struct iovec *iov, unsigned n_iov, size_t n)
{
    Arrival *arrival = g_new(Arrival, 1);
    *arrival = (Arrival){{.fn = arrival_happen, .drop = arrival_drop}, s->out, n};
    s->out->n_refs++;
    for (unsigned i = 0; i < n_iov && n > 0; i++) {
        size_t part = MIN(n, iov[i].iov_len);
        g_byte_array_append(s->out->bytes, iov[i].iov_base, part);
        n -= part;
    }
    sim_schedule(s->sim, &arrival->event);
}

static ssize_t op_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov)
{
    SimStream *s = (SimStream *)stream;
    Pipe *pipe = s->out;
    size_t len = 0;
    for (unsigned i = 0; i < n_iov; i++)
        len += iov[i].iov_len;
    while (pipe->bytes->len >= pipe->capacity_bytes && pipe->has_receiver) {
        if (stream->is_shut_down)
            return -ECANCELED;
        int r = pipe_wait(self, &pipe->sender, "stream send");
        if (r < 0)
            return r;
    }
    if (stream->is_shut_down)
        return -ECANCELED;
    if (!pipe->has_receiver)
        return -EPIPE;
    size_t n = fragment(s->sim, MIN(len, pipe->capacity_bytes - pipe->bytes->len));
    pipe_put(s, iov, n_iov, n);
    return (ssize_t)n;
}

static ssize_t op_try_send(Stream *stream, const void *buf, size_t len)
{
    SimStream *s = (SimStream *)stream;
    Pipe *pipe = s->out;
    if (!pipe->has_receiver)
        return -EPIPE;
    if (pipe->bytes->len >= pipe->capacity_bytes)
        return -EAGAIN;
    struct iovec iov = {(void *)buf, len};
    size_t n = fragment(s->sim, MIN(len, pipe->capacity_bytes - pipe->bytes->len));
    pipe_put(s, &iov, 1, n);
    return (ssize_t)n;
}

static void op_end_sending(Stream *stream)
{
    SimStream *s = (SimStream *)stream;
    s->out->has_sender = false;
    pipe_wake(s->out);
}

static void op_shutdown(Stream *stream)
{
    SimStream *s = (SimStream *)stream;
    s->in->has_receiver = false;
    s->out->has_sender = false;
    pipe_wake(s->in);
    pipe_wake(s->out);
}

// Loops of a simulation share one thread.
static void op_attach(Stream *stream, Loop *loop)
{
    ((SimStream *)stream)->sim = sim_of_loop(loop);
}

static void op_free(Stream *stream)
{
    SimStream *s = (SimStream *)stream;
    op_shutdown(stream);
    pipe_unref(s->in);
    pipe_unref(s->out);
    g_free(s);
}

static const StreamOps stream_ops = {
    .recv = op_recv,
    .send = op_send,
    .try_send = op_try_send,
    .shutdown = op_shutdown,
    .end_sending = op_end_sending,
    .attach = op_attach,
    .free = op_free,
};

static Stream *stream_new(Loop *loop, Pipe *in, Pipe *out)
{
    SimStream *s = g_new0(SimStream, 1);
    s->stream.ops = &stream_ops;
    s->stream.loop = loop;
    s->sim = sim_of_loop(loop);
    s->in = in;
    s->out = out;
    return &s->stream;
}

void sim_stream_pair(Loop *loop, Stream **ret_a, Stream **ret_b)
{
    Sim *sim = sim_of_loop(loop);
    Pipe *there = pipe_new(sim), *back = pipe_new(sim);
    *ret_a = stream_new(loop, back, there);
    *ret_b = stream_new(loop, there, back);
}
