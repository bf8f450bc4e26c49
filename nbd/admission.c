// SPDX-License-Identifier: LGPL-2.1-or-later
// Charging requests, and who gets on when the loop's budget is used up: waiters in the order in
// which they last got something of it. A client that holds part of it and neither sends the rest of
// its request nor takes its replies is cut off, but only while others wait. On the loop.
#include "admission.h"

#include <assert.h>

#include "connection.h"
#include "server.h"

enum {
    CONNECTION_FREE_BYTES = 1 << 20, // not taken from the loop's budget
    SMALL_BYTES = 1 << 10,           // what a request without data holds
    CACHE_BYTES = 256 << 10,
    STATUS_BYTES = 128 << 10,  // see MAX_EXTENTS in request-status.c
    PROGRESS_BYTES = 64 << 10, // within the time that counts as a stall
};

// Units that a write covers in part are put together in memory, one or two of them.
static uint64_t edges_bytes(const NbdsRequestHead *head, uint32_t unit)
{
    uint64_t end = head->offset + head->length;
    bool starts_inside = head->offset % unit, ends_inside = end % unit;
    bool is_one_unit = head->offset / unit == (end - 1) / unit;
    if (is_one_unit)
        return starts_inside || ends_inside ? unit : 0;
    return (uint64_t)unit * (starts_inside + ends_inside);
}

uint64_t nbds_admission_bytes(const NbdsRequestHead *head, uint32_t preferred_bytes)
{
    switch (head->type) {
    case NBDS_CMD_READ:
        return head->length + SMALL_BYTES;
    case NBDS_CMD_WRITE:
        return head->length + SMALL_BYTES + (head->length ? edges_bytes(head, preferred_bytes) : 0);
    case NBDS_CMD_CACHE:
        return CACHE_BYTES;
    case NBDS_CMD_BLOCK_STATUS:
        return STATUS_BYTES;
    default:
        return SMALL_BYTES;
    }
}

typedef enum Entry {
    ENTRY_GRANTED,
    ENTRY_AT_OWN_LIMIT, // waits for its own requests to end
    ENTRY_NO_BUDGET,    // waits for what others hold
} Entry;

static Entry try_enter(NbdsConnection *c, uint64_t bytes, NbdsCharge *ret_charge)
{
    NbdsServerLoop *home = c->home;
    const NbdsLimits *limits = nbds_server_limits(home->server);
    bool is_first = !c->admission.n_requests;
    if (!is_first && (c->admission.n_requests >= limits->max_requests ||
                      c->admission.bytes + bytes > limits->max_bytes))
        return ENTRY_AT_OWN_LIMIT;
    *ret_charge = (NbdsCharge){.bytes = bytes};
    if (c->admission.bytes + bytes <= CONNECTION_FREE_BYTES)
        return ENTRY_GRANTED;
    if (home->budget_bytes >= bytes) {
        home->budget_bytes -= bytes;
        ret_charge->loop_bytes = bytes;
        // Next time the others that wait go first.
        nbds_server_loop_remove(home, c);
        nbds_server_loop_insert(home, c, false);
        return ENTRY_GRANTED;
    }
    if (!is_first || c->export->has_privileged)
        return ENTRY_NO_BUDGET;
    c->export->has_privileged = ret_charge->is_privileged = true;
    return ENTRY_GRANTED;
}

// --- clients that stall ---

static uint64_t stall_ns(const NbdsServerLoop *home)
{
    return nbds_server_limits(home->server)->stall_timeout_ns;
}

static bool is_stalled(const NbdsConnection *c)
{
    return (c->admission.loop_bytes || c->admission.is_privileged) && !c->n_executing &&
           (c->receiver.incoming || c->sender.replies) &&
           loop_now_ns(c->home->loop) - c->admission.progress_ns > stall_ns(c->home);
}

// Goes on as long as somebody waited since it last ran.
static void check_stalls(LoopTimer *timer)
{
    NbdsServerLoop *home =
        (NbdsServerLoop *)((char *)timer - offsetof(NbdsServerLoop, stall_timer));
    if (!home->has_waited && !home->n_waiting)
        return;
    for (NbdsConnection *c = home->connections.first; c; c = c->next)
        if (c->stream && is_stalled(c))
            stream_shutdown(c->stream);
    home->has_waited = false;
    loop_timer_start(home->loop, timer, stall_ns(home) / 8);
}

static int wait_for_budget(Fiber *self, NbdsConnection *c)
{
    NbdsServerLoop *home = c->home;
    home->n_waiting++;
    home->has_waited = true;
    if (!home->stall_timer.heap_index) {
        home->stall_timer.fn = check_stalls;
        loop_timer_start(home->loop, &home->stall_timer, stall_ns(home) / 8);
    }
    int result = fiber_queue_wait(self, &c->admission.room, true, "nbd: the loop's limit of bytes");
    home->n_waiting--;
    return result;
}

// --- entering and leaving ---

int nbds_admission_enter(Fiber *self, NbdsConnection *c, uint64_t bytes, NbdsCharge *ret_charge)
{
    Entry entry;
    while ((entry = try_enter(c, bytes, ret_charge)) != ENTRY_GRANTED) {
        int result = entry == ENTRY_NO_BUDGET ? wait_for_budget(self, c)
                                              : fiber_queue_wait(self, &c->admission.room, true,
                                                                 "nbd: own limit of requests");
        if (result < 0)
            return result;
    }
    c->admission.n_requests++;
    c->admission.bytes += bytes;
    c->admission.loop_bytes += ret_charge->loop_bytes;
    c->admission.is_privileged |= ret_charge->is_privileged;
    c->admission.progress_ns = loop_now_ns(c->home->loop);
    c->admission.progress_bytes = 0;
    return 0;
}

// In the order in which they last got something of the budget.
static void wake_waiters(NbdsServerLoop *home)
{
    if (!home->n_waiting)
        return;
    for (NbdsConnection *c = home->connections.last; c; c = c->prev)
        fiber_queue_wake_all(&c->admission.room);
}

// Bytes that come a few at a time are no progress.
void nbds_admission_note_progress(NbdsConnection *c, uint64_t bytes)
{
    c->admission.progress_bytes += bytes;
    if (c->admission.progress_bytes < PROGRESS_BYTES)
        return;
    c->admission.progress_bytes = 0;
    c->admission.progress_ns = loop_now_ns(c->home->loop);
}

void nbds_admission_leave(NbdsConnection *c, const NbdsCharge *charge)
{
    assert(c->admission.n_requests > 0 && c->admission.bytes >= charge->bytes);
    c->admission.n_requests--;
    c->admission.bytes -= charge->bytes;
    c->admission.loop_bytes -= charge->loop_bytes;
    c->home->budget_bytes += charge->loop_bytes;
    if (charge->is_privileged)
        c->export->has_privileged = c->admission.is_privileged = false;
    if (charge->loop_bytes || charge->is_privileged)
        wake_waiters(c->home);
    fiber_queue_wake_all(&c->admission.room);
    if (!c->admission.n_requests)
        fiber_queue_wake_all(&c->admission.quiet);
}
