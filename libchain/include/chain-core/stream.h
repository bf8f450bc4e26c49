// SPDX-License-Identifier: LGPL-2.1-or-later
// Byte streams between the daemon and its clients: unix and TCP sockets through the loop (later TLS
// on top), and simulated ones whose fragmentation the seed decides. On the stream's loop.
#pragma once

#include <glib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "chain-core/loop.h"

typedef struct Stream Stream;
typedef struct StreamListener StreamListener;

// Takes `fd`, a connected non-blocking stream socket.
Stream *stream_new_fd(Loop *loop, int fd);
// Ends both directions at once: pending and later operations return -ECANCELED / -EPIPE / 0.
void stream_shutdown(Stream *stream);
// No more will be sent; the peer sees the end once it has taken what was. No send may be pending.
void stream_end_sending(Stream *stream);
// No operation may be pending. Accepts NULL.
void stream_free(Stream *stream);
// To another loop: detached, it owns nothing of the one that it was on, and is not used until it is
// attached, on the new loop. No operation may be pending.
void stream_detach(Stream *stream);
void stream_attach(Stream *stream, Loop *loop);

// At least 1 byte, 0 at the end of the stream, -ECANCELED, or another -errno. One receiver at a
// time.
ssize_t stream_recv(Fiber *self, Stream *stream, void *buf, size_t len);
// The same, coalesced: while the peer has not read much of what it was sent, what it sends in the
// meantime is left in the socket, for 5 ms at most, and then received in one piece. `unsent_bytes`:
// what the caller is about to send. Sockets that do not tell what is unread (all but unix ones)
// receive at once.
ssize_t stream_recv_coalesced(Fiber *self, Stream *stream, void *buf, size_t len,
                              size_t unsent_bytes);
// Exactly `len` bytes: 0, -ECONNRESET when the stream ended before, or -errno. Never reads further.
int stream_recv_all(Fiber *self, Stream *stream, void *buf, size_t len);
// Sends all of it: 0 or -errno. `iov` entries may be modified. One sender at a time; a sender and a
// receiver may be pending together. Submission is deferred to the end of the loop's turn, so that a
// send and the next receive cost one system call.
int stream_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov);

// Sends what the socket takes at once, with a system call of its own, and offers the processor to
// whom that wakes: bytes (at least one), -EAGAIN when that is nothing, or -errno. No send may be
// pending. For a peer that waits for this.
ssize_t stream_try_send(Stream *stream, const void *buf, size_t len);

// Takes `fd`, a listening socket.
StreamListener *stream_listener_new_fd(Loop *loop, int fd);
// Next connection's descriptor (≥0, owned by the caller, non-blocking, close-on-exec), -ECANCELED,
// or -errno (-EMFILE and the like are transient: wait and go on).
int stream_accept(Fiber *self, StreamListener *listener);
void stream_listener_shutdown(StreamListener *listener);
void stream_listener_free(StreamListener *listener);
