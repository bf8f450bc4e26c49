// SPDX-License-Identifier: LGPL-2.1-or-later
// All replies that wait are handed to the socket in one call, up to a turn's quantum. What a sent
// reply gives back lets the receiver go on; a client that does not read its replies is therefore
// not read from either. On the connection's loop.
#include "sender.h"

#include <errno.h>
#include <sys/uio.h>

enum { MAX_BATCH = 64 };

static void fail(NbdsSender *sender, int error)
{
    if (sender->error)
        return;
    sender->error = error;
    stream_shutdown(sender->stream); // the receiver ends too
}

void nbds_sender_drop(NbdsSender *sender, const NbdsCharge *charge)
{
    fail(sender, -ENOMEM);
    nbds_admission_leave(sender->admission, charge);
}

static unsigned take_batch(NbdsSender *sender, struct iovec iov[static MAX_BATCH],
                           size_t *ret_bytes)
{
    size_t room = nbds_flow_send_bytes(sender->flow), bytes = 0;
    unsigned n = 0;
    for (NbdsBuffer *reply = sender->replies; reply && n < MAX_BATCH && bytes < room;
         reply = reply->next) {
        iov[n] = (struct iovec){reply->start, MIN(reply->length, room - bytes)};
        bytes += iov[n++].iov_len;
    }
    *ret_bytes = bytes;
    return n;
}

// Takes `bytes` that were sent off the queue, and gives back what whole replies held.
static void retire(NbdsSender *sender, size_t bytes)
{
    nbds_admission_note_progress(sender->admission, bytes);
    while (bytes) {
        NbdsBuffer *reply = sender->replies;
        if (bytes < reply->length) {
            reply->start += bytes;
            reply->length -= bytes;
            return;
        }
        bytes -= reply->length;
        sender->replies = reply->next;
        if (!sender->replies)
            sender->replies_tail = &sender->replies;
        if (reply->ends_request)
            nbds_admission_leave(sender->admission, &reply->charge);
        nbds_buffer_unref(reply);
    }
}

static void send_batch(Fiber *self, NbdsSender *sender)
{
    struct iovec iov[MAX_BATCH];
    size_t bytes;
    unsigned n = take_batch(sender, iov, &bytes);
    if (!sender->error) {
        int result = stream_send(self, sender->stream, iov, n);
        if (result < 0)
            fail(sender, result);
    }
    retire(sender, bytes);
}

void nbds_sender_queue(NbdsSender *sender, NbdsBuffer *reply)
{
    reply->next = NULL;
    *sender->replies_tail = reply;
    sender->replies_tail = &reply->next;
    if (!sender->waits) // for this first reply
        return;
    if (nbds_flow_sends_at_once(sender->flow)) {
        ssize_t n = stream_try_send(sender->stream, reply->start, reply->length);
        if (n > 0)
            retire(sender, (size_t)n);
    }
    if (sender->replies) {
        sender->waits = false;
        fiber_wake(sender->fiber);
    }
}

// Closing a TCP socket in which requests lie unread makes the kernel reset the connection, and the
// peer drop replies that it has not read yet. So those requests are read, and dropped.
static void linger(Fiber *self, NbdsSender *sender)
{
    uint8_t dropped[4096];
    stream_end_sending(sender->stream);
    while (stream_recv(self, sender->stream, dropped, sizeof dropped) > 0)
        continue;
}

static void sender_fiber(Fiber *self, void *arg)
{
    NbdsSender *sender = arg;
    for (;;) {
        if (sender->replies) {
            send_batch(self, sender);
        } else if (sender->ends) {
            break;
        } else {
            sender->waits = true;
            fiber_suspend(self, "nbd: no reply to send");
            sender->waits = false;
        }
    }
    if (sender->lingers)
        linger(self, sender);
    sender->fiber = NULL;
    fiber_queue_wake_all(&sender->gone);
}

int nbds_sender_start(NbdsSender *sender, Stream *stream, NbdsAdmission *admission, NbdsFlow *flow)
{
    *sender = (NbdsSender){.stream = stream, .admission = admission, .flow = flow};
    sender->replies_tail = &sender->replies;
    // The fiber may run before this returns; fiber_spawn() sets sender->fiber first.
    return fiber_spawn(flow->scheduler->loop, "nbd sender", sender_fiber, sender, &sender->fiber);
}

void nbds_sender_stop(Fiber *self, NbdsSender *sender, bool lingers)
{
    sender->lingers = lingers;
    sender->ends = true; // it empties the queue first
    if (sender->fiber)
        fiber_wake(sender->fiber);
    while (sender->fiber)
        fiber_queue_wait(self, &sender->gone, false, "nbd: sender's end");
}
