// SPDX-License-Identifier: LGPL-2.1-or-later
// One monitor on a simulated stream, under many seeds: order of replies and events, clients that do
// not read, the end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "chain-core/sim.h"
#include "daemon/qmp/monitor.h"
#include "daemon/qmp/table.h"

enum { N_SEEDS = 20, N_LARGE_SEEDS = 4 }; // a megabyte takes the simulation long

typedef struct World {
    QmpTable *table;
    QmpMonitor *monitor;
    Stream *client;
    FiberWaitGroup running, fibers;
    GString *received;
    unsigned n_run;
    bool may_end; // of `slow`
    FiberQueue ended;
} World;

static World *world; // of the commands

static int emit(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply, GError **error)
{
    qmp_monitor_send_event(world->monitor, "{\"event\": \"ONE\"}");
    fiber_yield(self);
    qmp_monitor_send_event(world->monitor, "{\"event\": \"TWO\"}");
    world->n_run++;
    return 0;
}

static int slow(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply, GError **error)
{
    while (!world->may_end)
        fiber_queue_wait(self, &world->ended, false, "test: slow command");
    world->n_run++;
    return 0;
}

static int large(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply, GError **error)
{
    g_autofree char *text = g_strnfill(100000, 'x');
    *ret_reply = json_string(text);
    world->n_run++;
    return 0;
}

static int wordless(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    return -ENOSPC;
}

static int negotiate(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    call->is_negotiated = true;
    return 0;
}

static const QmpCommand commands[] = {
    {"qmp_capabilities", NULL, NULL, "", negotiate},
    {"emit", NULL, NULL, "", emit},
    {"slow", NULL, NULL, "", slow},
    {"large", NULL, &qmp_str, "", large},
    {"wordless", NULL, NULL, "", wordless},
    {0},
};
static const QmpFamily family = {.title = "Test", .commands = commands};
static const QmpFamily *const families[] = {&family, NULL};

static void run_monitor(Fiber *self, void *arg)
{
    World *w = arg;
    qmp_monitor_run(self, w->monitor);
    qmp_monitor_free(w->monitor);
    w->monitor = NULL;
    fiber_wait_group_done(&w->fibers);
}

static void begin(Fiber *self, World *w)
{
    Stream *stream;
    *w = (World){.table = qmp_table_new(families), .received = g_string_new(NULL)};
    world = w;
    sim_stream_pair(fiber_loop(self), &w->client, &stream);
    w->monitor = qmp_monitor_new(
        stream, &(QmpMonitorConfig){.name = "test", .table = w->table, .running = &w->running});
    fiber_wait_group_add(&w->fibers, 1);
    g_assert(fiber_spawn(fiber_loop(self), "monitor", run_monitor, w, NULL) == 0);
}

static void end(Fiber *self, World *w)
{
    fiber_wait_group_wait(self, &w->fibers);
    stream_free(w->client);
    qmp_table_free(w->table);
    g_string_free(w->received, true);
}

typedef struct Sending {
    World *w;
    char *text;
} Sending;

static void send_fiber(Fiber *self, void *arg)
{
    Sending *sending = arg;
    struct iovec iov = {sending->text, strlen(sending->text)};
    stream_send(self, sending->w->client, &iov, 1); // fails when the monitor ends before
    fiber_wait_group_done(&sending->w->fibers);
    g_free(sending->text);
    g_free(sending);
}

// In a fiber of its own: a pipe may hold a single byte.
static void send_text(Fiber *self, World *w, const char *text)
{
    Sending *sending = g_new(Sending, 1);
    *sending = (Sending){w, g_strdup(text)};
    fiber_wait_group_add(&w->fibers, 1);
    g_assert(fiber_spawn(fiber_loop(self), "client sends", send_fiber, sending, NULL) == 0);
}

// Up to the end of the stream, or until `n_lines` have come.
static void receive(Fiber *self, World *w, unsigned n_lines)
{
    char bytes[4096];
    unsigned n = 0;
    for (const char *p = w->received->str; (p = strstr(p, "\r\n")); p += 2)
        n++;
    while (n < n_lines) {
        ssize_t got = stream_recv(self, w->client, bytes, sizeof bytes);
        if (got <= 0)
            return;
        for (ssize_t i = 0; i < got; i++)
            n += bytes[i] == '\n';
        g_string_append_len(w->received, bytes, got);
    }
}

// What was received after the greeting, in short.
static char *summary(const World *w)
{
    GString *all = g_string_new(NULL);
    g_auto(GStrv) lines = g_strsplit(w->received->str, "\r\n", -1);
    for (char **line = lines + 1; *line && **line; line++) {
        json_auto_t *value = json_loads(*line, 0, NULL);
        g_assert(value);
        const char *event = json_string_value(json_object_get(value, "event"));
        json_int_t id = json_integer_value(json_object_get(value, "id"));
        if (event)
            g_string_append_printf(all, "%s ", event);
        else
            g_string_append_printf(all, "%s%d ", json_object_get(value, "error") ? "error" : "",
                                   (int)id);
    }
    return g_string_free(all, false);
}

static void run_seeds(FiberFn *fn, uint64_t n_seeds)
{
    for (uint64_t seed = 1; seed <= n_seeds; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        assert_true(sim_run(sim, fn, NULL));
        sim_free(sim);
    }
}

