// SPDX-License-Identifier: LGPL-2.1-or-later
// The way of freed clusters, on the simulation: what is durable is released by one fiber at a time,
// whatever becomes durable meanwhile, and all of it in the end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chain-core/sim.h"
#include "qcow2/freed.h"

enum { N_ROUNDS = 5 };

typedef struct Scene {
    FreedClusters freed;
    FiberWaitGroup fibers;
    unsigned n_inside, n_released, n_begun;
} Scene;

static void become_durable(Scene *s)
{
    freed_add_durable(&s->freed, (ClusterRange){7, 1});
    s->n_begun++;
    freed_turn(&s->freed);
}

// Where a cluster is named twice, all that is released is that cluster.
static void release(Fiber *self, void *arg, ClusterRange range)
{
    Scene *s = arg;
    assert_int_equal(s->n_inside, 0);
    s->n_inside++;
    fiber_sleep(self, 1000);
    if (s->n_begun < N_ROUNDS)
        become_durable(s); // a write-back ends, while this one is punching
    fiber_sleep(self, 1000);
    s->n_inside--;
    s->n_released++;
}

static void release_while_more_becomes_durable(Fiber *self, void *arg)
{
    Scene *s = arg;
    freed_init(&s->freed, fiber_loop(self), &s->fibers, release, s);
    become_durable(s);
    while (freed_is_pending(&s->freed))
        freed_wait(self, &s->freed);
    fiber_wait_group_wait(self, &s->fibers);
    assert_int_equal(s->n_released, N_ROUNDS);
    assert_int_equal(s->freed.n_released, N_ROUNDS);
    freed_done(&s->freed);
}

static void ranges_are_released_by_one_fiber_at_a_time(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Scene scene = {0};
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        assert_true(sim_run(sim, release_while_more_becomes_durable, &scene));
        sim_free(sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_released_by_one_fiber_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
