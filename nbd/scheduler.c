// SPDX-License-Identifier: LGPL-2.1-or-later
// Deficit round robin. A quantum is given with each turn of the loop in which the flow receives, or
// for which it waited. On the server's loop.
#include "scheduler.h"

#include <assert.h>

#include "chain-core/file.h"

// All that can be tuned, each with the reason that holds on any machine.
enum {
    // What one turn may copy while somebody waits for each answer: so long, about, as waking a
    // processor that sleeps, which is what such a client waits for anyway.
    TURN_BYTES = 256 << 10,
    // While nobody does. Large turns save system calls, for a latency that deep queues have anyway.
    BULK_TURN_BYTES = 1 << 20,
    // However many share a turn: below this the system calls of receiving and sending cost more
    // than the copies.
    MIN_QUANTUM_BYTES = 64 << 10,
    // However few: the first answers shall go out while the client still reads the last ones.
    MAX_QUANTUM_BYTES = 256 << 10,
    // One piece of answers to a connection that has the loop for itself: a system call for each
    // MiB does not show.
    SEND_ALONE_BYTES = 1 << 20,
    // Of any request besides its data: about as long as copying a page.
    REQUEST_BYTES = 4096,
    // Zeros and discards change metadata only: 256 bytes' worth for a cluster of 64 KiB.
    ZERO_BYTES_PER_BYTE = 256,
    // Active is who took something in this period or the last: longer than a round trip by two
    // orders of magnitude, shorter than anybody notices when the others got less meanwhile.
    PERIOD_NS = 1000000,
    // A deep queue runs down to one request now and then, by chance; not so often in a row.
    INTERACTIVE_AFTER = 8,
    // Requests up to two pages: for larger ones receiving is a small part of the cost.
    COALESCED_REQUEST_BYTES = 3 * REQUEST_BYTES,
    SMALL_WRITE_BYTES = 2 * 4096,
    MIN_SMALL_WRITES = 2, // with one in flight the client waits itself
    // Many times what a worker takes for as many writes as a client has in flight.
    COALESCE_TIMEOUT_NS = 2000000,
    UNCOALESCED_RECEIVES = 1024, // so that time-outs take at most some per cent of the time
};

// --- The scheduler ---

void nbds_scheduler_init(NbdsScheduler *scheduler, Loop *loop)
{
    *scheduler = (NbdsScheduler){.loop = loop, .period = 1};
}

void nbds_scheduler_done(NbdsScheduler *scheduler)
{
    assert(!scheduler->waiting && !scheduler->is_planned);
}

static void update_period(NbdsScheduler *s)
{
    uint64_t now = loop_now_ns(s->loop);
    if (now < s->period_end_ns)
        return;
    bool is_next = now - s->period_end_ns < PERIOD_NS;
    s->n_active_before = is_next ? s->n_active : 0;
    s->had_interactive = is_next && s->has_interactive;
    s->has_interactive = false;
    s->n_active = 0;
    s->period++;
    s->period_end_ns = now + PERIOD_NS;
}

static unsigned n_active(const NbdsScheduler *s)
{
    return MAX(MAX(s->n_active, s->n_active_before), 1);
}

static bool has_others(const NbdsScheduler *s)
{
    return n_active(s) > 1;
}

static uint64_t quantum(const NbdsScheduler *s)
{
    unsigned turn = s->has_interactive || s->had_interactive ? TURN_BYTES : BULK_TURN_BYTES;
    return CLAMP(turn / n_active(s), MIN_QUANTUM_BYTES, MAX_QUANTUM_BYTES);
}

