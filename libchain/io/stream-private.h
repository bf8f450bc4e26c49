// SPDX-License-Identifier: LGPL-2.1-or-later
// The head of every Stream and the operations its back end provides. stream.c continues short
// transfers and answers once the stream was shut down or the fiber cancelled. For libchain/io
// and the back ends. On the stream's loop.
#pragma once

#include "chain-core/stream.h"

typedef struct StreamOps StreamOps;
typedef struct StreamListenerOps StreamListenerOps;

struct StreamOps {
    // One transfer, at least one byte (may be short; recv: 0 at the end), or -errno. -ECANCELED
    // when the fiber is cancelled (fiber_begin_cancellable()) or shutdown() called, then only once
    // the buffer is nobody's any more. Never called on a stream that was shut down.
    ssize_t (*recv)(Fiber *self, Stream *stream, void *buf, size_t len);
    ssize_t (*send)(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov);
    ssize_t (*try_send)(Stream *stream, const void *buf, size_t len); // stream_try_send()
    void (*shutdown)(Stream *stream);                                 // once
    void (*end_sending)(Stream *stream);
    void (*detach)(Stream *stream);             // may be NULL
    void (*attach)(Stream *stream, Loop *loop); // stream->loop is that already
    void (*free)(Stream *stream);
};

struct Stream {
    const StreamOps *ops;
    Loop *loop; // NULL while detached
    bool is_shut_down;
    bool is_coalescing;       // stream_recv_coalesced() is under way
    size_t unsent_bytes;      // then
    Fiber *receiver, *sender; // waiting now
};

struct StreamListenerOps {
    int (*accept)(Fiber *self, StreamListener *listener); // cancellable as above
    void (*shutdown)(StreamListener *listener);           // once
    void (*free)(StreamListener *listener);
};

struct StreamListener {
    const StreamListenerOps *ops;
    Loop *loop;
    bool is_shut_down;
    Fiber *acceptor;
};
