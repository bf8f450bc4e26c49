// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits of exports. At one byte a second the first request of a group goes on and all others wait
// longer than any test: so it is seen for what they wait, and what lets them go, without a clock.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "client.h"
#include "connection.h"
#include "export.h"
#include "fixture.h"

enum { EACH = 4096 };
static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};

typedef struct Scene {
    Fixture *f;
    unsigned index;
    ThrottleGroups *groups;
    ThrottleGroup *group;
    uint64_t answer;
} Scene;

static ThrottleLimits limits_of(ThrottleKind kind, uint64_t average)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    limits.rates[kind].average = average;
    return limits;
}

static void set_on_loop(Fiber *self, void *arg)
{
    const Scene *s = arg;
    nbds_export_set_throttle(s->f->exports[s->index],
                             s->group ? throttle_group_ref(s->group) : NULL);
}

static void limit(Scene *s, unsigned index, ThrottleKind kind, uint64_t average)
{
    ThrottleLimits limits = limits_of(kind, average);
    if (!s->groups)
        s->groups = throttle_groups_new();
    if (!s->group)
        s->group = throttle_groups_use(s->groups, "g", &limits);
    s->index = index;
    fixture_run(s->f, set_on_loop, s);
}

static void unlimit(Scene *s, unsigned index)
{
    ThrottleGroup *group = g_steal_pointer(&s->group);
    s->index = index;
    fixture_run(s->f, set_on_loop, s);
    s->group = group;
}

static void scene_clear(Scene *s)
{
    throttle_groups_end_use(s->groups, s->group);
    g_assert_null(throttle_groups_find(s->groups, "g")); // it went with its last user
    throttle_groups_free(s->groups);
}

static uint64_t n_in_flight(const Fixture *f, unsigned index)
{
    NbdsExportStats stats;
    nbds_export_get_stats(f->exports[index], &stats);
    return stats.n_in_flight;
}

static void wait_for_in_flight(const Fixture *f, unsigned index, uint64_t n)
{
    int64_t end = g_get_monotonic_time() + HANG_S * G_USEC_PER_SEC;
    while (n_in_flight(f, index) != n)
        assert_true(g_get_monotonic_time() < end);
}

// Of which the first goes on, and n-1 wait.
static void begin_reads(Client *c, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        client_request(c, NBDS_CMD_READ, 0, i, i * EACH, EACH, NULL, 0);
}

static void take_reads(Client *c, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        ClientReply reply;
        client_reply(c, NBDS_CMD_READ, 0, EACH, NULL, &reply);
        assert_int_equal(reply.error, 0);
    }
}

static void reads_wait_and_others_go_on(void **state)
{
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){0});
    Scene s = {.f = f};
    uint8_t data[EACH] = {0};
    limit(&s, 0, THROTTLE_BPS_READ, 1);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    begin_reads(c, 3);
    take_reads(c, 1);
    wait_for_in_flight(f, 0, 2);
    assert_int_equal(client_do(other, NBDS_CMD_WRITE, 0, 0, EACH, data), 0);
    assert_int_equal(client_do(other, NBDS_CMD_TRIM, 0, 0, EACH, NULL), 0);
    assert_int_equal(client_do(other, NBDS_CMD_FLUSH, 0, 0, 0, NULL), 0);
    assert_int_equal(n_in_flight(f, 0), 2);
    assert_int_equal(f->nodes[0]->n_reads, 1);
    ThrottleLimits more = limits_of(THROTTLE_BPS_READ, 1 << 30);
    throttle_group_set_limits(s.group, &more);
    take_reads(c, 2);
    client_free(g_steal_pointer(&c));
    client_free(g_steal_pointer(&other));
    unlimit(&s, 0);
    scene_clear(&s);
}

// A terabyte of them moves no data.
static void zeroes_and_discards_count_as_requests_only(void **state)
{
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){0});
    Scene s = {.f = f};
    limit(&s, 0, THROTTLE_BPS_WRITE, 1);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 0, 0, 512 << 10, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 0, 512 << 10, NULL), 0);
    }
    unlimit(&s, 0);
    scene_clear(&s);
}