// Gives each that waits as many quanta as the one that needs the fewest. More than one, when the
// others could do nothing in the turns between either.
static void turn_comes(LoopCall *call)
{
    NbdsScheduler *s = (NbdsScheduler *)((char *)call - offsetof(NbdsScheduler, next_turn));
    s->is_planned = false;
    update_period(s);
    int64_t one = (int64_t)quantum(s), least = INT64_MAX;
    for (const NbdsFlow *flow = s->waiting; flow; flow = flow->next)
        least = MIN(least, -flow->deficit_bytes / one + 1);
    for (NbdsFlow **at = &s->waiting; *at;) {
        NbdsFlow *flow = *at;
        flow->deficit_bytes += least * one;
        flow->turn_ns = loop_now_ns(s->loop);
        if (flow->deficit_bytes > 0) {
            *at = flow->next;
            flow->is_waiting = false;
            flow->is_woken = true;
            s->n_woken++;
            fiber_queue_wake_all(&flow->turn);
        } else {
            at = &flow->next;
        }
    }
}

// Once all whose turn has come have run. The loop looks at every socket before it calls.
static void plan_turn(NbdsScheduler *s)
{
    if (s->n_woken || s->is_planned || !s->waiting)
        return;
    s->is_planned = true;
    s->next_turn.fn = turn_comes;
    loop_post(s->loop, &s->next_turn);
}

static void enqueue(NbdsFlow *flow)
{
    NbdsScheduler *s = flow->scheduler;
    bool is_interactive = nbds_flow_is_interactive(flow);
    NbdsFlow **at = &s->waiting;
    while (*at && (!is_interactive || nbds_flow_is_interactive(*at)))
        at = &(*at)->next;
    flow->next = *at;
    *at = flow;
    flow->is_waiting = true;
    plan_turn(s);
}

// --- Flows ---

void nbds_flow_init(NbdsFlow *flow, NbdsScheduler *scheduler)
{
    *flow = (NbdsFlow){.scheduler = scheduler, .deficit_bytes = MIN_QUANTUM_BYTES};
}

void nbds_flow_done(NbdsFlow *flow)
{
    assert(!flow->is_waiting && !flow->n_executing);
}

bool nbds_flow_is_interactive(const NbdsFlow *flow)
{
    return flow->n_single >= INTERACTIVE_AFTER;
}

uint64_t nbds_flow_send_bytes(const NbdsFlow *flow)
{
    return has_others(flow->scheduler) ? quantum(flow->scheduler) : SEND_ALONE_BYTES;
}

bool nbds_flow_sends_at_once(const NbdsFlow *flow)
{
    return nbds_flow_is_interactive(flow) && has_others(flow->scheduler);
}

void nbds_flow_wait_turn(Fiber *self, NbdsFlow *flow)
{
    while (flow->deficit_bytes <= 0) {
        if (!flow->is_waiting)
            enqueue(flow);
        fiber_queue_wait(self, &flow->turn, false, "nbd: its next turn");
        flow->scheduler->n_woken -= flow->is_woken;
        flow->is_woken = false;
        plan_turn(flow->scheduler);
    }
}

void nbds_flow_charge(NbdsFlow *flow, uint64_t bytes)
{
    NbdsScheduler *s = flow->scheduler;
    update_period(s);
    if (flow->period != s->period) {
        flow->period = s->period;
        s->n_active++;
    }
    s->has_interactive |= nbds_flow_is_interactive(flow);
    flow->deficit_bytes -= (int64_t)bytes;
}

uint64_t nbds_flow_part_cost(const NbdsRequestHead *part)
{
    return part->type == NBDS_CMD_CACHE ? part->length : part->length / ZERO_BYTES_PER_BYTE;
}

static uint64_t cost(const NbdsRequestHead *head)
{
    bool has_data = head->type == NBDS_CMD_READ || head->type == NBDS_CMD_WRITE;
    return REQUEST_BYTES + (has_data ? head->length : 0);
}

// --- Requests ---

// One with FUA waits for the disk.
static bool is_small_write(const NbdsRequestHead *head)
{
    return head->type == NBDS_CMD_WRITE && head->length <= SMALL_WRITE_BYTES &&
           !(head->flags & NBDS_CMD_FLAG_FUA);
}

