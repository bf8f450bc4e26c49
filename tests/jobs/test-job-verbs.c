// SPDX-License-Identifier: LGPL-2.1-or-later
// What users may ask of a job in which state, against what QEMU is known to answer; cancelling at
// every step; pauses, speed, errors.
#include "fake-job.h"

// -- a job in a state -----------------------------------------------------------------------------

// Brings a job there, and lets it go from there.
typedef struct Scene {
    FakeWorld *world;
    FakeWork work, other;
    JobGroup *group;
    Job *job;
} Scene;

static void start_scene(Fiber *self, Scene *scene, JobSpec spec)
{
    spec.group = scene->group;
    scene->job = fake_job(scene->world, "a", &scene->work, spec);
    if (scene->group) // `waiting` is to be waited in
        job_start(self, fake_job(scene->world, "z", &scene->other, (JobSpec){.group = spec.group}),
                  scene->world->work);
    job_start(self, scene->job, scene->world->work);
}

static void bring_to(Fiber *self, Scene *scene, JobStatus status)
{
    FakeWorld *world = scene->world;
    FakeWork *work = &scene->work;
    work->n_pieces = 1;
    switch (status) {
    case JOB_CREATED:
        scene->job = fake_job(world, "a", work, (JobSpec){0});
        break;
    case JOB_RUNNING:
        work->gate.is_closed = true;
        start_scene(self, scene, (JobSpec){0});
        fake_wait_gate(self, &work->gate);
        break;
    case JOB_PAUSED:
        bring_to(self, scene, JOB_RUNNING);
        job_pause(scene->job, NULL);
        fake_open(self, world, &work->gate);
        fake_wait_told(self, world, "a:paused");
        break;
    case JOB_READY:
        work->gets_ready = true;
        start_scene(self, scene, (JobSpec){0});
        fake_wait_told(self, world, "a:READY");
        break;
    case JOB_STANDBY:
        bring_to(self, scene, JOB_READY);
        job_pause(scene->job, NULL);
        fake_wait_told(self, world, "a:standby");
        break;
    case JOB_WAITING:
        scene->group = job_group_new();
        scene->other = (FakeWork){.n_pieces = 1, .gate.is_closed = true};
        start_scene(self, scene, (JobSpec){0});
        fake_wait_told(self, world, "a:waiting");
        break;
    case JOB_PENDING:
        start_scene(self, scene, (JobSpec){.waits_pending = true});
        fake_wait_told(self, world, "a:PENDING");
        break;
    case JOB_ABORTING:
        work->fails_with = -EIO;
        work->abort_gate.is_closed = true;
        start_scene(self, scene, (JobSpec){0});
        fake_wait_told(self, world, "a:aborting");
        break;
    case JOB_CONCLUDED:
        start_scene(self, scene, (JobSpec){.waits_concluded = true});
        fake_wait_told(self, world, "a:concluded");
        break;
    case JOB_NULL:
    case JOB_N_STATUSES:
        g_assert_not_reached();
    }
    fiber_assert_equal(job_status(scene->job), status);
}

// Whatever state it is in.
static void let_go(Fiber *self, Scene *scene)
{
    fake_open(self, scene->world, &scene->work.gate);
    fake_open(self, scene->world, &scene->other.gate);
    fake_gate_open(&scene->work.abort_gate);
    Job *job = job_table_get(scene->world->table, "a", NULL);
    if (job && job_status(job) == JOB_CREATED)
        job_drop(job);
    job_table_end(self, scene->world->table);
    job_group_unref(scene->group);
}

// -- every verb in every state --------------------------------------------------------------------

// As QEMU has it, in the order of JobVerb and of these states. "paused" and "not": allowed by the
// state, refused for that reason.
static const struct {
    JobStatus status;
    const char *answers[JOB_N_VERBS];
} known[] = {
    // clang-format off
    //               cancel pause     resume  speed  complete finalize dismiss change
    {JOB_CREATED,   {"ok", "ok",     "not",  "ok",  "no",    "no",    "no",   "ok"}},
    {JOB_RUNNING,   {"ok", "ok",     "not",  "ok",  "no",    "no",    "no",   "ok"}},
    {JOB_PAUSED,    {"ok", "paused", "ok",   "ok",  "no",    "no",    "no",   "ok"}},
    {JOB_READY,     {"ok", "ok",     "not",  "ok",  "ok",    "no",    "no",   "ok"}},
    {JOB_STANDBY,   {"ok", "paused", "ok",   "ok",  "ok",    "no",    "no",   "ok"}},
    {JOB_WAITING,   {"ok", "no",     "not",  "no",  "no",    "no",    "no",   "no"}},
    {JOB_PENDING,   {"ok", "no",     "not",  "no",  "no",    "ok",    "no",   "no"}},
    {JOB_ABORTING,  {"no", "no",     "not",  "no",  "no",    "no",    "no",   "no"}},
    {JOB_CONCLUDED, {"no", "no",     "not",  "no",  "no",    "no",    "ok",   "no"}},
    // clang-format on
};

