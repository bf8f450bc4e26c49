// SPDX-License-Identifier: LGPL-2.1-or-later
// Locks and conditions: exclusion, order of arrival, hand-over, cancellation.
#include "in-fiber.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/io-batch.h"

typedef struct Shared {
    FiberMutex mutex;
    FiberRwLock rw;
    FiberCond cond;
    FiberSemaphore semaphore;
    FiberWaitGroup group;
    FiberQueue queue;
    int n_inside, n_max;
    bool is_set;
    char order[32];
    int results[4];
} Shared;

typedef struct Actor {
    Shared *shared;
    char name;
    int want;
    int result;
    Fiber *fiber;
} Actor;

static void note(Actor *a)
{
    size_t n = strlen(a->shared->order);
    a->shared->order[n] = a->name;
    a->shared->order[n + 1] = '\0';
}

static void start(Fiber *self, Actor *a, FiberFn *fn)
{
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "actor", fn, a, &a->fiber), 0);
}

static void let_others_run(Fiber *self)
{
    for (int i = 0; i < 20; i++)
        fiber_yield(self);
}

static void locks_mutex(Fiber *self, void *arg)
{
    Actor *a = arg;
    fiber_mutex_lock(self, &a->shared->mutex);
    fiber_assert(!fiber_mutex_try_lock(self, &a->shared->mutex));
    fiber_assert_equal(a->shared->n_inside++, 0);
    note(a);
    fiber_yield(self);
    a->shared->n_inside--;
    fiber_mutex_unlock(self, &a->shared->mutex);
}

FIBER_TEST(a_mutex_admits_one_in_order_of_arrival)
{
    Shared s = {0};
    Actor a[3] = {{&s, 'a'}, {&s, 'b'}, {&s, 'c'}};
    fiber_mutex_lock(self, &s.mutex);
    for (int i = 0; i < 3; i++)
        start(self, &a[i], locks_mutex);
    fiber_mutex_unlock(self, &s.mutex);
    fiber_assert(!fiber_mutex_try_lock(self, &s.mutex)); // handed over
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "abc"));
    fiber_assert(fiber_mutex_try_lock(self, &s.mutex));
    fiber_mutex_unlock(self, &s.mutex);
}

static void reads(Fiber *self, void *arg)
{
    Actor *a = arg;
    fiber_rw_lock_read(self, &a->shared->rw);
    a->shared->n_inside++;
    a->shared->n_max = MAX(a->shared->n_max, a->shared->n_inside);
    note(a);
    fiber_yield(self);
    a->shared->n_inside--;
    fiber_rw_unlock_read(self, &a->shared->rw);
}

static void writes(Fiber *self, void *arg)
{
    Actor *a = arg;
    fiber_rw_lock_write(self, &a->shared->rw);
    fiber_assert_equal(a->shared->n_inside++, 0);
    note(a);
    fiber_yield(self);
    a->shared->n_inside--;
    fiber_rw_unlock_write(self, &a->shared->rw);
}

FIBER_TEST(readers_share_and_a_waiting_writer_keeps_later_readers_out)
{
    Shared s = {0};
    Actor a[5] = {{&s, 'a'}, {&s, 'b'}, {&s, 'W'}, {&s, 'c'}, {&s, 'd'}};
    for (int i = 0; i < 5; i++)
        start(self, &a[i], a[i].name == 'W' ? writes : reads);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "abWcd"));
    fiber_assert_equal(s.n_max, 2);
}

static void waits_for_cond(Fiber *self, void *arg)
{
    Actor *a = arg;
    fiber_mutex_lock(self, &a->shared->mutex);
    while (!a->shared->is_set && a->result == 0)
        a->result = fiber_cond_wait(self, &a->shared->cond, &a->shared->mutex);
    fiber_assert(a->shared->mutex.owner == self);
    note(a);
    fiber_mutex_unlock(self, &a->shared->mutex);
}

