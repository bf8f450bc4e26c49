// SPDX-License-Identifier: LGPL-2.1-or-later
// The pace of busy clients beside one that waits. On the server's loop.
#include "pace.h"

#include "connection.h"

static const uint64_t BYTES_PER_ANSWER = 64 << 10;
static const uint64_t MAX_BYTES = 1 << 20; // that can be owed
// Sent alone and answered alone, a request costs its client as much as copying this.
static const uint64_t BYTES_OF_REQUEST = 32 << 10;
static const uint64_t REST_NS = 60000; // at most, until the next answer
static const uint64_t SHORT_REST_NS = 20000;
enum { THOUGHTFUL = 4 };

// Where the next request of the one that waits is worth waiting for: unless several in a row came
// late. Elsewhere only requests count.
static bool counts_bytes(const NbdsPace *pace)
{
    return pace->n_thoughts < THOUGHTFUL;
}

static bool has_light(const NbdsServerLoop *home)
{
    return home->light_until_ns > loop_now_ns(home->loop);
}

static bool is_paced(const NbdsConnection *c)
{
    return !c->is_light && nbds_connection_company(c) == NBDS_COMPANY_LIGHT;
}

static void pass_on(NbdsPace *pace)
{
    if (!pace->is_resting && !pace->is_passing)
        pace->is_passing = fiber_queue_wake_one(&pace->resting);
}

static void go_on(NbdsServerLoop *home);

static void rest_ends(LoopTimer *timer)
{
    go_on((NbdsServerLoop *)((char *)timer - offsetof(NbdsServerLoop, pace.timer)));
}

static void rest(NbdsServerLoop *home)
{
    NbdsPace *pace = &home->pace;
    pace->is_resting = true;
    home->busy_until_ns = loop_now_ns(home->loop) + NBDS_LIGHT_NS;
    pace->timer.fn = rest_ends;
    loop_timer_start(home->loop, &pace->timer, counts_bytes(pace) ? REST_NS : SHORT_REST_NS);
}

static void go_on(NbdsServerLoop *home)
{
    NbdsPace *pace = &home->pace;
    pace->taken -= MIN(pace->taken, BYTES_PER_ANSWER);
    if (pace->taken >= BYTES_PER_ANSWER && has_light(home))
        return rest(home);
    pace->is_resting = false;
    pass_on(pace);
}

static void take(Fiber *self, NbdsConnection *c, uint64_t bytes)
{
    NbdsPace *pace = &c->home->pace;
    while ((pace->is_resting || pace->is_passing) && is_paced(c)) {
        fiber_queue_wait(self, &pace->resting, false, "nbd: others wait for single answers");
        pace->is_passing = false;
    }
    if (is_paced(c)) {
        pace->taken = MIN(pace->taken + MIN(bytes, MAX_BYTES), MAX_BYTES);
        if (pace->taken >= BYTES_PER_ANSWER)
            return rest(c->home);
    }
    pass_on(pace);
}

void nbds_pace_take_request(Fiber *self, NbdsConnection *c, bool is_large)
{
    // The bytes of a large one count by themselves where the next answer is waited for.
    bool is_alone = is_large && !counts_bytes(&c->home->pace);
    take(self, c, is_alone ? BYTES_PER_ANSWER : BYTES_OF_REQUEST);
}

void nbds_pace_take_bytes(Fiber *self, NbdsConnection *c, uint64_t bytes)
{
    if (counts_bytes(&c->home->pace))
        take(self, c, bytes);
    else if (is_paced(c))
        fiber_sleep(self, 0); // no request is expected just now: a turn of the loop will do
}

void nbds_pace_answered(NbdsConnection *c)
{
    NbdsServerLoop *home = c->home;
    home->pace.answered_ns = loop_now_ns(home->loop);
    loop_timer_stop(home->loop, &home->pace.timer);
    go_on(home);
}

void nbds_pace_asked(NbdsConnection *c)
{
    NbdsServerLoop *home = c->home;
    bool is_late = loop_now_ns(home->loop) - home->pace.answered_ns >= REST_NS;
    home->pace.n_thoughts = is_late ? home->pace.n_thoughts + 1 : 0;
}

void nbds_pace_stop(Loop *loop, NbdsPace *pace)
{
    loop_timer_stop(loop, &pace->timer);
    pace->taken = 0;
    pace->is_resting = pace->is_passing = false;
    fiber_queue_wake_all(&pace->resting);
}