typedef struct Asked {
    Scene *scene;
    JobVerb verb;
    int result;
    GError *error;
    bool is_over;
} Asked;

static void ask(Fiber *self, void *arg)
{
    Asked *asked = arg;
    Job *job = asked->scene->job;
    GError **error = &asked->error;
    switch (asked->verb) {
    case JOB_CANCEL:
        asked->result = job_cancel(self, job, true, error);
        break;
    case JOB_PAUSE:
        asked->result = job_pause(job, error);
        break;
    case JOB_RESUME:
        asked->result = job_resume(job, error);
        break;
    case JOB_SET_SPEED:
        asked->result = job_set_speed(job, 7, error);
        break;
    case JOB_COMPLETE:
        asked->result = job_complete(job, error);
        break;
    case JOB_FINALIZE:
        asked->result = job_finalize(self, job, error);
        break;
    case JOB_DISMISS:
        asked->result = job_dismiss(job, error);
        break;
    case JOB_CHANGE:
        asked->result = job_check_verb(job, JOB_CHANGE, error);
        break;
    case JOB_N_VERBS:
        break;
    }
    asked->is_over = true;
}

static void check_answer(const Asked *asked, JobStatus status, const char *expected)
{
    static const struct {
        const char *answer, *text;
    } words[] = {
        {"paused", "Job is already paused"},
        {"not", "Can't resume a job that was not paused"},
    };
    g_autofree char *text = g_strdup_printf("Job 'a' in state '%s' cannot accept command verb '%s'",
                                            job_status_name(status), job_verb_name(asked->verb));
    if (strcmp(expected, "ok") == 0)
        text = (g_free(text), NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++)
        if (strcmp(words[i].answer, expected) == 0)
            text = (g_free(text), g_strdup(words[i].text));
    if (g_strcmp0(text, asked->error ? asked->error->message : NULL) != 0)
        g_error("%s in %s: %s", job_verb_name(asked->verb), job_status_name(status),
                asked->error ? asked->error->message : "allowed");
    fiber_assert_equal(asked->result, text ? -EPERM : 0);
}

static void try_verb(Fiber *self, FakeWorld *world, JobStatus status, JobVerb verb)
{
    Scene scene = {.world = world};
    Asked asked = {.scene = &scene, .verb = verb};
    g_string_truncate(world->told, 0);
    bring_to(self, &scene, status);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "ask", ask, &asked, NULL), 0);
    fiber_sleep(self, 1000000);
    let_go(self, &scene);
    while (!asked.is_over)
        fiber_sleep(self, 1000);
    check_answer(&asked, status, known[status].answers[verb]);
    g_clear_error(&asked.error);
}

JOB_TEST(each_verb_in_each_state_is_answered_as_by_qemu)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(known); i++) {
        fiber_assert_equal(known[i].status, i);
        for (JobVerb verb = 0; verb < JOB_N_VERBS; verb++)
            try_verb(self, world, known[i].status, verb);
    }
}

// -- cancelling -----------------------------------------------------------------------------------

enum { N_PIECES = 4 };

// While the work is at piece `at`; N_PIECES: it is asleep, ready.
static void cancel_at(Fiber *self, FakeWorld *world, unsigned at, bool is_paused)
{
    FakeWork work = {
        .n_pieces = N_PIECES,
        .gate_at = at,
        .gate.is_closed = true,
        .gets_ready = true,
    };
    Job *job = fake_job(world, "a", &work, (JobSpec){0});
    job_start(self, job, world->work);
    if (at == N_PIECES)
        fake_wait_told(self, world, "a:READY");
    else
        fake_wait_gate(self, &work.gate);
    if (is_paused)
        fiber_assert_equal(job_pause(job, NULL), 0);
    if (is_paused && at == N_PIECES)
        fake_wait_told(self, world, "a:standby");
    fiber_assert_equal(job_cancel(self, job, true, NULL), 0);
    fiber_assert_equal(job_cancel(self, job, true, NULL), 0);
    fake_open(self, world, &work.gate);
    fake_wait_told(self, world, "a:null");
    fiber_assert(g_str_has_suffix(world->told->str, " a:aborting a:CANCELLED a:concluded a:null"));
    fiber_assert(!strstr(world->told->str, "waiting"));
    fiber_assert_equal(work.n_done, at);
    fiber_assert(work.n_prepared == 0 && work.n_committed == 0);
    fiber_assert(work.n_aborted == 1 && work.n_cleaned == 1);
}