FIBER_TEST(a_condition_wakes_one_or_all_and_a_cancelled_waiter_holds_the_mutex)
{
    Shared s = {0};
    Actor a[4] = {{&s, 'a'}, {&s, 'b'}, {&s, 'c'}, {&s, 'd'}};
    for (int i = 0; i < 4; i++)
        start(self, &a[i], waits_for_cond);
    fiber_cond_signal(&s.cond); // `a` finds nothing set and waits again, as the last
    let_others_run(self);
    fiber_assert(!strcmp(s.order, ""));
    fiber_cancel(a[2].fiber);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "c"));
    fiber_assert_equal(a[2].result, -ECANCELED);
    s.is_set = true;
    fiber_cond_signal(&s.cond);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "cb"));
    fiber_cond_broadcast(&s.cond);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "cbda"));
    fiber_assert_equal(a[0].result, 0);
}

static void acquires(Fiber *self, void *arg)
{
    Actor *a = arg;
    a->result = fiber_semaphore_acquire(self, &a->shared->semaphore, (uint64_t)a->want);
    note(a);
}

FIBER_TEST(a_semaphore_is_fair_and_a_cancelled_waiter_does_not_hold_up_the_next)
{
    Shared s = {.semaphore.available = 3};
    Actor a[3] = {{&s, 'a', 2}, {&s, 'b', 4}, {&s, 'c', 1}};
    for (int i = 0; i < 3; i++)
        start(self, &a[i], acquires);
    fiber_assert(!strcmp(s.order, "a"));
    fiber_assert(!fiber_semaphore_try_acquire(&s.semaphore, 1)); // `b` waits, so nobody passes
    fiber_cancel(a[1].fiber);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "abc"));
    fiber_assert_equal(a[1].result, -ECANCELED);
    fiber_assert_equal(a[2].result, 0);
    fiber_semaphore_release(&s.semaphore, 3);
    fiber_assert(fiber_semaphore_try_acquire(&s.semaphore, 3));
    fiber_assert(!fiber_semaphore_try_acquire(&s.semaphore, 1));
}

FIBER_TEST(units_handed_to_a_waiter_that_is_then_cancelled_are_not_lost)
{
    Shared s = {0};
    Actor a = {&s, 'a', 2};
    start(self, &a, acquires);
    fiber_semaphore_release(&s.semaphore, 2);
    fiber_cancel(a.fiber);
    let_others_run(self);
    fiber_assert_equal(a.result, 0);
    fiber_assert_equal(s.semaphore.available, 0);
}

static void is_member(Fiber *self, void *arg)
{
    Actor *a = arg;
    fiber_yield(self);
    note(a);
    fiber_wait_group_done(&a->shared->group);
}

FIBER_TEST(a_wait_group_waits_for_all)
{
    Shared s = {0};
    Actor a[3] = {{&s, 'a'}, {&s, 'b'}, {&s, 'c'}};
    fiber_wait_group_wait(self, &s.group); // nobody
    fiber_wait_group_add(&s.group, 3);
    for (int i = 0; i < 3; i++)
        start(self, &a[i], is_member);
    fiber_wait_group_wait(self, &s.group);
    fiber_assert(!strcmp(s.order, "abc"));
}

static void waits_in_queue(Fiber *self, void *arg)
{
    Actor *a = arg;
    a->result = fiber_queue_wait(self, &a->shared->queue, a->want, "queue");
    note(a);
}

FIBER_TEST(a_queue_wakes_in_order_and_only_cancellable_waits_are_cancelled)
{
    Shared s = {0};
    Actor a[3] = {{&s, 'a', false}, {&s, 'b', true}, {&s, 'c', true}};
    fiber_assert(!fiber_queue_wake_one(&s.queue));
    for (int i = 0; i < 3; i++)
        start(self, &a[i], waits_in_queue);
    fiber_cancel(a[0].fiber);
    fiber_cancel(a[1].fiber);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "b"));
    fiber_assert_equal(a[1].result, -ECANCELED);
    fiber_assert(fiber_queue_wake_one(&s.queue));
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "ba"));
    fiber_queue_wake_all(&s.queue);
    let_others_run(self);
    fiber_assert(!strcmp(s.order, "bac"));
    fiber_assert(fiber_queue_is_empty(&s.queue));
}

