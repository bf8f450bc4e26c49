// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs that transactions start: what users are told, in which order, of those that are well, that
// fail together, or that are never started.
#include "../jobs/fake-job.h"

#include "daemon/commands/job-start.h"
#include "daemon/commands/transaction.h"
#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/table.h"

// Of the table that is not there.
static FiberMutex lock;

FiberMutex *nodes_graph_lock(Nodes *nodes)
{
    return &lock;
}

int drain_rehearse(Fiber *self, Nodes *nodes, const char *name, const char *what, GError **error)
{
    return 0;
}

static FakeWorld *now;
static FakeWork works[2]; // of jobs a and b
static unsigned n_freed;

static void free_work(Fiber *self, void *work)
{
    fiber_assert(lock.owner);
    n_freed++;
}

static int prepare_fake(Fiber *self, const QmpCall *call, const json_t *args,
                        QmpJobStart *ret_start, GError **error)
{
    const char *id = qmp_args_str(args, "id");
    if (g_str_equal(id, "bad"))
        return qmp_fail(error, "no such node");
    FakeWork *work = &works[*id - 'a'];
    Job *job = fake_job(now, id, work, (JobSpec){.group = call->group});
    *ret_start = (QmpJobStart){job, now->work, work, free_work};
    return 0;
}

static int prepare_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                          GError **error)
{
    return qmp_prepare_job_action(self, call, data, prepare_fake, ret_state, error);
}

static int start_command(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    return qmp_start_job(self, call, args, prepare_fake, error);
}

static int prepare_nothing(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                           GError **error)
{
    return 0;
}

static int fail_to_finish(Fiber *self, void *state, GError **error)
{
    return qmp_fail(error, "cannot be finished");
}

static const QmpType data = {
    .name = "Fake",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str}, {0}},
};
static const QmpType nothing = {.name = "Nothing", .kind = QMP_OBJECT};
static const QmpAction actions[] = {
    {"job", &data, "A job.", prepare_action, QMP_JOB_ACTION},
    {"plain", &nothing, "None.", prepare_nothing},
    {"late", &nothing, "Fails late.", prepare_nothing, .finish = fail_to_finish},
    {0},
};
static const QmpCommand commands[] = {{"job", &data, NULL, "A job.", start_command}, {0}};
static const QmpFamily family = {.title = "Jobs", .commands = commands, .actions = actions};
static const QmpFamily *const families[] = {&family, &qmp_transaction_family, NULL};

// Its reply, owned.
static char *execute(Fiber *self, FakeWorld *world, const char *request)
{
    QmpTable *table = qmp_table_new(families);
    Daemon daemon = {.jobs = world->table};
    QmpCall call = {.daemon = &daemon, .table = table, .is_negotiated = true};
    json_auto_t *object = json_loads(request, 0, NULL);
    fiber_assert(object);
    now = world;
    n_freed = 0;
    json_auto_t *reply = qmp_table_dispatch(self, &call, object);
    fiber_assert(!lock.owner && !call.group);
    qmp_table_free(table);
    return json_dumps(reply, JSON_COMPACT);
}

#define JOB(id) "{\"type\":\"job\",\"data\":{\"id\":\"" id "\"}}"
#define OTHER(type) "{\"type\":\"" type "\",\"data\":{}}"
#define TRANSACTION(actions, mode)                                                                 \
    "{\"execute\":\"transaction\",\"arguments\":{\"actions\":[" actions                            \
    "],\"properties\":{\"completion-mode\":\"" mode "\"}}}"

static void assert_reply(char *reply, const char *expected)
{
    if (!strstr(reply, expected))
        g_error("reply: %s", reply);
    free(reply);
}

JOB_TEST(jobs_of_a_transaction_are_all_made_before_one_is_started)
{
    works[0] = works[1] = (FakeWork){.n_pieces = 1};
    assert_reply(execute(self, world, TRANSACTION(JOB("a") "," JOB("b"), "individual")), "return");
    fiber_assert(g_str_has_prefix(world->told->str, "a:created b:created a:running b:running"));
    fake_wait_told(self, world, "a:null");
    fake_wait_told(self, world, "b:null");
    fiber_assert(works[0].n_committed == 1 && works[1].n_committed == 1 && n_freed == 0);
}

