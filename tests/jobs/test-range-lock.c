// SPDX-License-Identifier: LGPL-2.1-or-later
// Range locks in the simulation: who overlaps goes in order of arrival, who does not goes at once.
#include "../node/on-sim.h"

#include <glib.h>

#include "chain-core/fiber-sync.h"
#include "range-lock.h"

enum { N_UNITS = 16, N_FIBERS = 24, N_TURNS = 8 };

typedef struct Scene {
    RangeLock lock;
    GRand *rand;
    FiberWaitGroup fibers;
    unsigned holder[N_UNITS]; // 0: nobody
    unsigned next_place, last_place[N_UNITS];
    unsigned next_fiber;
} Scene;

static void hold_one(Fiber *self, Scene *s, unsigned me)
{
    unsigned first = (unsigned)g_rand_int_range(s->rand, 0, N_UNITS);
    unsigned end = (unsigned)g_rand_int_range(s->rand, (gint32)first, N_UNITS) + 1;
    unsigned place = ++s->next_place;
    RangeHold hold;
    range_lock_take(self, &s->lock, &hold, first, end - first);
    for (unsigned i = first; i < end; i++) {
        fiber_assert_equal(s->holder[i], 0);
        fiber_assert(s->last_place[i] < place);
        s->holder[i] = me;
        s->last_place[i] = place;
    }
    fiber_sleep(self, (uint64_t)g_rand_int_range(s->rand, 0, 1000));
    for (unsigned i = first; i < end; i++) {
        fiber_assert_equal(s->holder[i], me);
        s->holder[i] = 0;
    }
    range_lock_release(&s->lock, &hold);
}

static void hold_many(Fiber *self, void *arg)
{
    Scene *s = arg;
    unsigned me = ++s->next_fiber;
    for (unsigned i = 0; i < N_TURNS; i++) {
        hold_one(self, s, me);
        fiber_sleep(self, (uint64_t)g_rand_int_range(s->rand, 0, 1000));
    }
    fiber_wait_group_done(&s->fibers);
}

SIM_TEST(overlapping_ranges_are_held_in_order_of_arrival)
{
    static guint32 seed;
    Scene s = {.rand = g_rand_new_with_seed(++seed)};
    fiber_wait_group_add(&s.fibers, N_FIBERS);
    for (unsigned i = 0; i < N_FIBERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "holder", hold_many, &s, NULL), 0);
    fiber_wait_group_wait(self, &s.fibers);
    fiber_assert(range_lock_is_free(&s.lock));
    g_rand_free(s.rand);
}

SIM_TEST(what_does_not_overlap_does_not_wait)
{
    RangeLock lock = {0};
    RangeHold a, b, none;
    range_lock_take(self, &lock, &a, 0, 10);
    range_lock_take(self, &lock, &b, 10, 10); // would never return
    range_lock_take(self, &lock, &none, 5, 0);
    range_lock_release(&lock, &a);
    range_lock_release(&lock, &none);
    range_lock_release(&lock, &b);
    fiber_assert(range_lock_is_free(&lock));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overlapping_ranges_are_held_in_order_of_arrival),
        cmocka_unit_test(what_does_not_overlap_does_not_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