static int n_drained;
static void count_drained(IoPin *pin)
{
    n_drained++;
}

typedef struct Limited {
    FiberQueue *queue;
    uint64_t ns;
    int result; // 1: not over yet
} Limited;

static void limited_fiber(Fiber *self, void *arg)
{
    Limited *limited = arg;
    uint64_t limit = limited->ns ? loop_now_ns(fiber_loop(self)) + limited->ns : UINT64_MAX;
    limited->result = fiber_queue_wait_until(self, limited->queue, limit, "test: limited");
}

FIBER_TEST(a_wait_with_a_deadline_ends_by_a_wake_its_deadline_or_a_cancellation)
{
    FiberQueue queue = {0};
    Loop *loop = fiber_loop(self);
    Limited late = {&queue, 1000000, 1}, woken = {&queue, UINT64_C(1) << 60, 1};
    Limited cancelled = {&queue, 0, 1};
    Fiber *fiber;
    fiber_assert(fiber_spawn(loop, "late", limited_fiber, &late, NULL) == 0);
    fiber_assert(fiber_spawn(loop, "woken", limited_fiber, &woken, NULL) == 0);
    fiber_assert(fiber_spawn(loop, "cancelled", limited_fiber, &cancelled, &fiber) == 0);
    while (late.result == 1)
        fiber_sleep(self, 100000);
    fiber_assert_equal(late.result, -ETIMEDOUT);
    fiber_cancel(fiber);
    while (cancelled.result == 1)
        fiber_yield(self);
    fiber_assert_equal(cancelled.result, -ECANCELED);
    fiber_assert(woken.result == 1 && fiber_queue_wake_one(&queue));
    fiber_assert(!fiber_queue_wake_one(&queue));
    while (woken.result == 1)
        fiber_yield(self);
    fiber_assert_equal(woken.result, 0);
}

FIBER_TEST(a_batch_holds_each_pin_once_and_lets_go_after_the_wait)
{
    IoPin pins[IO_BATCH_PINS + 1];
    IoBatch batch;
    n_drained = 0;
    io_batch_init(&batch, self);
    for (int i = 0; i <= IO_BATCH_PINS; i++)
        pins[i] = (IoPin){.drained = count_drained};
    for (int i = 0; i < IO_BATCH_PINS; i++) {
        io_batch_pin(self, &batch, &pins[i]);
        io_batch_pin(self, &batch, &pins[i]);
        fiber_assert_equal(pins[i].n_holders, 1);
    }
    io_batch_begin(&batch);
    io_batch_end(&batch, -EIO);
    io_batch_pin(self, &batch, &pins[IO_BATCH_PINS]); // no place: waits first, keeps the error
    fiber_assert_equal(n_drained, IO_BATCH_PINS);
    fiber_assert_equal(io_batch_wait(self, &batch), -EIO);
    fiber_assert_equal(n_drained, IO_BATCH_PINS + 1);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mutex_admits_one_in_order_of_arrival),
        cmocka_unit_test(readers_share_and_a_waiting_writer_keeps_later_readers_out),
        cmocka_unit_test(a_condition_wakes_one_or_all_and_a_cancelled_waiter_holds_the_mutex),
        cmocka_unit_test(a_semaphore_is_fair_and_a_cancelled_waiter_does_not_hold_up_the_next),
        cmocka_unit_test(units_handed_to_a_waiter_that_is_then_cancelled_are_not_lost),
        cmocka_unit_test(a_wait_group_waits_for_all),
        cmocka_unit_test(a_queue_wakes_in_order_and_only_cancellable_waits_are_cancelled),
        cmocka_unit_test(a_wait_with_a_deadline_ends_by_a_wake_its_deadline_or_a_cancellation),
        cmocka_unit_test(a_batch_holds_each_pin_once_and_lets_go_after_the_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
