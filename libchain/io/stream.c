// SPDX-License-Identifier: LGPL-2.1-or-later
// Streams, above their back ends: transfers continued until all is there, one receiver and one
// sender at a time, and what is answered once the stream was shut down. On the stream's loop.
#include "io/stream-private.h"

#include <assert.h>
#include <errno.h>

#include "io/iov.h"
#include "loop/fiber-private.h"

void stream_shutdown(Stream *stream)
{
    if (stream->is_shut_down)
        return;
    stream->is_shut_down = true;
    stream->ops->shutdown(stream);
}

void stream_end_sending(Stream *stream)
{
    assert(!stream->sender);
    if (!stream->is_shut_down)
        stream->ops->end_sending(stream);
}

ssize_t stream_try_send(Stream *stream, const void *buf, size_t len)
{
    assert(!stream->sender);
    return stream->is_shut_down ? -EPIPE : stream->ops->try_send(stream, buf, len);
}

void stream_free(Stream *stream)
{
    if (!stream)
        return;
    assert(!stream->receiver && !stream->sender);
    stream->ops->free(stream);
}

void stream_detach(Stream *stream)
{
    assert(!stream->receiver && !stream->sender);
    if (stream->ops->detach)
        stream->ops->detach(stream);
    stream->loop = NULL;
}

void stream_attach(Stream *stream, Loop *loop)
{
    assert(!stream->loop);
    stream->loop = loop;
    stream->ops->attach(stream, loop);
}

ssize_t stream_recv(Fiber *self, Stream *stream, void *buf, size_t len)
{
    assert(!stream->receiver);
    if (self->is_cancelled || stream->is_shut_down)
        return -ECANCELED;
    stream->receiver = self;
    ssize_t n = stream->ops->recv(self, stream, buf, len);
    stream->receiver = NULL;
    return n;
}

ssize_t stream_recv_coalesced(Fiber *self, Stream *stream, void *buf, size_t len,
                              size_t unsent_bytes)
{
    stream->is_coalescing = true;
    stream->unsent_bytes = unsent_bytes;
    ssize_t n = stream_recv(self, stream, buf, len);
    stream->is_coalescing = false;
    return n;
}

int stream_recv_all(Fiber *self, Stream *stream, void *buf, size_t len)
{
    uint8_t *p = buf;
    while (len) {
        ssize_t n = stream_recv(self, stream, p, len);
        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int stream_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov)
{
    assert(!stream->sender);
    stream->sender = self;
    int r = 0;
    while (n_iov && r == 0) {
        if (iov->iov_len == 0) {
            iov++;
            n_iov--;
            continue;
        }
        if (self->is_cancelled || stream->is_shut_down) {
            r = self->is_cancelled ? -ECANCELED : -EPIPE;
            break;
        }
        ssize_t n = stream->ops->send(self, stream, iov, n_iov);
        if (n < 0) {
            r = (int)n;
        } else {
            unsigned used = iov_advance(iov, n_iov, (size_t)n);
            iov += used;
            n_iov -= used;
        }
    }
    stream->sender = NULL;
    return r;
}

int stream_accept(Fiber *self, StreamListener *listener)
{
    assert(!listener->acceptor);
    if (self->is_cancelled || listener->is_shut_down)
        return -ECANCELED;
    listener->acceptor = self;
    int fd = listener->ops->accept(self, listener);
    listener->acceptor = NULL;
    return fd;
}

void stream_listener_shutdown(StreamListener *listener)
{
    if (listener->is_shut_down)
        return;
    listener->is_shut_down = true;
    listener->ops->shutdown(listener);
}

void stream_listener_free(StreamListener *listener)
{
    if (!listener)
        return;
    assert(!listener->acceptor);
    listener->ops->free(listener);
}