JOB_TEST(without_a_group_one_ends_whatever_the_other_does)
{
    works[0] = (FakeWork){.n_pieces = 1, .fails_with = -EIO};
    works[1] = (FakeWork){.n_pieces = 9};
    free(execute(self, world, TRANSACTION(JOB("a") "," JOB("b"), "individual")));
    fake_wait_told(self, world, "a:null");
    fake_wait_told(self, world, "b:null");
    fiber_assert(works[0].n_aborted == 1 && works[1].n_committed == 1);
}

JOB_TEST(grouped_jobs_wait_for_each_other)
{
    works[0] = (FakeWork){.n_pieces = 1};
    works[1] = (FakeWork){.n_pieces = 1, .gate.is_closed = true};
    free(execute(self, world, TRANSACTION(JOB("a") "," JOB("b"), "grouped")));
    fake_wait_told(self, world, "a:waiting");
    fiber_sleep(self, 1000000000);
    fiber_assert(!strstr(world->told->str, "a:pending"));
    fake_open(self, world, &works[1].gate);
    fake_wait_told(self, world, "b:null");
    fiber_assert(strstr(world->told->str,
                        "a:waiting b:waiting b:pending a:pending b:COMPLETED b:concluded b:null "
                        "a:COMPLETED a:concluded a:null"));
}

JOB_TEST(when_one_of_a_group_fails_the_others_are_cancelled)
{
    works[0] = (FakeWork){.n_pieces = 1};
    works[1] = (FakeWork){.n_pieces = 1, .fails_with = -EIO, .gate.is_closed = true};
    free(execute(self, world, TRANSACTION(JOB("a") "," JOB("b"), "grouped")));
    fake_wait_told(self, world, "a:waiting");
    fake_open(self, world, &works[1].gate);
    fake_wait_told(self, world, "a:null");
    fake_wait_told(self, world, "b:null");
    fiber_assert(strstr(world->told->str, "a:CANCELLED") &&
                 strstr(world->told->str, "b:COMPLETED"));
    fiber_assert(works[0].n_aborted == 1 && works[1].n_aborted == 1);
}

JOB_TEST(a_transaction_that_fails_starts_no_job)
{
    static const char *const modes[][2] = {
        {TRANSACTION(JOB("a") "," JOB("b") "," JOB("bad"), "individual"), "no such node"},
        {TRANSACTION(JOB("a") "," JOB("b") "," JOB("bad"), "grouped"), "no such node"},
        {TRANSACTION(JOB("a") "," OTHER("late") "," JOB("b"), "individual"), "cannot be finished"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        works[0] = works[1] = (FakeWork){.n_pieces = 1};
        assert_reply(execute(self, world, modes[i][0]), modes[i][1]);
        fiber_assert_told(world, "a:created b:created b:aborting b:concluded b:null a:aborting "
                                 "a:concluded a:null");
        fiber_assert(works[0].n_done == 0 && works[1].n_done == 0 && n_freed == 2);
        g_string_truncate(world->told, 0);
    }
}

JOB_TEST(only_jobs_complete_together)
{
    assert_reply(execute(self, world, TRANSACTION(JOB("a") "," OTHER("plain"), "grouped")),
                 "Action 'plain' does not support transaction property completion-mode = grouped");
    fiber_assert_told(world, "");
}

JOB_TEST(a_job_that_its_command_starts_is_by_itself)
{
    works[0] = (FakeWork){.n_pieces = 1};
    assert_reply(execute(self, world, "{\"execute\":\"job\",\"arguments\":{\"id\":\"bad\"}}"),
                 "no such node");
    assert_reply(execute(self, world, "{\"execute\":\"job\",\"arguments\":{\"id\":\"a\"}}"),
                 "return");
    fake_wait_told(self, world, "a:null");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_of_a_transaction_are_all_made_before_one_is_started),
        cmocka_unit_test(without_a_group_one_ends_whatever_the_other_does),
        cmocka_unit_test(grouped_jobs_wait_for_each_other),
        cmocka_unit_test(when_one_of_a_group_fails_the_others_are_cancelled),
        cmocka_unit_test(a_transaction_that_fails_starts_no_job),
        cmocka_unit_test(only_jobs_complete_together),
        cmocka_unit_test(a_job_that_its_command_starts_is_by_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
