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
    GMutex mutex;
    GCond ended;
    bool has_ended;    // the first connection
    unsigned n_writes; // on later ones
    unsigned n_turns;  // of the loop, before the second writer begins
    int results[2];    // of the two writers
    FiberWaitGroup group;
    Node *node;
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
static void serve_one(Scene *s, int fd, int moment)
{
    uint8_t request[28], data[LEN], held[N_FLUSHES][28];
    unsigned n_writes = 0, n_flushes = 0;
    greet(fd);
    while (recv(fd, request, sizeof request, MSG_WAITALL) == sizeof request) {
        if (request[7] == DISCONNECT)
            return;
        if (request[7] == WRITE) {
            s->n_writes += moment < 0;
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
        serve_one(s, fd, moment);
        close(fd);
        g_mutex_lock(&s->mutex);
        s->has_ended = true;
        g_cond_broadcast(&s->ended);
        g_mutex_unlock(&s->mutex);
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

static void run_scene(Scene *s, FiberFn *fn)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "s", NULL);
    s->path = path;
    start(s);
    GThread *thread = g_thread_new("server", serve, s);
    host_run(fn, s);
    shutdown(s->listener, SHUT_RDWR);
    g_thread_join(thread);
    close(s->listener);
    host_remove_dir(g_steal_pointer(&dir));
}

static void run(Moment moment)
{
    run_scene(&(Scene){.moment = moment}, use);
}

static void a_write_acknowledged_with_the_end_is_lost(void **state)
{
    run(AFTER_A_WRITE);
}

static void first_writer(Fiber *self, void *arg)
{
    Scene *s = arg;
    s->results[0] = write_one(self, s->node);
    fiber_wait_group_done(&s->group);
}

// The answer and the end of the connection are here before the loop looks; some turns later a
// second writer finds out. So one time it does between the answer and the first writer's turn.
static void write_beside(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autofree char *text =
        g_strdup_printf("{'driver': 'nbd', 'path': '%s', 'reconnect-delay': 3600}", s->path);
    s->node = driver_node_make(self, text, NULL);
    fiber_wait_group_add(&s->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "writer", first_writer, s, NULL), 0);
    g_mutex_lock(&s->mutex);
    while (!s->has_ended)
        g_cond_wait(&s->ended, &s->mutex);
    g_mutex_unlock(&s->mutex);
    for (unsigned i = 0; i < s->n_turns; i++)
        fiber_yield(self);
    s->results[1] = write_one(self, s->node);
    fiber_wait_group_wait(self, &s->group);
    assert_int_equal(s->results[0], 0);
    assert_int_equal(s->results[1], 0);
    // Both were made again, or only the second one: then the first was answered before, and is
    // lost.
    assert_int_equal(node_flush(self, s->node), s->n_writes == 2 ? 0 : -EIO);
    assert_int_equal(node_flush(self, s->node), 0);
    node_unref_close(self, s->node);
}

static void a_write_is_lost_whoever_finds_out_first(void **state)
{
    for (unsigned n = 0; n < 12; n++)
        run_scene(&(Scene){.moment = AFTER_A_WRITE, .n_turns = n}, write_beside);
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
        cmocka_unit_test(a_write_is_lost_whoever_finds_out_first),
        cmocka_unit_test(each_flush_under_way_fails),
        cmocka_unit_test(flushes_do_not_cover_what_came_after_they_began),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