JOB_TEST(a_job_can_be_cancelled_at_every_step)
{
    for (unsigned at = 0; at <= N_PIECES; at++)
        for (int is_paused = 0; is_paused <= 1; is_paused++) {
            g_string_truncate(world->told, 0);
            cancel_at(self, world, at, is_paused);
        }
}

JOB_TEST(a_job_that_is_cancelled_before_its_work_begins_does_nothing)
{
    FakeWork work = {.n_pieces = 1};
    Job *job = fake_job(world, "a", &work, (JobSpec){0});
    fiber_assert_equal(job_cancel(self, job, true, NULL), 0);
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:null");
    fiber_assert_told(world, "a:created a:running a:aborting a:CANCELLED a:concluded a:null");
    fiber_assert(work.n_done == 0 && work.n_aborted == 1 && work.n_cleaned == 1);
}

JOB_TEST(a_pending_job_that_is_cancelled_has_concluded_on_return)
{
    FakeWork work = {.n_pieces = 1};
    Job *job =
        fake_job(world, "a", &work, (JobSpec){.waits_pending = true, .waits_concluded = true});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:PENDING");
    fiber_assert_equal(job_cancel(self, job, false, NULL), 0);
    fiber_assert_told(world, "a:created a:running a:waiting a:pending a:PENDING a:aborting "
                             "a:CANCELLED a:concluded");
    fiber_assert(g_str_equal(job_error(job), "Operation canceled"));
    fiber_assert(work.n_prepared == 0 && work.n_aborted == 1);
}

JOB_TEST(what_is_being_switched_is_not_cancelled)
{
    FakeWork work = {.n_pieces = 1, .prepare_gate.is_closed = true};
    Job *job = fake_job(world, "a", &work, (JobSpec){0});
    job_start(self, job, world->work);
    fake_wait_gate(self, &work.prepare_gate);
    g_autoptr(GError) error = NULL;
    fiber_assert_equal(job_cancel(self, job, true, &error), -EPERM);
    fiber_assert(g_str_equal(error->message,
                             "Job 'a' in state 'pending' cannot accept command verb 'cancel'"));
    fake_gate_open(&work.prepare_gate);
    fake_wait_told(self, world, "a:null");
    fiber_assert(work.n_committed == 1 && work.n_aborted == 0);
}

JOB_TEST(a_ready_job_that_is_cancelled_without_force_ends_well)
{
    FakeWork work = {.gets_ready = true};
    Job *job = fake_job(world, "a", &work, (JobSpec){0});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:READY");
    fiber_assert_equal(job_cancel(self, job, false, NULL), 0);
    g_autoptr(GError) error = NULL;
    fiber_assert_equal(job_complete(job, &error), -EPERM);
    fiber_assert(g_str_equal(error->message, "The active block job 'a' cannot be completed"));
    fake_wait_told(self, world, "a:null");
    fiber_assert(strstr(world->told->str, "a:waiting a:pending a:COMPLETED"));
    fiber_assert_equal(work.ended, JOB_END_CANCEL);
}

JOB_TEST(a_paused_job_is_cancelled_with_force_only)
{
    Scene scene = {.world = world};
    bring_to(self, &scene, JOB_PAUSED);
    g_autoptr(GError) error = NULL;
    fiber_assert_equal(job_cancel(self, scene.job, false, &error), -EPERM);
    fiber_assert(g_str_equal(error->message, "The block job for device 'a' is currently paused"));
    fiber_assert_equal(job_cancel(self, scene.job, true, NULL), 0);
    fake_wait_told(self, world, "a:null");
    fiber_assert_told(world, "a:created a:running a:paused a:running a:aborting a:CANCELLED "
                             "a:concluded a:null");
}

// -- pauses, speed --------------------------------------------------------------------------------

