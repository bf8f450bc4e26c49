// SPDX-License-Identifier: LGPL-2.1-or-later
// Simulated streams: fragmentation, back-pressure, end of stream, shutdown, cancellation.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim.h"

enum { MESSAGE_BYTES = 300 * 1000 }; // more than any pipe holds

typedef struct Talk {
    Stream *a, *b;
    FiberWaitGroup group;
    unsigned n_receives;
    bool has_full_receive;
} Talk;

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(i * 7 + i / 256);
}

static void sender(Fiber *self, void *arg)
{
    Talk *talk = arg;
    g_autofree uint8_t *data = g_malloc(MESSAGE_BYTES);
    for (size_t i = 0; i < MESSAGE_BYTES; i++)
        data[i] = byte_at(i);
    struct iovec iov[] = {{data, 10}, {data + 10, 0}, {data + 10, MESSAGE_BYTES - 10}};
    assert_int_equal(stream_send(self, talk->a, iov, 3), 0);
    stream_free(talk->a);
    fiber_wait_group_done(&talk->group);
}

static void receive_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    uint8_t buf[1000];
    size_t n = 0;
    ssize_t r;
    sim_stream_pair(fiber_loop(self), &talk->a, &talk->b);
    fiber_wait_group_add(&talk->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "sender", sender, talk, NULL), 0);
    while ((r = stream_recv(self, talk->b, buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < r; i++, n++)
            assert_int_equal(buf[i], byte_at(n));
        talk->n_receives++;
        talk->has_full_receive |= r == sizeof(buf);
    }
    assert_int_equal(r, 0);
    assert_int_equal(n, MESSAGE_BYTES);
    fiber_wait_group_wait(self, &talk->group);
    stream_free(talk->b);
}

static void bytes_arrive_in_order_in_pieces_that_the_seed_cuts(void **state)
{
    unsigned first = 0, n_different = 0;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        Talk talk = {0};
        assert_true(sim_run(sim, receive_main, &talk));
        assert_true(talk.n_receives > MESSAGE_BYTES / 1000);
        assert_true(talk.has_full_receive);
        first = seed == 1 ? talk.n_receives : first;
        n_different += talk.n_receives != first;
        sim_free(sim);
    }
    assert_true(n_different >= 5);
}

static void blocked_sender(Fiber *self, void *arg)
{
    Talk *talk = arg;
    g_autofree uint8_t *data = g_malloc0(MESSAGE_BYTES);
    struct iovec iov = {data, MESSAGE_BYTES};
    int r = stream_send(self, talk->a, &iov, 1);
    talk->n_receives = 1; // it returned
    assert_true(r == -EPIPE || r == -ECANCELED);
    fiber_wait_group_done(&talk->group);
}

static void spawn_blocked(Fiber *self, Talk *talk, Fiber **ret_fiber)
{
    sim_stream_pair(fiber_loop(self), &talk->a, &talk->b);
    fiber_wait_group_add(&talk->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "sender", blocked_sender, talk, ret_fiber), 0);
    assert_int_equal(fiber_sleep(self, 1000000000), 0);
    assert_int_equal(talk->n_receives, 0); // the pipe is full, nobody reads
}

static void peer_leaves_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    spawn_blocked(self, talk, NULL);
    stream_free(talk->b);
    fiber_wait_group_wait(self, &talk->group);
    stream_free(talk->a);
}

static void cancel_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    Fiber *fiber;
    spawn_blocked(self, talk, &fiber);
    fiber_cancel(fiber);
    fiber_wait_group_wait(self, &talk->group);
    stream_free(talk->a);
    stream_free(talk->b);
}

static void shutdown_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    uint8_t byte;
    spawn_blocked(self, talk, NULL);
    stream_shutdown(talk->a);
    fiber_wait_group_wait(self, &talk->group);
    assert_true(stream_recv(self, talk->a, &byte, 1) <= 0);
    while (stream_recv(self, talk->b, &byte, 1) > 0) // what was sent before
        ;
    assert_int_equal(stream_recv(self, talk->b, &byte, 1), 0);
    struct iovec iov = {&byte, 1};
    assert_int_equal(stream_send(self, talk->b, &iov, 1), -EPIPE);
    stream_free(talk->a);
    stream_free(talk->b);
}

static void receiver(Fiber *self, void *arg)
{
    Talk *talk = arg;
    uint8_t byte;
    ssize_t r = stream_recv(self, talk->b, &byte, 1);
    assert_int_equal(r, -ECANCELED);
    talk->n_receives = 1;
    fiber_wait_group_done(&talk->group);
}

static void cancel_receiver_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    Fiber *fiber;
    sim_stream_pair(fiber_loop(self), &talk->a, &talk->b);
    fiber_wait_group_add(&talk->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "receiver", receiver, talk, &fiber), 0);
    assert_int_equal(fiber_sleep(self, 1000000000), 0);
    assert_int_equal(talk->n_receives, 0);
    fiber_cancel(fiber);
    fiber_wait_group_wait(self, &talk->group);
    stream_free(talk->a);
    stream_free(talk->b);
}

static void run_each_seed(FiberFn *fn)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        Talk talk = {0};
        assert_true(sim_run(sim, fn, &talk));
        sim_free(sim);
    }
}

static void a_sender_waits_while_nobody_reads_and_hears_that_the_peer_left(void **state)
{
    run_each_seed(peer_leaves_main);
}

static void a_waiting_sender_can_be_cancelled(void **state)
{
    run_each_seed(cancel_main);
}

static void a_waiting_receiver_can_be_cancelled(void **state)
{
    run_each_seed(cancel_receiver_main);
}

static void a_shutdown_ends_both_directions(void **state)
{
    run_each_seed(shutdown_main);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_arrive_in_order_in_pieces_that_the_seed_cuts),
        cmocka_unit_test(a_sender_waits_while_nobody_reads_and_hears_that_the_peer_left),
        cmocka_unit_test(a_waiting_sender_can_be_cancelled),
        cmocka_unit_test(a_waiting_receiver_can_be_cancelled),
        cmocka_unit_test(a_shutdown_ends_both_directions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
