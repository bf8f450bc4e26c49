// SPDX-License-Identifier: LGPL-2.1-or-later
// The sending side of a connection: a queue of replies and one fiber that hands all that wait to
// the socket in one call. What a sent reply gives back lets the receiver go on; a client that does
// not read its replies is therefore not read from either.
#include <errno.h>
#include <sys/uio.h>

#include "connection.h"

enum {
    MAX_BATCH = 64,
    SMALL_SEND = 16 << 10, // bytes; many small answers at once keep their client busy for long
};

// Bytes that one turn of the loop shall copy.
static const size_t send_at_once[] = {
    [NBDS_COMPANY_NONE] = 1 << 20,
    [NBDS_COMPANY_BUSY] = 256 << 10,
    [NBDS_COMPANY_LIGHT] = 32 << 10,
};

static void fail(NbdsConnection *c, int error)
{
    if (c->send_error)
        return;
    c->send_error = error;
    stream_shutdown(c->stream); // the receiver ends too
}

void nbds_sender_queue(NbdsConnection *c, NbdsBuffer *reply)
{
    reply->next = NULL;
    *c->replies_tail = reply;
    c->replies_tail = &reply->next;
    if (c->sender_waits) {
        c->sender_waits = false;
        if (c->is_urgent)
            fiber_wake_first(c->sender);
        else
            fiber_wake(c->sender);
    }
    if (c->is_light) // those that rest go on after this was sent
        nbds_pace_answered(c);
}

void nbds_sender_drop(NbdsConnection *c, const NbdsCharge *charge)
{
    fail(c, -ENOMEM);
    nbds_admission_leave(c, charge);
}

static unsigned gather(NbdsConnection *c, struct iovec iov[static MAX_BATCH])
{
    size_t room = send_at_once[nbds_connection_company(c)];
    unsigned n = 0;
    for (NbdsBuffer *reply = c->replies; reply && n < MAX_BATCH && room; reply = reply->next) {
        size_t len = MIN(reply->length, room);
        iov[n++] = (struct iovec){reply->start, len};
        room -= len;
    }
    return n;
}

// Takes `bytes` that were sent off the queue, and gives back what whole replies held.
static void retire(NbdsConnection *c, size_t bytes)
{
    while (bytes) {
        NbdsBuffer *reply = c->replies;
        if (bytes < reply->length) {
            reply->start += bytes;
            reply->length -= bytes;
            return;
        }
        bytes -= reply->length;
        c->replies = reply->next;
        if (!c->replies)
            c->replies_tail = &c->replies;
        if (reply->ends_request)
            nbds_admission_leave(c, &reply->charge);
        nbds_buffer_unref(reply);
    }
}

static void send_batch(Fiber *self, NbdsConnection *c)
{
    struct iovec iov[MAX_BATCH];
    unsigned n = gather(c, iov);
    size_t bytes = 0;
    for (unsigned i = 0; i < n; i++)
        bytes += iov[i].iov_len;
    if (!c->send_error) {
        if (bytes > SMALL_SEND)
            nbds_pace_take_bytes(self, c, bytes);
        int result = stream_send(self, c->stream, iov, n);
        if (result < 0)
            fail(c, result);
    }
    retire(c, bytes);
    nbds_admission_note_progress(c, bytes);
}

// Closing a TCP socket in which requests lie unread makes the kernel reset the connection, and the
// peer drop replies that it has not read yet. So those requests are read, and dropped.
static void linger(Fiber *self, NbdsConnection *c)
{
    uint8_t dropped[4096];
    stream_end_sending(c->stream);
    while (stream_recv(self, c->stream, dropped, sizeof dropped) > 0)
        continue;
}

static void sender(Fiber *self, void *arg)
{
    NbdsConnection *c = arg;
    for (;;) {
        if (c->replies) {
            send_batch(self, c);
        } else if (c->sender_ends) {
            break;
        } else {
            c->sender_waits = true;
            fiber_suspend(self, "nbd: no reply to send");
            c->sender_waits = false;
        }
    }
    if (c->sender_lingers)
        linger(self, c);
    c->sender = NULL;
    fiber_queue_wake_all(&c->sender_gone);
}

int nbds_sender_start(NbdsConnection *c)
{
    c->replies_tail = &c->replies;
    // The fiber may run before this returns; fiber_spawn() sets c->sender first.
    return fiber_spawn(c->home->loop, "nbd sender", sender, c, &c->sender);
}

void nbds_sender_stop(Fiber *self, NbdsConnection *c, bool lingers)
{
    c->sender_lingers = lingers;
    c->sender_ends = true; // it empties the queue first
    if (c->sender)
        fiber_wake(c->sender);
    while (c->sender)
        fiber_queue_wait(self, &c->sender_gone, false, "nbd: sender's end");
}