JOB_TEST(a_paused_job_does_nothing_until_it_is_resumed)
{
    Scene scene = {.world = world};
    bring_to(self, &scene, JOB_PAUSED);
    JobInfo info = job_info(scene.job, loop_now_ns(fiber_loop(self)));
    fiber_assert(info.is_paused && !info.is_busy && info.io_status == JOB_IO_OK);
    fiber_sleep(self, 3000000000);
    fiber_assert_told(world, "a:created a:running a:paused");
    fiber_assert_equal(scene.work.n_done, 0);
    fiber_assert_equal(job_resume(scene.job, NULL), 0);
    fake_wait_told(self, world, "a:null");
    fiber_assert_told(world, "a:created a:running a:paused a:running a:waiting a:pending "
                             "a:COMPLETED a:concluded a:null");
    fiber_assert_equal(scene.work.n_done, 1);
}

static int sleeps(Fiber *self, JobControl *control, void *arg, GError **error)
{
    uint64_t *slept_ns = arg, begun_ns = loop_now_ns(fiber_loop(self));
    int r = 0;
    while (r == 0 && job_speed(control) == 1)
        r = job_sleep(self, control, UINT64_MAX);
    *slept_ns = loop_now_ns(fiber_loop(self)) - begun_ns;
    return r;
}

JOB_TEST(a_job_that_sleeps_hears_of_another_speed)
{
    static const JobKind kind = {.type = "sleeps", .run = sleeps};
    uint64_t slept_ns = 0;
    JobSpec spec = {.id = "a", .kind = &kind, .work = &slept_ns, .speed = 1};
    Job *job = job_new(world->table, &spec, NULL);
    job_start(self, job, world->work);
    fiber_sleep(self, 2000000000);
    JobInfo info = job_info(job, loop_now_ns(fiber_loop(self)));
    fiber_assert(info.speed == 1 && !info.is_busy && !info.is_paused);
    g_autoptr(GError) error = NULL;
    fiber_assert_equal(job_set_speed(job, -1, &error), -EPERM);
    fiber_assert(g_str_equal(error->message, "Parameter 'speed' expects a non-negative value"));
    fiber_assert_equal(job_set_speed(job, 2, NULL), 0);
    fake_wait_told(self, world, "a:null");
    fiber_assert(slept_ns >= 900000000 && slept_ns < 2100000000);
}

JOB_TEST(a_sleep_lasts_as_long_as_it_was_to_unless_the_job_is_cancelled)
{
    FakeWork ready = {.gets_ready = true};
    Job *job = fake_job(world, "a", &ready, (JobSpec){0});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:READY"); // asleep without limit
    fiber_assert_equal(job_cancel(self, job, true, NULL), 0);
    fake_wait_told(self, world, "a:null");
    fiber_assert(strstr(world->told->str, "a:CANCELLED"));
}

// -- errors ---------------------------------------------------------------------------------------

static const struct {
    JobOnError policy;
    int error;
    const char *told;
    JobIoStatus io_status;
} policies[] = {
    {JOB_ON_ERROR_REPORT, -EIO, "a:ERROR-read-report a:aborting a:COMPLETED a:concluded", 0},
    {JOB_ON_ERROR_REPORT, -ENOSPC, "a:ERROR-write-report a:aborting a:COMPLETED a:concluded", 0},
    {JOB_ON_ERROR_IGNORE, -EIO, "a:ERROR-read-ignore a:waiting a:pending a:COMPLETED a:concluded",
     0},
    {JOB_ON_ERROR_ENOSPC, -EIO, "a:ERROR-read-report a:aborting a:COMPLETED a:concluded", 0},
    {JOB_ON_ERROR_ENOSPC, -ENOSPC, "a:ERROR-write-stop a:paused", JOB_IO_NOSPACE},
    {JOB_ON_ERROR_STOP, -EIO, "a:ERROR-read-stop a:paused", JOB_IO_FAILED},
    {JOB_ON_ERROR_STOP, -ENOSPC, "a:ERROR-write-stop a:paused", JOB_IO_NOSPACE},
};

