// SPDX-License-Identifier: LGPL-2.1-or-later
// Letting a client's small writes end. On the connection's loop.
#include "settle.h"

#include "connection.h"

enum {
    SMALL_BYTES = 8 << 10,
    WORTH_WAITING = 2,     // writes; with one in flight a client waits itself
    LEFT_ALONE = 1024,     // receives
    PATIENCE_NS = 2000000, // many times what a worker takes for so many as a client has in flight
};

// One with FUA waits for the disk.
static bool is_small_write(const NbdsRequestHead *head)
{
    return head->type == NBDS_CMD_WRITE && head->length <= SMALL_BYTES &&
           !(head->flags & NBDS_CMD_FLAG_FUA);
}

void nbds_settling_begin(NbdsConnection *c, const NbdsRequestHead *head)
{
    c->settling.n_writes += is_small_write(head);
}

void nbds_settling_end(NbdsConnection *c, const NbdsRequestHead *head)
{
    if (is_small_write(head) && --c->settling.n_writes == 0)
        fiber_queue_wake_all(&c->settling.ended);
}

static void patience_ends(LoopTimer *timer)
{
    NbdsSettling *s = (NbdsSettling *)((char *)timer - offsetof(NbdsSettling, patience));
    s->n_left_alone = LEFT_ALONE;
    fiber_queue_wake_all(&s->ended);
}

int nbds_settling_wait(Fiber *self, NbdsConnection *c)
{
    NbdsSettling *s = &c->settling;
    // Other requests may wait for a disk, which shall not wait for requests; so may writes that
    // are not with a worker (direct ones, those that first read what is below). Where others write,
    // too, requests gather anyway, and ours would wait for theirs.
    if (s->n_writes < WORTH_WAITING || s->n_writes < c->n_executing || c->is_urgent ||
        file_n_buffered_writes(c->home->loop) != s->n_writes)
        return 0;
    if (s->n_left_alone) {
        s->n_left_alone--;
        return 0;
    }
    s->patience.fn = patience_ends;
    loop_timer_start(c->home->loop, &s->patience, PATIENCE_NS);
    int result = fiber_queue_wait(self, &s->ended, true, "nbd: lets small writes end");
    loop_timer_stop(c->home->loop, &s->patience);
    return result;
}
