// SPDX-License-Identifier: LGPL-2.1-or-later
// Streams over socket pairs and listeners: whole transfers through small buffers, ends, shutdown,
// cancel in each wait; receives that let the peer read first.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "chain-core/stream.h"

enum { BIG = 3 * 1024 * 1024 };

typedef struct Pair {
    Stream *a, *b;
    int result;
    bool is_done;
    uint8_t *buf;
    Fiber *fiber;
} Pair;

static void pair_open(Fiber *self, Pair *p)
{
    int fds[2];
    fiber_assert_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    *p = (Pair){.a = stream_new_fd(fiber_loop(self), fds[0]),
                .b = stream_new_fd(fiber_loop(self), fds[1])};
}

static void pair_close(Pair *p)
{
    stream_free(p->a);
    stream_free(p->b);
}

static void wait_done(Fiber *self, Pair *p)
{
    while (!p->is_done)
        fiber_assert_equal(fiber_sleep(self, 100000), 0);
}

static void receives_big(Fiber *self, void *arg)
{
    Pair *p = arg;
    p->result = stream_recv_all(self, p->b, p->buf, BIG);
    p->is_done = true;
}

FIBER_TEST(a_send_larger_than_the_socket_buffer_arrives_whole)
{
    Pair p;
    pair_open(self, &p);
    uint8_t *data = g_malloc(BIG);
    for (size_t i = 0; i < BIG; i++)
        data[i] = (uint8_t)(i * 31 + i / 251);
    p.buf = g_malloc0(BIG);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "receives", receives_big, &p, &p.fiber), 0);
    struct iovec iov[5] = {
        {data, 1}, {data + 1, 0}, {data + 1, 70000}, {data + 70001, 1000000}, {NULL, 0}};
    iov[4] = (struct iovec){data + 1070001, BIG - 1070001};
    fiber_assert_equal(stream_send(self, p.a, iov, 5), 0);
    wait_done(self, &p);
    fiber_assert_equal(p.result, 0);
    fiber_assert(!memcmp(data, p.buf, BIG));
    g_free(data);
    g_free(p.buf);
    pair_close(&p);
}

FIBER_TEST(recv_gives_what_is_there_then_the_end)
{
    Pair p;
    char buf[100];
    pair_open(self, &p);
    struct iovec iov = {"hello", 5};
    fiber_assert_equal(stream_send(self, p.a, &iov, 1), 0);
    fiber_assert_equal(stream_recv(self, p.b, buf, sizeof(buf)), 5);
    stream_free(p.a);
    p.a = NULL;
    fiber_assert_equal(stream_recv(self, p.b, buf, sizeof(buf)), 0);
    fiber_assert_equal(stream_recv_all(self, p.b, buf, 1), -ECONNRESET);
    iov = (struct iovec){"hello", 5};
    fiber_assert_equal(stream_send(self, p.b, &iov, 1), -EPIPE);
    pair_close(&p);
}

static void receives_one(Fiber *self, void *arg)
{
    Pair *p = arg;
    uint8_t c;
    p->result = (int)stream_recv(self, p->b, &c, 1);
    fiber_assert_equal(stream_recv(self, p->b, &c, 1), -ECANCELED); // and ever after
    p->is_done = true;
}

FIBER_TEST(shutdown_ends_a_pending_recv)
{
    Pair p;
    pair_open(self, &p);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "receives", receives_one, &p, &p.fiber), 0);
    fiber_assert_equal(fiber_sleep(self, 1000000), 0);
    fiber_assert(!p.is_done);
    stream_shutdown(p.b);
    stream_shutdown(p.b);
    wait_done(self, &p);
    fiber_assert_equal(p.result, -ECANCELED);
    struct iovec iov = {"x", 1};
    fiber_assert_equal(stream_send(self, p.b, &iov, 1), -EPIPE);
    pair_close(&p);
}

FIBER_TEST(cancel_ends_a_pending_recv)
{
    Pair p;
    pair_open(self, &p);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "receives", receives_one, &p, &p.fiber), 0);
    fiber_assert_equal(fiber_sleep(self, 1000000), 0);
    fiber_cancel(p.fiber);
    wait_done(self, &p);
    fiber_assert_equal(p.result, -ECANCELED);
    pair_close(&p);
}

FIBER_TEST(cancel_right_after_the_start_ends_a_recv)
{
    Pair p;
    pair_open(self, &p);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "receives", receives_one, &p, &p.fiber), 0);
    fiber_cancel(p.fiber); // before the operation was handed to the kernel
    wait_done(self, &p);
    fiber_assert_equal(p.result, -ECANCELED);
    pair_close(&p);
}

static void sends_big(Fiber *self, void *arg)
{
    Pair *p = arg;
    struct iovec iov[2] = {{p->buf, BIG / 2}, {p->buf + BIG / 2, BIG / 2}};
    p->result = stream_send(self, p->a, iov, 2);
    p->is_done = true;
}