JOB_TEST(an_error_is_dealt_with_as_the_user_wants)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(policies); i++) {
        FakeWork work = {
            .n_pieces = 2,
            .policy = policies[i].policy,
            .error_once = policies[i].error,
            .is_read = policies[i].error == -EIO,
        };
        g_string_truncate(world->told, 0);
        Job *job = fake_job(world, "a", &work, (JobSpec){.waits_concluded = true});
        job_start(self, job, world->work);
        bool is_stopped = g_str_has_suffix(policies[i].told, "a:paused");
        fake_wait_told(self, world, is_stopped ? "a:paused" : "a:concluded");
        g_autofree char *expected = g_strdup_printf("a:created a:running %s", policies[i].told);
        fiber_assert_told(world, expected);
        fiber_assert_equal(job_info(job, 1).io_status, policies[i].io_status);
        if (is_stopped) {
            fiber_assert_equal(job_pause(job, NULL), -EPERM);
            fiber_assert_equal(job_resume(job, NULL), 0);
            fiber_assert_equal(job_info(job, 1).io_status, JOB_IO_OK);
            fake_wait_told(self, world, "a:concluded");
            fiber_assert_equal(work.n_done, 2);
            fiber_assert(!job_error(job));
        }
        job_dismiss(job, NULL);
    }
}

static int fails_twice(Fiber *self, JobControl *control, void *arg, GError **error)
{
    job_error_action(control, JOB_ON_ERROR_STOP, -ENOSPC, false);
    job_error_action(control, JOB_ON_ERROR_STOP, -EIO, true);
    return job_pause_point(self, control);
}

JOB_TEST(the_first_error_is_what_a_job_is_stopped_for)
{
    static const JobKind kind = {.type = "fails", .run = fails_twice};
    JobSpec spec = {.id = "a", .kind = &kind};
    Job *job = job_new(world->table, &spec, NULL);
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:paused");
    fiber_assert_told(world, "a:created a:running a:ERROR-write-stop a:ERROR-read-stop a:paused");
    fiber_assert_equal(job_info(job, 1).io_status, JOB_IO_NOSPACE);
    fiber_assert_equal(job_resume(job, NULL), 0);
    fake_wait_told(self, world, "a:null");
}

// -- progress -------------------------------------------------------------------------------------

JOB_TEST(progress_is_told_with_its_rate_and_an_estimate)
{
    FakeWork work = {.n_pieces = 10, .gate_at = 5, .gate.is_closed = true};
    Job *job = fake_job(world, "a", &work, (JobSpec){.waits_concluded = true});
    fiber_assert_equal(job_info(job, 1).seconds_left, 0);
    job_start(self, job, world->work);
    fake_wait_gate(self, &work.gate);
    fiber_sleep(self, 500000000);
    JobInfo info = job_info(job, loop_now_ns(fiber_loop(self)));
    fiber_assert(info.current == 500 && info.total == 1000);
    fiber_assert(info.bytes[JOB_BYTES_COPIED] == 500 && info.bytes[JOB_BYTES_SKIPPED] == 0);
    fiber_assert(info.rate >= 300 && info.rate <= 1100);
    fiber_assert_equal(info.seconds_left, (500 + info.rate - 1) / info.rate);
    fiber_sleep(self, 10000000000);
    info = job_info(job, loop_now_ns(fiber_loop(self)));
    fiber_assert(info.rate == 0 && info.seconds_left == -1);
    fake_open(self, world, &work.gate);
    fake_wait_told(self, world, "a:concluded");
    info = job_info(job, loop_now_ns(fiber_loop(self)));
    fiber_assert(info.current == 1000 && info.total == 1000 && !info.is_busy);
    fiber_assert_equal(info.seconds_left, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_verb_in_each_state_is_answered_as_by_qemu),
        cmocka_unit_test(a_job_can_be_cancelled_at_every_step),
        cmocka_unit_test(a_job_that_is_cancelled_before_its_work_begins_does_nothing),
        cmocka_unit_test(a_pending_job_that_is_cancelled_has_concluded_on_return),
        cmocka_unit_test(what_is_being_switched_is_not_cancelled),
        cmocka_unit_test(a_ready_job_that_is_cancelled_without_force_ends_well),
        cmocka_unit_test(a_paused_job_is_cancelled_with_force_only),
        cmocka_unit_test(a_paused_job_does_nothing_until_it_is_resumed),
        cmocka_unit_test(a_job_that_sleeps_hears_of_another_speed),
        cmocka_unit_test(a_sleep_lasts_as_long_as_it_was_to_unless_the_job_is_cancelled),
        cmocka_unit_test(an_error_is_dealt_with_as_the_user_wants),
        cmocka_unit_test(the_first_error_is_what_a_job_is_stopped_for),
        cmocka_unit_test(progress_is_told_with_its_rate_and_an_estimate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
