// SPDX-License-Identifier: LGPL-2.1-or-later
// The nbd driver and servers that break the protocol: garbage, wrong handles, an early end, an
// absurd size, silence. The node answers EIO, and nothing else is harmed.
#include "node/driver-node.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "qcow2/host.h"

enum { SIZE = 1 << 20 };

typedef enum Misdeed {
    GARBAGE_GREETING,
    CUT_GREETING,
    ABSURD_SIZE,
    SILENT_GREETING,
    GARBAGE_REPLY,
    WRONG_HANDLE,
    UNKNOWN_ERROR,
    CUT_REPLY,
    CLOSED_ON_REQUEST,
    N_MISDEEDS,
    NO_REPLY = N_MISDEEDS
} Misdeed;

typedef struct Scene {
    char *dir, *path;
    Misdeed misdeed;
    int listener;
} Scene;

static void put64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

// The old handshake is one message.
static bool greet(int fd, Misdeed misdeed)
{
    uint8_t greeting[152] = {0};
    memcpy(greeting, "NBDMAGIC", 8);
    put64(greeting + 8, UINT64_C(0x00420281861253));
    put64(greeting + 16, misdeed == ABSURD_SIZE ? UINT64_MAX : SIZE);
    greeting[27] = 1; // has flags
    if (misdeed == SILENT_GREETING)
        return recv(fd, greeting, 1, 0) > 0;
    if (misdeed == GARBAGE_GREETING)
        memset(greeting, 'x', sizeof greeting);
    size_t len = misdeed == CUT_GREETING ? 100 : sizeof greeting;
    return send(fd, greeting, len, MSG_NOSIGNAL) == (ssize_t)len && misdeed > SILENT_GREETING;
}

static void answer(int fd, Misdeed misdeed)
{
    uint8_t request[28], reply[16 + 512] = {0x67, 0x44, 0x66, 0x98};
    if (recv(fd, request, sizeof request, MSG_WAITALL) != sizeof request ||
        misdeed == CLOSED_ON_REQUEST)
        return;
    if (misdeed == NO_REPLY) {
        (void)!recv(fd, request, 1, 0);
        return;
    }
    memcpy(reply + 8, request + 8, 8);
    if (misdeed == GARBAGE_REPLY)
        memset(reply, 'x', sizeof reply);
    if (misdeed == WRONG_HANDLE)
        memset(reply + 8, 0xee, 8);
    if (misdeed == UNKNOWN_ERROR)
        reply[4] = 0x7f;
    send(fd, reply, misdeed == CUT_REPLY ? 100 : sizeof reply, MSG_NOSIGNAL);
    if (misdeed == UNKNOWN_ERROR || misdeed == WRONG_HANDLE)
        (void)!recv(fd, request, 1, 0);
}

static void *serve(void *arg)
{
    Scene *s = arg;
    int fd;
    while ((fd = accept(s->listener, NULL, NULL)) >= 0) {
        if (greet(fd, s->misdeed))
            answer(fd, s->misdeed);
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

static void use(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autofree char *text =
        g_strdup_printf("{'driver': 'nbd', 'path': '%s'%s}", s->path,
                        s->misdeed == SILENT_GREETING ? ", 'open-timeout': 1" : "");
    DriverOptions options = {.name = "test", .is_writable = true};
    g_autoptr(GError) error = NULL;
    Node *node;
    uint8_t buf[512];
    int r = driver_node_try(self, text, &options, NULL, &node, &error);
    if (s->misdeed < GARBAGE_REPLY) {
        assert_true(r < 0);
        assert_non_null(error);
        return;
    }
    if (r < 0)
        fail_msg("%s", error->message);
    assert_int_equal(node_read(self, node, guest_off(0), buf, 512), -EIO);
    node_unref_close(self, node);
}

static void servers_that_break_the_protocol_give_eio(void **state)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "s", NULL);
    for (unsigned i = 0; i < N_MISDEEDS; i++) {
        Scene s = {.dir = dir, .path = path, .misdeed = i};
        start(&s);
        GThread *thread = g_thread_new("server", serve, &s);
        host_run(use, &s);
        shutdown(s.listener, SHUT_RDWR);
        g_thread_join(thread);
        close(s.listener);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- silence -------------------------------------------------------------------------------------

typedef struct Waiting {
    Node *node;
    int result;
    bool is_done;
} Waiting;

static void wait_for_answer(Fiber *self, void *arg)
{
    Waiting *w = arg;
    uint8_t buf[512];
    w->result = node_read(self, w->node, guest_off(0), buf, 512);
    w->is_done = true;
}

// The dead connection has nobody to close it but the node.
static void give_up(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autofree char *text =
        g_strdup_printf("{'driver': 'nbd', 'path': '%s', 'reconnect-delay': 3600}", s->path);
    Waiting w = {.node = driver_node_make(self, text, NULL)};
    assert_int_equal(fiber_spawn(fiber_loop(self), "reads", wait_for_answer, &w, NULL), 0);
    fiber_sleep(self, 50000000);
    assert_false(w.is_done);
    node_give_up(w.node);
    while (!w.is_done)
        fiber_yield(self);
    assert_int_equal(w.result, -EIO);
    wait_for_answer(self, &w);
    assert_int_equal(w.result, -EIO);
    node_unref_close(self, w.node);
}

static void a_server_that_never_answers_can_be_given_up(void **state)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "s", NULL);
    Scene s = {.dir = dir, .path = path, .misdeed = NO_REPLY};
    start(&s);
    GThread *thread = g_thread_new("server", serve, &s);
    host_run(give_up, &s);
    shutdown(s.listener, SHUT_RDWR);
    g_thread_join(thread);
    close(s.listener);
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_server_that_never_answers_can_be_given_up),
        cmocka_unit_test(servers_that_break_the_protocol_give_eio),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