static void stuck_send(Fiber *self, bool by_shutdown)
{
    Pair p;
    pair_open(self, &p);
    p.buf = g_malloc0(BIG);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "sends", sends_big, &p, &p.fiber), 0);
    fiber_assert_equal(fiber_sleep(self, 1000000), 0);
    fiber_assert(!p.is_done);
    if (by_shutdown)
        stream_shutdown(p.a);
    else
        fiber_cancel(p.fiber);
    wait_done(self, &p);
    fiber_assert(p.result == -ECANCELED || (by_shutdown && p.result == -EPIPE));
    g_free(p.buf);
    pair_close(&p);
}

FIBER_TEST(shutdown_ends_a_send_that_nobody_reads)
{
    stuck_send(self, true);
}

FIBER_TEST(cancel_ends_a_send_that_nobody_reads)
{
    stuck_send(self, false);
}

FIBER_TEST(a_stream_that_was_detached_goes_on_where_it_is_attached)
{
    Pair p;
    char c = 0;
    pair_open(self, &p);
    struct iovec iov = {"x", 1};
    fiber_assert_equal(stream_send(self, p.a, &iov, 1), 0);
    stream_detach(p.b);
    stream_attach(p.b, fiber_loop(self));
    fiber_assert_equal(stream_recv_all(self, p.b, &c, 1), 0);
    fiber_assert_equal(c, 'x');
    pair_close(&p);
}

// --- A receive that lets the peer read first ---

enum { ANSWERS = 200 << 10, COALESCED_ROUNDS = 1500 };

typedef struct Talk {
    Stream *stream;
    int peer;
    uint8_t *data;
    uint64_t start_ns;
    bool is_done;
    ssize_t result;
    Fiber *fiber;
} Talk;

static void peer_reads(Talk *t, size_t bytes)
{
    while (bytes) {
        ssize_t n = recv(t->peer, t->data, MIN(bytes, ANSWERS), 0);
        fiber_assert(n > 0);
        bytes -= (size_t)n;
    }
}

static void peer_is_sent(Fiber *self, Talk *t, size_t bytes)
{
    while (bytes) { // in pieces: the kernel gives each back when it was read
        struct iovec iov = {t->data, MIN(bytes, 16384)};
        bytes -= iov.iov_len;
        fiber_assert_equal(stream_send(self, t->stream, &iov, 1), 0);
    }
}

// A peer that asked for many answers and has read none of the last ones; its next request is there.
static void talk_begin(Fiber *self, Talk *t)
{
    int fds[2];
    fiber_assert_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    *t = (Talk){stream_new_fd(fiber_loop(self), fds[0]), fds[1], g_malloc0(ANSWERS)};
    uint8_t c = 0;
    for (unsigned i = 0; i < COALESCED_ROUNDS; i++) {
        peer_is_sent(self, t, ANSWERS);
        fiber_assert_equal(send(t->peer, &c, 1, 0), 1);
        // Read before or after the receive: it does not wait until it has learnt to.
        peer_reads(t, ANSWERS / 4 * 3);
        fiber_assert_equal(stream_recv_coalesced(self, t->stream, &c, 1, ANSWERS / 4 * 3), 1);
        peer_reads(t, ANSWERS / 4);
    }
    peer_is_sent(self, t, ANSWERS);
    fiber_assert_equal(send(t->peer, &c, 1, 0), 1);
}

static void talk_end(Talk *t)
{
    stream_free(t->stream);
    close(t->peer);
    g_free(t->data);
}

static void receives_coalesced(Fiber *self, void *arg)
{
    Talk *t = arg;
    uint8_t c[4];
    t->result = stream_recv_coalesced(self, t->stream, c, sizeof c, 0);
    t->is_done = true;
}

static void talk_wait(Fiber *self, Talk *t)
{
    while (!t->is_done)
        fiber_assert_equal(fiber_sleep(self, 100000), 0);
}

// Is it certain that the receive has not timed out yet? On a slow machine it may have before the
// test did what it meant to: then it starts anew.
static bool talk_is_in_time(Fiber *self, const Talk *t)
{
    return loop_now_ns(fiber_loop(self)) - t->start_ns < 4000000;
}

static void talk_receive(Fiber *self, Talk *t)
{
    Loop *loop = fiber_loop(self);
    t->start_ns = loop_now_ns(loop);
    fiber_assert_equal(fiber_spawn(loop, "coalesces", receives_coalesced, t, &t->fiber), 0);
    fiber_assert_equal(fiber_sleep(self, 500000), 0);
    fiber_assert(!t->is_done || !talk_is_in_time(self, t));
}

static bool reads_half_in_time(Fiber *self, Talk *t)
{
    fiber_assert_equal(send(t->peer, "y", 1, 0), 1);
    peer_reads(t, ANSWERS / 4);
    fiber_assert_equal(fiber_sleep(self, 500000), 0);
    if (!talk_is_in_time(self, t))
        return false;
    fiber_assert(!t->is_done);
    peer_reads(t, ANSWERS / 2);
    talk_wait(self, t);
    fiber_assert_equal(t->result, 2); // both, in one piece
    return true;
}

static bool shutdown_in_time(Fiber *self, Talk *t)
{
    stream_shutdown(t->stream);
    talk_wait(self, t);
    fiber_assert_equal(t->result, -ECANCELED);
    return true;
}