void nbds_flow_begin(NbdsFlow *flow, const NbdsRequestHead *head, unsigned n_in_flight)
{
    uint64_t bytes = cost(head);
    // Not the second one of a receive either: the answer to the first may have been sent already.
    bool is_single = n_in_flight == 1 && !flow->n_requests && bytes <= MIN_QUANTUM_BYTES;
    flow->n_single = is_single ? flow->n_single + 1 : 0;
    flow->n_requests++;
    flow->request_bytes += bytes;
    if (flow->n_executing++ == 0)
        flow->executing_since_ns = loop_now_ns(flow->scheduler->loop);
    flow->n_small_writes += is_small_write(head);
    nbds_flow_charge(flow, bytes);
}

void nbds_flow_refuse(NbdsFlow *flow)
{
    flow->n_requests++;
    flow->request_bytes += REQUEST_BYTES;
    flow->n_single = 0;
    nbds_flow_charge(flow, REQUEST_BYTES);
}

void nbds_flow_end(NbdsFlow *flow, const NbdsRequestHead *head)
{
    flow->n_executing--;
    if (is_small_write(head) && --flow->n_small_writes == 0)
        fiber_queue_wake_all(&flow->writes_ended);
}

// --- Receiving ---

// While a worker copies a client's small writes, what else comes waits in the socket, and is then
// received, handed over and answered together: a file's cached writes are made one after the other
// anyway. Only where all that the client has executing is such writes, since other requests may
// wait for a disk that shall not wait for requests, and so may writes that are not with a worker.
// Where others write, too, requests come in batches by themselves.
static bool shall_wait_for_writes(NbdsFlow *flow)
{
    if (flow->n_small_writes < MIN_SMALL_WRITES || flow->n_small_writes < flow->n_executing ||
        file_n_buffered_writes(flow->scheduler->loop) != flow->n_small_writes)
        return false;
    if (!flow->n_uncoalesced)
        return true;
    flow->n_uncoalesced--;
    return false;
}

NbdsReceive nbds_flow_next_receive(NbdsFlow *flow, bool is_inside)
{
    NbdsReceive receive = {.max_bytes = SIZE_MAX};
    bool is_small = flow->request_bytes <= (uint64_t)COALESCED_REQUEST_BYTES * flow->n_requests;
    if (has_others(flow->scheduler))
        receive.max_bytes = quantum(flow->scheduler);
    if (is_inside)
        return receive;
    if (shall_wait_for_writes(flow))
        receive.wait = NBDS_WAIT_WRITES;
    else if (!flow->n_executing && is_small)
        receive.wait = NBDS_WAIT_READER;
    return receive;
}

static void coalescing_timed_out(LoopTimer *timer)
{
    NbdsFlow *flow = (NbdsFlow *)((char *)timer - offsetof(NbdsFlow, coalesce_timeout));
    flow->n_uncoalesced = UNCOALESCED_RECEIVES;
    fiber_queue_wake_all(&flow->writes_ended);
}

int nbds_flow_wait_for_writes(Fiber *self, NbdsFlow *flow)
{
    Loop *loop = flow->scheduler->loop;
    flow->coalesce_timeout.fn = coalescing_timed_out;
    loop_timer_start(loop, &flow->coalesce_timeout, COALESCE_TIMEOUT_NS);
    int result = fiber_queue_wait(self, &flow->writes_ended, true, "nbd: its small writes");
    loop_timer_stop(loop, &flow->coalesce_timeout);
    return result;
}

void nbds_flow_received(NbdsFlow *flow)
{
    NbdsScheduler *s = flow->scheduler;
    flow->n_requests = 0;
    flow->request_bytes = 0;
    // What was left has lapsed: nothing was queued. A debt is carried.
    if (flow->turn_ns != loop_now_ns(s->loop) && !flow->is_waiting) {
        flow->turn_ns = loop_now_ns(s->loop);
        flow->deficit_bytes = MIN(flow->deficit_bytes, 0) + (int64_t)quantum(s);
    }
}