static void order_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w,
              "{'execute':'emit','id':1}{'execute':'qmp_capabilities','id':2}"
              "{'execute':'emit','id':3}{'execute':'nope','id':4}{'execute':'emit','id':5}");
    receive(self, &w, 10);
    g_autofree char *got = summary(&w);
    g_assert_cmpstr(got, ==, "error1 2 ONE TWO 3 error4 ONE TWO 5 ");
    stream_end_sending(w.client);
    end(self, &w);
}

static void events_precede_the_reply_of_their_command(void **state)
{
    run_seeds(order_fiber, N_SEEDS);
}

static void wordless_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w, "{'execute':'qmp_capabilities'}{'execute':'wordless'}");
    receive(self, &w, 3);
    g_assert(strstr(w.received->str, "\"GenericError\", \"desc\": \"No space left on device\""));
    stream_end_sending(w.client);
    end(self, &w);
}

static void a_failure_without_words_is_told_as_the_errno(void **state)
{
    run_seeds(wordless_fiber, 1);
}

static void does_not_read_fiber(Fiber *self, void *arg)
{
    enum { N = 20 };
    World w;
    begin(self, &w);
    GString *requests = g_string_new("{'execute':'qmp_capabilities','id':0}");
    for (int i = 1; i <= N; i++)
        g_string_append_printf(requests, "{'execute':'large','id':%d}", i);
    send_text(self, &w, requests->str);
    g_string_free(requests, true);
    for (int i = 0; i < 1000; i++)
        fiber_sleep(self, 1000000);
    // A megabyte is unsent: ten replies and a bit that the pipe holds.
    g_assert(w.n_run >= 10 && w.n_run <= 13);
    unsigned n_before = w.n_run;
    receive(self, &w, 3);
    while (w.n_run == n_before)
        fiber_sleep(self, 1000000);
    stream_shutdown(w.client);
    end(self, &w);
}

static void a_client_that_does_not_read_is_not_served_further_until_it_does(void **state)
{
    run_seeds(does_not_read_fiber, N_LARGE_SEEDS);
}

static void too_many_events_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w, "{'execute':'qmp_capabilities'}");
    receive(self, &w, 2);
    g_autofree char *text = g_strnfill(1 << 20, 'x');
    g_autofree char *event = g_strdup_printf("{\"event\": \"%s\"}", text);
    unsigned n = 0;
    while (w.monitor && n < 100) {
        qmp_monitor_send_event(w.monitor, event);
        fiber_sleep(self, 1000000);
        n++;
    }
    g_assert(n >= 16 && n <= 18);
    end(self, &w);
}

static void a_client_that_misses_events_is_disconnected(void **state)
{
    run_seeds(too_many_events_fiber, N_LARGE_SEEDS);
}

static void end_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w,
              "{'execute':'qmp_capabilities','id':1}{'execute':'slow','id':2}"
              "{'execute':'emit','id':3}");
    receive(self, &w, 2);
    while (!w.running.count)
        fiber_sleep(self, 1000);
    qmp_monitor_end_commands(w.monitor);
    w.may_end = true;
    fiber_queue_wake_all(&w.ended);
    fiber_wait_group_wait(self, &w.running);
    fiber_sleep(self, 1000000);
    qmp_monitor_send_event(w.monitor, "{\"event\": \"LAST\"}");
    qmp_monitor_end(w.monitor, UINT64_C(1000000000));
    receive(self, &w, 100);
    g_autofree char *got = summary(&w);
    g_assert_cmpstr(got, ==, "1 2 LAST ");
    g_assert(w.n_run == 1);
    end(self, &w);
}

static void the_end_waits_for_the_command_that_runs_and_takes_no_other(void **state)
{
    run_seeds(end_fiber, N_SEEDS);
}

static void end_deaf_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w, "{'execute':'qmp_capabilities'}{'execute':'large'}{'execute':'large'}");
    while (w.n_run < 2)
        fiber_sleep(self, 1000);
    uint64_t before_ns = loop_now_ns(fiber_loop(self));
    qmp_monitor_end_commands(w.monitor);
    qmp_monitor_end(w.monitor, UINT64_C(1000000000));
    fiber_wait_group_wait(self, &w.fibers);
    g_assert(loop_now_ns(fiber_loop(self)) - before_ns < UINT64_C(2000000000));
    end(self, &w);
}

static void the_end_does_not_wait_for_who_does_not_read(void **state)
{
    run_seeds(end_deaf_fiber, N_SEEDS);
}

static void left_fiber(Fiber *self, void *arg)
{
    World w;
    begin(self, &w);
    send_text(self, &w, "{'execute':'qmp_capabilities'}{'execute':'slow'}{'execute':'emit'}");
    while (!w.running.count)
        fiber_sleep(self, 1000);
    stream_shutdown(w.client);
    qmp_monitor_send_event(w.monitor, "{\"event\": \"X\"}");
    fiber_sleep(self, 1000000);
    w.may_end = true;
    fiber_queue_wake_all(&w.ended);
    end(self, &w);
}

static void a_client_may_leave_while_its_command_runs(void **state)
{
    run_seeds(left_fiber, N_SEEDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_precede_the_reply_of_their_command),
        cmocka_unit_test(a_failure_without_words_is_told_as_the_errno),
        cmocka_unit_test(a_client_that_does_not_read_is_not_served_further_until_it_does),
        cmocka_unit_test(a_client_that_misses_events_is_disconnected),
        cmocka_unit_test(the_end_waits_for_the_command_that_runs_and_takes_no_other),
        cmocka_unit_test(the_end_does_not_wait_for_who_does_not_read),
        cmocka_unit_test(a_client_may_leave_while_its_command_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