static void look_at_port(Fiber *self, void *arg)
{
    Scene *s = arg;
    s->answer = nbds_export_port(s->f->exports[0])->n_in_flight[REQUEST_READ];
}

static void what_waits_is_outside_the_port(void **state)
{
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){0});
    Scene s = {.f = f};
    limit(&s, 0, THROTTLE_BPS_TOTAL, 1);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    begin_reads(c, 5);
    take_reads(c, 1);
    wait_for_in_flight(f, 0, 4);
    fixture_run(f, look_at_port, &s);
    assert_int_equal(s.answer, 0); // a drain waits for nobody
    unlimit(&s, 0);
    take_reads(c, 4);
    scene_clear(&s);
}

static void a_client_that_leaves_and_an_export_that_goes_wait_for_nothing(void **state)
{
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){0});
    Scene s = {.f = f};
    limit(&s, 0, THROTTLE_BPS_TOTAL, 1);
    Client *gone = client_new(f->socket_path, &simple);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    begin_reads(gone, 3);
    wait_for_in_flight(f, 0, 2);
    client_free(gone);
    wait_for_clients(f, 1);
    begin_reads(c, 3);
    wait_for_in_flight(f, 0, 3);
    fixture_remove_export(f, 0);
    take_reads(c, 3);
    assert_true(client_at_end(c));
    scene_clear(&s);
}

static void two_exports_of_a_group_share_what_there_is(void **state)
{
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){.n_exports = 2, .names = {"a", "b"}});
    Scene s = {.f = f};
    limit(&s, 0, THROTTLE_BPS_READ, 1);
    limit(&s, 1, THROTTLE_BPS_READ, 1);
    const ClientConfig configs[] = {{.style = NBDS_STYLE_SIMPLE, .export_name = "a"},
                                    {.style = NBDS_STYLE_SIMPLE, .export_name = "b"}};
    g_autoptr(Client) a = client_new(f->socket_path, &configs[0]);
    g_autoptr(Client) b = client_new(f->socket_path, &configs[1]);
    begin_reads(a, 1);
    take_reads(a, 1);
    begin_reads(b, 1);
    wait_for_in_flight(f, 1, 1);
    unlimit(&s, 1);
    take_reads(b, 1);
    unlimit(&s, 0);
    scene_clear(&s);
}

static void look_at_budget(Fiber *self, void *arg)
{
    Scene *s = arg;
    for (const GList *l = s->f->exports[0]->server_loop->connections.head; l; l = l->next)
        s->answer += ((const NbdsConnection *)l->data)->admission.loop_bytes;
}

static void what_waits_takes_nothing_of_the_budget_of_others(void **state)
{
    enum { LARGE = 256 << 10, N = 16 };
    g_autoptr(Fixture) f = fixture_new(&(FixtureConfig){0});
    Scene s = {.f = f};
    limit(&s, 0, THROTTLE_BPS_TOTAL, 1);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    for (unsigned i = 0; i < N; i++)
        client_request(c, NBDS_CMD_READ, 0, i, 0, LARGE, NULL, 0);
    wait_at_least(&f->nodes[0]->n_reads, 1);
    wait_for_in_flight(f, 0, (1 << 20) / (LARGE + 1024));
    fixture_run(f, look_at_budget, &s);
    assert_int_equal(s.answer, 0);
    assert_int_equal(n_in_flight(f, 0), 3); // a fourth does not fit into a MiB
    unlimit(&s, 0);
    for (unsigned i = 0; i < N; i++) {
        ClientReply reply;
        client_reply(c, NBDS_CMD_READ, 0, LARGE, NULL, &reply);
        assert_int_equal(reply.error, 0);
    }
    scene_clear(&s);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_wait_and_others_go_on),
        cmocka_unit_test(zeroes_and_discards_count_as_requests_only),
        cmocka_unit_test(what_waits_is_outside_the_port),
        cmocka_unit_test(a_client_that_leaves_and_an_export_that_goes_wait_for_nothing),
        cmocka_unit_test(two_exports_of_a_group_share_what_there_is),
        cmocka_unit_test(what_waits_takes_nothing_of_the_budget_of_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
