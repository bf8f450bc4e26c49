// SPDX-License-Identifier: LGPL-2.1-or-later
// When to let a peer read before more is received from it. A peer that has much unread of what it
// was sent is not waiting; its next requests come one by one while it reads, and each would wake
// the loop. So the loop waits until the peer has read half, and takes what has come in one
// piece, while the peer reads the other half. The kernel tells the moment: a unix socket turns
// writable when what the peer has not read falls to a quarter of the send buffer (unix_writable()
// in net/unix/af_unix.c), and the size of the send buffer is ours to choose. Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BACKLOG_PER_WRITABLE = 4,       // send buffers hold so many times the low water
    BACKLOG_MIN_BUFFER = 128 << 10, // less is not worth while
    BACKLOG_MAX_BUFFER = 512 << 10, // what large answers want
    BACKLOG_WORTH_A_LOOK = 32 << 10,
    BACKLOG_LEAST_SENT = 1024, // with the kernel's own share
    BACKLOG_WINDOW = 64,       // looks
    BACKLOG_SAMPLE = 16,       // receives for one look, while no wait is likely
    BACKLOG_BACK_OFF = 1024,   // receives, after a wait that timed out
};

typedef struct Backlog {
    uint32_t buffer_bytes; // the send buffer's; 0: the socket does not tell
    uint32_t asked_bytes;  // for the send buffer
    uint64_t most;         // no more than so many bytes are unread
    uint64_t peak;         // most that was unread in the last window: what the peer asks for
                           // at a time
    uint64_t highest;      // so far in this window
    unsigned n_looks;      // in this window
    unsigned n_backed_off; // receives yet to pass without a look
} Backlog;

static inline uint32_t backlog_low_water(const Backlog *b)
{
    return b->buffer_bytes / BACKLOG_PER_WRITABLE;
}

// Is the low water well below what the peer asks for? Else waiting coalesces next to nothing.
static inline bool backlog_coalesces(const Backlog *b)
{
    return backlog_low_water(b) <= b->peak / 8 * 5;
}

static inline void backlog_sent(Backlog *b, size_t bytes)
{
    b->most += MAX(bytes, BACKLOG_LEAST_SENT);
}

// Before a receive: shall the kernel be asked how much is unread?
static inline bool backlog_shall_look(Backlog *b)
{
    if (b->most < BACKLOG_WORTH_A_LOOK || !b->buffer_bytes)
        return false;
    if (b->n_backed_off) {
        b->n_backed_off--;
        return false;
    }
    return true;
}

// The kernel said `unread` bytes, and `unsent` are about to follow. True: wait until the socket is
// writable.
static inline bool backlog_learn(Backlog *b, uint32_t unread, size_t unsent)
{
    b->most = unread;
    b->highest = MAX(b->highest, unread + unsent);
    if (++b->n_looks == BACKLOG_WINDOW) {
        b->peak = b->highest;
        b->highest = b->n_looks = 0;
    }
    if (!backlog_coalesces(b)) {
        b->n_backed_off = BACKLOG_SAMPLE;
        return false;
    }
    return unread > backlog_low_water(b);
}

// After backlog_learn(): what the send buffer shall be; 0: as it is.
static inline uint32_t backlog_better_buffer(Backlog *b)
{
    if (b->n_looks)
        return 0;
    uint64_t bytes = b->peak / 2 * BACKLOG_PER_WRITABLE;
    if (bytes < BACKLOG_MIN_BUFFER || bytes > BACKLOG_MAX_BUFFER)
        bytes = BACKLOG_MAX_BUFFER;
    uint64_t change = MAX(bytes, b->asked_bytes) - MIN(bytes, b->asked_bytes);
    if (change <= b->asked_bytes / 8)
        return 0;
    b->asked_bytes = (uint32_t)bytes;
    return b->asked_bytes;
}

// The peer did not read within the time it was given.
static inline void backlog_timed_out(Backlog *b)
{
    b->n_backed_off = BACKLOG_BACK_OFF;
}