static bool cancel_in_time(Fiber *self, Talk *t)
{
    fiber_cancel(t->fiber);
    talk_wait(self, t);
    fiber_assert_equal(t->result, -ECANCELED);
    return true;
}

static void until_in_time(Fiber *self, bool (*test)(Fiber *self, Talk *t))
{
    for (bool was_in_time = false; !was_in_time;) {
        Talk t;
        talk_begin(self, &t);
        talk_receive(self, &t);
        was_in_time = talk_is_in_time(self, &t) && test(self, &t);
        talk_wait(self, &t);
        talk_end(&t);
    }
}

FIBER_TEST(a_coalesced_receive_waits_until_the_peer_has_read_half)
{
    until_in_time(self, reads_half_in_time);
}

FIBER_TEST(shutdown_ends_a_coalesced_receive)
{
    until_in_time(self, shutdown_in_time);
}

FIBER_TEST(cancel_ends_a_coalesced_receive)
{
    until_in_time(self, cancel_in_time);
}

FIBER_TEST(a_coalesced_receive_ends_although_its_peer_does_not_read)
{
    Talk t;
    talk_begin(self, &t);
    talk_receive(self, &t);
    talk_wait(self, &t);
    fiber_assert_equal(t.result, 1);
    fiber_assert(!talk_is_in_time(self, &t));
    talk_end(&t);
}

FIBER_TEST(a_coalesced_receive_gives_the_end_of_a_peer_that_left)
{
    Talk t;
    talk_begin(self, &t);
    talk_receive(self, &t);
    close(t.peer);
    t.peer = -1;
    talk_wait(self, &t);
    fiber_assert(t.result <= 1); // the request, the end, or that answers were lost
    talk_end(&t);
}

typedef struct Accepting {
    StreamListener *listener;
    int result;
    bool is_done;
    Fiber *fiber;
} Accepting;

static void accepts(Fiber *self, void *arg)
{
    Accepting *a = arg;
    a->result = stream_accept(self, a->listener);
    a->is_done = true;
}

static int listen_somewhere(struct sockaddr_un *ret_address, socklen_t *ret_len)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    fiber_assert_equal(bind(fd, (void *)ret_address, sizeof(sa_family_t)), 0); // kernel names it
    *ret_len = sizeof(*ret_address);
    fiber_assert_equal(getsockname(fd, (void *)ret_address, ret_len), 0);
    fiber_assert_equal(listen(fd, 4), 0);
    return fd;
}

FIBER_TEST(accept_gives_each_connection_and_ends_at_shutdown_or_cancel)
{
    struct sockaddr_un address;
    socklen_t len;
    Accepting a[3] = {0};
    for (int i = 0; i < 3; i++) {
        int listener = listen_somewhere(&address, &len);
        a[i].listener = stream_listener_new_fd(fiber_loop(self), listener);
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "accepts", accepts, &a[i], &a[i].fiber),
                           0);
        fiber_assert_equal(fiber_sleep(self, 1000000), 0);
        fiber_assert(!a[i].is_done);
        int client = -1;
        if (i == 0) {
            client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
            fiber_assert_equal(connect(client, (void *)&address, len), 0);
        } else if (i == 1) {
            stream_listener_shutdown(a[i].listener);
        } else {
            fiber_cancel(a[i].fiber);
        }
        while (!a[i].is_done)
            fiber_assert_equal(fiber_sleep(self, 100000), 0);
        if (i == 0) {
            fiber_assert(a[i].result >= 0);
            fiber_assert(fcntl(a[i].result, F_GETFL) & O_NONBLOCK);
            fiber_assert(fcntl(a[i].result, F_GETFD) & FD_CLOEXEC);
            close(a[i].result);
            close(client);
        } else {
            fiber_assert_equal(a[i].result, -ECANCELED);
        }
        stream_listener_free(a[i].listener);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_send_larger_than_the_socket_buffer_arrives_whole),
        cmocka_unit_test(recv_gives_what_is_there_then_the_end),
        cmocka_unit_test(shutdown_ends_a_pending_recv),
        cmocka_unit_test(cancel_ends_a_pending_recv),
        cmocka_unit_test(cancel_right_after_the_start_ends_a_recv),
        cmocka_unit_test(shutdown_ends_a_send_that_nobody_reads),
        cmocka_unit_test(cancel_ends_a_send_that_nobody_reads),
        cmocka_unit_test(a_coalesced_receive_waits_until_the_peer_has_read_half),
        cmocka_unit_test(a_coalesced_receive_ends_although_its_peer_does_not_read),
        cmocka_unit_test(a_coalesced_receive_gives_the_end_of_a_peer_that_left),
        cmocka_unit_test(shutdown_ends_a_coalesced_receive),
        cmocka_unit_test(cancel_ends_a_coalesced_receive),
        cmocka_unit_test(a_stream_that_was_detached_goes_on_where_it_is_attached),
        cmocka_unit_test(accept_gives_each_connection_and_ends_at_shutdown_or_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
