// SPDX-License-Identifier: LGPL-2.1-or-later
// Charging requests, and who gets on when the loop's budget is used up: waiters in the order in
// which they last got something of it. A client that holds part of it and neither sends the rest of
// its request nor takes its replies is cut off, but only while others wait. On the loop.
#include "admission.h"

#include <assert.h>

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

static Entry try_enter(NbdsAdmission *a, uint64_t bytes, NbdsCharge *ret_charge)
{
    NbdsBudget *budget = a->budget;
    bool is_first = !a->n_requests;
    uint64_t max_bytes = a->keeps_to_its_share ? CONNECTION_FREE_BYTES : budget->limits->max_bytes;
    if (!is_first &&
        (a->n_requests >= budget->limits->max_requests || a->bytes + bytes > max_bytes))
        return ENTRY_AT_OWN_LIMIT;
    *ret_charge = (NbdsCharge){.bytes = bytes};
    if (a->bytes + bytes <= CONNECTION_FREE_BYTES)
        return ENTRY_GRANTED;
    if (budget->bytes >= bytes) {
        budget->bytes -= bytes;
        ret_charge->loop_bytes = bytes;
    } else if (is_first && !*a->has_privileged) {
        *a->has_privileged = ret_charge->is_privileged = true;
    } else {
        return ENTRY_NO_BUDGET;
    }
    // Next time the others that wait go first.
    g_queue_unlink(&budget->members, &a->link);
    g_queue_push_head_link(&budget->members, &a->link);
    return ENTRY_GRANTED;
}

// --- clients that stall ---

static bool holds_budget(const NbdsAdmission *a)
{
    return a->loop_bytes || a->is_privileged;
}

// None of its requests is executing: each is incomplete, or its reply waits for the socket.
static bool is_stalled(const NbdsAdmission *a)
{
    const NbdsBudget *budget = a->budget;
    return holds_budget(a) && !a->flow->n_executing &&
           loop_now_ns(budget->loop) - a->progress_ns > budget->limits->stall_timeout_ns;
}

// Goes on as long as somebody waited since it last ran.
static void check_stalls(LoopTimer *timer)
{
    NbdsBudget *budget = (NbdsBudget *)((char *)timer - offsetof(NbdsBudget, stall_timer));
    if (!budget->has_waited && !budget->n_waiting)
        return;
    for (const GList *l = budget->members.head; l; l = l->next) {
        const NbdsAdmission *a = l->data;
        if (is_stalled(a))
            stream_shutdown(a->stream);
    }
    budget->has_waited = false;
    loop_timer_start(budget->loop, timer, budget->limits->stall_timeout_ns / 8);
}

static int wait_for_budget(Fiber *self, NbdsAdmission *a)
{
    NbdsBudget *budget = a->budget;
    budget->n_waiting++;
    budget->has_waited = true;
    if (!budget->stall_timer.heap_index)
        loop_timer_start(budget->loop, &budget->stall_timer, budget->limits->stall_timeout_ns / 8);
    int result = fiber_queue_wait(self, &a->room, true, "nbd: the loop's limit of bytes");
    budget->n_waiting--;
    return result;
}

// --- entering and leaving ---

void nbds_budget_init(NbdsBudget *budget, Loop *loop, const NbdsLimits *limits)
{
    *budget = (NbdsBudget){
        .loop = loop,
        .limits = limits,
        .bytes = limits->max_loop_bytes,
        .members = G_QUEUE_INIT,
        .stall_timer.fn = check_stalls,
    };
}

void nbds_admission_init(NbdsAdmission *a, NbdsBudget *budget, bool *has_privileged,
                         const NbdsFlow *flow, Stream *stream)
{
    *a = (NbdsAdmission){
        .budget = budget,
        .link.data = a,
        .has_privileged = has_privileged,
        .flow = flow,
        .stream = stream,
    };
    g_queue_push_head_link(&budget->members, &a->link);
}

void nbds_admission_done(NbdsAdmission *a)
{
    NbdsBudget *budget = a->budget;
    assert(!a->n_requests);
    g_queue_unlink(&budget->members, &a->link);
    if (!budget->members.head)
        loop_timer_stop(budget->loop, &budget->stall_timer);
}

int nbds_admission_enter(Fiber *self, NbdsAdmission *a, uint64_t bytes, NbdsCharge *ret_charge)
{
    Entry entry;
    while ((entry = try_enter(a, bytes, ret_charge)) != ENTRY_GRANTED) {
        int result = entry == ENTRY_NO_BUDGET
                         ? wait_for_budget(self, a)
                         : fiber_queue_wait(self, &a->room, true, "nbd: own limit of requests");
        if (result < 0)
            return result;
    }
    if (!holds_budget(a)) { // so far
        a->progress_ns = loop_now_ns(a->budget->loop);
        a->progress_bytes = 0;
    }
    a->n_requests++;
    a->bytes += bytes;
    a->loop_bytes += ret_charge->loop_bytes;
    a->is_privileged |= ret_charge->is_privileged;
    return 0;
}

// In the order in which they last got something of the budget.
static void wake_waiters(NbdsBudget *budget)
{
    if (!budget->n_waiting)
        return;
    for (GList *l = budget->members.tail; l; l = l->prev)
        fiber_queue_wake_all(&((NbdsAdmission *)l->data)->room);
}

// Bytes that come a few at a time are no progress.
void nbds_admission_note_progress(NbdsAdmission *a, uint64_t bytes)
{
    a->progress_bytes += bytes;
    if (a->progress_bytes < PROGRESS_BYTES)
        return;
    a->progress_bytes = 0;
    a->progress_ns = loop_now_ns(a->budget->loop);
}

void nbds_admission_excuse_execution(NbdsAdmission *a)
{
    uint64_t since_ns = MAX(a->flow->executing_since_ns, a->progress_ns);
    a->progress_ns += loop_now_ns(a->budget->loop) - since_ns;
}

void nbds_admission_leave(NbdsAdmission *a, const NbdsCharge *charge)
{
    assert(a->n_requests > 0 && a->bytes >= charge->bytes);
    a->n_requests--;
    a->bytes -= charge->bytes;
    a->loop_bytes -= charge->loop_bytes;
    a->budget->bytes += charge->loop_bytes;
    if (charge->is_privileged)
        *a->has_privileged = a->is_privileged = false;
    if (charge->loop_bytes || charge->is_privileged)
        wake_waiters(a->budget);
    fiber_queue_wake_all(&a->room);
    if (!a->n_requests)
        fiber_queue_wake_all(&a->quiet);
}
