// SPDX-License-Identifier: LGPL-2.1-or-later
// The nbd driver and a server that ends its first connection at a chosen moment: which flushes
// fail then. The later connections answer everything, so that only the node can know of a loss.
#include "node/driver-node.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "qcow2/host.h"

enum { SIZE = 1 << 20, LEN = 512, WRITE = 1, DISCONNECT = 2, FLUSH = 3, N_FLUSHES = 2 };

typedef enum Moment {
    AFTER_A_WRITE,     // with its answer
    AT_A_SECOND_FLUSH, // neither is answered
    AT_A_THIRD_FLUSH,  // the first two are answered after the second write
} Moment;

typedef struct Scene {
    char *path;
    Moment moment;
    int listener;
} Scene;

static void greet(int fd)
{
    uint8_t greeting[152] = "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"; // the old handshake
    greeting[21] = SIZE >> 16;
    greeting[27] = 1 | 4; // has flags, and flushes
    send(fd, greeting, sizeof greeting, MSG_NOSIGNAL);
}

static void reply(int fd, const uint8_t *request)
{
    uint8_t answer[16] = {0x67, 0x44, 0x66, 0x98};
    memcpy(answer + 8, request + 8, 8);
    send(fd, answer, sizeof answer, MSG_NOSIGNAL);
}

// One connection; `moment` of its end, or -1.
static void serve_one(int fd, int moment)
{
    uint8_t request[28], data[LEN], held[N_FLUSHES][28];
    unsigned n_writes = 0, n_flushes = 0;
    greet(fd);
    while (recv(fd, request, sizeof request, MSG_WAITALL) == sizeof request) {
        if (request[7] == DISCONNECT)
            return;
        if (request[7] == WRITE) {
            if (recv(fd, data, LEN, MSG_WAITALL) != LEN)
                return;
            reply(fd, request);
            if (moment == AFTER_A_WRITE)
                return;
            bool is_second = ++n_writes == 2;
            for (unsigned i = 0; is_second && i < n_flushes; i++)
                reply(fd, held[i]);
        } else if (moment < 0) {
            reply(fd, request);
        } else if (n_flushes == (moment == AT_A_SECOND_FLUSH ? 1 : N_FLUSHES)) {
            return;
        } else {
            memcpy(held[n_flushes++], request, sizeof request);
        }
    }
}

static void *serve(void *arg)
{
    Scene *s = arg;
    int fd, moment = (int)s->moment;
    for (; (fd = accept(s->listener, NULL, NULL)) >= 0; moment = -1) {
        serve_one(fd, moment);
        close(fd);
    }
    return NULL;
}

static void start(Scene *s)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    g_strlcpy(to.sun_path, s->path, sizeof to.sun_path);
    unlink(s->path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(listen(s->listener, 16), 0);
}

// --- the guest -----------------------------------------------------------------------------------

typedef struct Flush {
    Node *node;
    FiberWaitGroup *group;
    int result;
} Flush;

static void flush_fiber(Fiber *self, void *arg)
{
    Flush *f = arg;
    f->result = node_flush(self, f->node);
    fiber_wait_group_done(f->group);
}

static int write_one(Fiber *self, Node *node)
{
    uint8_t buf[LEN] = {1};
    return node_write(self, node, guest_off(0), buf, LEN, 0);
}

// Two at once, and when they are on their way perhaps a write.
static void flush_twice(Fiber *self, Node *node, bool and_write, int expected)
{
    FiberWaitGroup group = {0};
    Flush flushes[N_FLUSHES];
    fiber_wait_group_add(&group, N_FLUSHES);
    for (unsigned i = 0; i < N_FLUSHES; i++) {
        flushes[i] = (Flush){.node = node, .group = &group};
        assert_int_equal(fiber_spawn(fiber_loop(self), "flush", flush_fiber, &flushes[i], NULL), 0);
    }
    fiber_yield(self);
    if (and_write)
        assert_int_equal(write_one(self, node), 0);
    fiber_wait_group_wait(self, &group);
    for (unsigned i = 0; i < N_FLUSHES; i++)
        assert_int_equal(flushes[i].result, expected);
}

static void use(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autofree char *text =
        g_strdup_printf("{'driver': 'nbd', 'path': '%s', 'reconnect-delay': 3600}", s->path);
    Node *node = driver_node_make(self, text, NULL);
    assert_int_equal(write_one(self, node), 0);
    if (s->moment == AT_A_THIRD_FLUSH)
        flush_twice(self, node, true, 0);
    if (s->moment == AT_A_SECOND_FLUSH)
        flush_twice(self, node, false, -EIO);
    else
        assert_int_equal(node_flush(self, node), -EIO);
    assert_int_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
}

static void run(Moment moment)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "s", NULL);
    Scene s = {.path = path, .moment = moment};
    start(&s);
    GThread *thread = g_thread_new("server", serve, &s);
    host_run(use, &s);
    shutdown(s.listener, SHUT_RDWR);
    g_thread_join(thread);
    close(s.listener);
    host_remove_dir(g_steal_pointer(&dir));
}

static void a_write_acknowledged_with_the_end_is_lost(void **state)
{
    run(AFTER_A_WRITE);
}

static void each_flush_under_way_fails(void **state)
{
    run(AT_A_SECOND_FLUSH);
}

static void flushes_do_not_cover_what_came_after_they_began(void **state)
{
    run(AT_A_THIRD_FLUSH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_write_acknowledged_with_the_end_is_lost),
        cmocka_unit_test(each_flush_under_way_fails),
        cmocka_unit_test(flushes_do_not_cover_what_came_after_they_began),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
