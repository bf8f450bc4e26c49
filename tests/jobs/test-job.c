// SPDX-License-Identifier: LGPL-2.1-or-later
// The life of jobs: the states and events that users are told of, in their order; ids; groups; the
// end of all. Verbs are test-job-verbs.c.
#include "fake-job.h"

JOB_TEST(a_job_that_does_well_goes_by_waiting_and_pending)
{
    FakeWork work = {.n_pieces = 3};
    job_start(self, fake_job(world, "a", &work, (JobSpec){0}), world->work);
    fiber_assert_told(world, "a:created a:running");
    fake_wait_told(self, world, "a:null");
    fiber_assert_told(world, "a:created a:running a:waiting a:pending a:COMPLETED a:concluded "
                             "a:null");
    fiber_assert_equal(job_table_all(world->table)->len, 0);
    fiber_assert(work.n_prepared == 1 && work.n_committed == 1 && work.n_aborted == 0);
    fiber_assert_equal(work.n_cleaned, 1);
}

JOB_TEST(a_job_that_fails_goes_by_aborting_and_keeps_the_reason)
{
    FakeWork work = {.n_pieces = 3, .fails_with = -EIO};
    Job *job = fake_job(world, "a", &work, (JobSpec){.waits_concluded = true});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert_told(world, "a:created a:running a:aborting a:COMPLETED a:concluded");
    fiber_assert(g_str_equal(job_error(job), "Input/output error"));
    fiber_assert(work.n_prepared == 0 && work.n_committed == 0 && work.n_aborted == 1);
    fiber_assert_equal(work.n_cleaned, 1);
}

JOB_TEST(a_job_that_cannot_be_prepared_is_aborted_with_the_reason)
{
    FakeWork work = {.n_pieces = 1, .fails_at_prepare = -EIO};
    Job *job = fake_job(world, "a", &work, (JobSpec){.waits_concluded = true});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert_told(world,
                      "a:created a:running a:waiting a:pending a:aborting a:COMPLETED a:concluded");
    fiber_assert(g_str_equal(job_error(job), "cannot be switched"));
    fiber_assert(work.n_committed == 0 && work.n_aborted == 1 && work.n_cleaned == 1);
}

JOB_TEST(a_job_that_waits_for_it_is_finalized_and_dismissed_by_its_user)
{
    FakeWork work = {.n_pieces = 1};
    Job *job =
        fake_job(world, "a", &work, (JobSpec){.waits_pending = true, .waits_concluded = true});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:PENDING");
    fiber_sleep(self, 1000000000);
    fiber_assert_told(world, "a:created a:running a:waiting a:pending a:PENDING");
    fiber_assert_equal(work.n_prepared, 0);
    fiber_assert_equal(job_finalize(self, job, NULL), 0);
    fiber_assert_told(world, "a:created a:running a:waiting a:pending a:PENDING a:COMPLETED "
                             "a:concluded");
    fiber_assert_equal(job_dismiss(job, NULL), 0);
    fiber_assert(g_str_has_suffix(world->told->str, "a:concluded a:null"));
}

JOB_TEST(a_job_that_gets_ready_ends_when_it_is_completed)
{
    FakeWork work = {.n_pieces = 1, .gets_ready = true};
    Job *job = fake_job(world, "a", &work, (JobSpec){0});
    job_start(self, job, world->work);
    fake_wait_told(self, world, "a:READY");
    fiber_sleep(self, 1000000000);
    fiber_assert_told(world, "a:created a:running a:ready a:READY");
    fiber_assert_equal(job_complete(job, NULL), 0);
    fake_wait_told(self, world, "a:null");
    fiber_assert_told(world, "a:created a:running a:ready a:READY a:waiting a:pending a:COMPLETED "
                             "a:concluded a:null");
    fiber_assert_equal(work.ended, JOB_END_COMPLETE);
}

JOB_TEST(a_job_that_is_not_started_leaves_no_trace)
{
    FakeWork work = {0};
    job_drop(fake_job(world, "a", &work, (JobSpec){0}));
    job_drop_cancelled(fake_job(world, "b", &work, (JobSpec){.waits_concluded = true}));
    fiber_assert_told(world, "a:created a:null b:created b:aborting b:concluded b:null");
    fiber_assert_equal(job_table_all(world->table)->len, 0);
    fiber_assert_equal(work.n_cleaned, 0);
}

JOB_TEST(ids_are_well_formed_and_unique_until_the_job_is_dismissed)
{
    static const char *const bad[] = {"", "0j", "-x", "a b", "a/b", "\xc3\xa4"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *expected = g_strdup_printf("Invalid job ID '%s'", bad[i]);
        JobSpec spec = {.id = bad[i], .kind = &fake_kind};
        fiber_assert(!job_new(world->table, &spec, &error));
        fiber_assert(g_str_equal(error->message, expected));
    }
    FakeWork work = {0}, again = {0};
    Job *job = fake_job(world, "a-1.b_2", &work, (JobSpec){.waits_concluded = true});
    JobSpec same = {.id = "a-1.b_2", .kind = &fake_kind};
    g_autoptr(GError) taken = NULL;
    fiber_assert(!job_new(world->table, &same, &taken));
    fiber_assert(g_str_equal(taken->message, "Job ID 'a-1.b_2' already in use"));
    job_start(self, job, world->work);
    fake_wait_told(self, world, "concluded");
    fiber_assert(job_table_get(world->table, "a-1.b_2", NULL) == job);
    fiber_assert(!job_new(world->table, &same, NULL));
    job_dismiss(job, NULL);
    g_autoptr(GError) gone = NULL;
    fiber_assert(!job_table_get(world->table, "a-1.b_2", &gone));
    fiber_assert(g_str_equal(gone->message, "Job not found"));
    job_drop(fake_job(world, "a-1.b_2", &again, (JobSpec){0}));
}

// -- groups ---------------------------------------------------------------------------------------

typedef struct Three {
    FakeWork works[3];
    Job *jobs[3];
} Three;

static void make_three(FakeWorld *world, Three *three, JobSpec spec)
{
    static const char *const ids[] = {"a", "b", "c"};
    spec.group = job_group_new();
    for (unsigned i = 0; i < 3; i++) {
        three->works[i].n_pieces = 2 + i;
        three->jobs[i] = fake_job(world, ids[i], &three->works[i], spec);
    }
    job_group_unref(spec.group);
}

static void start_three(Fiber *self, FakeWorld *world, Three *three)
{
    for (unsigned i = 0; i < 3; i++)
        job_start(self, three->jobs[i], world->work);
}

// What is told of one job.
static char *told_of(const FakeWorld *world, const char *id)
{
    g_auto(GStrv) words = g_strsplit(world->told->str, " ", 0);
    GString *of = g_string_new(NULL);
    for (char **word = words; *word; word++)
        if (g_str_has_prefix(*word, id))
            g_string_append_printf(of, "%s%s", of->len ? " " : "", *word + strlen(id) + 1);
    return g_string_free(of, false);
}

static void assert_told_of(const FakeWorld *world, const char *id, const char *expected)
{
    g_autofree char *told = told_of(world, id);
    if (strcmp(told, expected) != 0)
        g_error("%s: %s, not %s", id, told, expected);
}

static size_t when(const FakeWorld *world, const char *what)
{
    const char *at = strstr(world->told->str, what);
    fiber_assert(at);
    return (size_t)(at - world->told->str);
}

JOB_TEST(jobs_of_a_group_wait_for_each_other)
{
    Three three = {.works[1].gate.is_closed = true};
    make_three(world, &three, (JobSpec){0});
    start_three(self, world, &three);
    fake_wait_told(self, world, "a:waiting");
    fake_wait_told(self, world, "c:waiting");
    fiber_sleep(self, 1000000000);
    fiber_assert(!strstr(world->told->str, "pending"));
    fake_open(self, world, &three.works[1].gate);
    fake_wait_told(self, world, "a:null");
    for (unsigned i = 0; i < 3; i++) {
        assert_told_of(world, (const char *[]){"a", "b", "c"}[i],
                       "created running waiting pending COMPLETED concluded null");
        fiber_assert(three.works[i].n_committed == 1 && three.works[i].n_cleaned == 1);
    }
    fiber_assert(when(world, "b:waiting") < when(world, "a:pending"));
    fiber_assert(strstr(world->told->str, "c:pending b:pending a:pending c:COMPLETED c:concluded "
                                          "c:null b:COMPLETED b:concluded b:null a:COMPLETED"));
}

JOB_TEST(nobody_of_a_group_waits_while_another_one_clears_up)
{
    Three three = {0};
    for (unsigned i = 0; i < 3; i += 2) // they were the first, and each other's last
        three.works[i] = (FakeWork){.clears_up = true, .commit_gate.is_closed = true};
    make_three(world, &three, (JobSpec){0});
    start_three(self, world, &three);
    fake_wait_told(self, world, "b:null");
    for (unsigned i = 0; i < 3; i += 2)
        fake_wait_gate(self, &three.works[i].commit_gate);
    fiber_assert(!strstr(world->told->str, "a:COMPLETED") &&
                 !strstr(world->told->str, "c:COMPLETED"));
    fake_gate_open(&three.works[0].commit_gate);
    fake_wait_told(self, world, "a:null");
    fiber_assert(!strstr(world->told->str, "c:COMPLETED"));
    fake_gate_open(&three.works[2].commit_gate);
    fake_wait_told(self, world, "c:null");
}

JOB_TEST(one_finalize_is_for_the_whole_group)
{
    Three three = {0};
    make_three(world, &three, (JobSpec){.waits_pending = true});
    start_three(self, world, &three);
    fake_wait_told(self, world, "a:PENDING");
    fiber_assert_equal(job_finalize(self, three.jobs[1], NULL), 0);
    assert_told_of(world, "a", "created running waiting pending PENDING COMPLETED concluded null");
    assert_told_of(world, "c", "created running waiting pending PENDING COMPLETED concluded null");
}

JOB_TEST(when_one_of_a_group_fails_the_others_are_cancelled)
{
    for (unsigned bad = 0; bad < 3; bad++) {
        Three three = {0};
        g_string_truncate(world->told, 0);
        three.works[bad].fails_with = -ENOSPC;
        make_three(world, &three, (JobSpec){0});
        start_three(self, world, &three);
        for (unsigned i = 0; i < 3; i++) {
            g_autofree char *last = g_strdup_printf("%c:null", 'a' + i);
            fake_wait_told(self, world, last);
        }
        for (unsigned i = 0; i < 3; i++) {
            const char id[] = {(char)('a' + i), 0};
            g_autofree char *told = told_of(world, id);
            fiber_assert(g_str_has_suffix(told, i == bad ? "aborting COMPLETED concluded null"
                                                         : "aborting CANCELLED concluded null"));
            fiber_assert(!strstr(told, "pending"));
            fiber_assert(three.works[i].n_committed == 0 && three.works[i].n_aborted == 1);
            fiber_assert(three.works[i].n_prepared == 0 && three.works[i].n_cleaned == 1);
        }
    }
}

JOB_TEST(when_one_of_a_group_cannot_be_prepared_nothing_is_committed)
{
    Three three = {.works[1].fails_at_prepare = -EIO};
    make_three(world, &three, (JobSpec){0});
    start_three(self, world, &three);
    fake_wait_told(self, world, "a:null");
    assert_told_of(world, "a", "created running waiting pending aborting CANCELLED concluded null");
    assert_told_of(world, "b", "created running waiting pending aborting COMPLETED concluded null");
    assert_told_of(world, "c", "created running waiting pending aborting CANCELLED concluded null");
    fiber_assert(three.works[2].n_prepared == 1 && three.works[0].n_prepared == 0);
    for (unsigned i = 0; i < 3; i++)
        fiber_assert(three.works[i].n_committed == 0 && three.works[i].n_aborted == 1);
}

JOB_TEST(a_group_whose_last_job_is_dropped_goes_on_without_it)
{
    Three three = {0};
    make_three(world, &three, (JobSpec){0});
    job_drop(three.jobs[2]);
    job_start(self, three.jobs[0], world->work);
    job_start(self, three.jobs[1], world->work);
    fake_wait_told(self, world, "a:null");
    assert_told_of(world, "a", "created running waiting pending COMPLETED concluded null");
    assert_told_of(world, "c", "created null");
}

// -- the end of all -------------------------------------------------------------------------------

JOB_TEST(the_end_cancels_jobs_waits_for_them_and_dismisses_them)
{
    FakeWork done = {0}, held = {.n_pieces = 1, .gate.is_closed = true}, ready = {0}, pending = {0},
             paused = {.n_pieces = 1, .gate.is_closed = true};
    ready.gets_ready = true;
    job_start(self, fake_job(world, "done", &done, (JobSpec){.waits_concluded = true}),
              world->work);
    job_start(self, fake_job(world, "held", &held, (JobSpec){0}), world->work);
    job_start(self, fake_job(world, "ready", &ready, (JobSpec){0}), world->work);
    job_start(self, fake_job(world, "pending", &pending, (JobSpec){.waits_pending = true}),
              world->work);
    Job *to_pause = fake_job(world, "paused", &paused, (JobSpec){.waits_concluded = true});
    job_start(self, to_pause, world->work);
    fiber_assert_equal(job_pause(to_pause, NULL), 0);
    fake_open(self, world, &paused.gate);
    fake_wait_told(self, world, "done:concluded");
    fake_wait_told(self, world, "ready:READY");
    fake_wait_told(self, world, "pending:PENDING");
    fake_wait_told(self, world, "paused:paused");
    fake_open(self, world, &held.gate);
    job_table_end(self, world->table);
    fiber_assert_equal(job_table_all(world->table)->len, 0);
    assert_told_of(world, "done", "created running waiting pending COMPLETED concluded null");
    assert_told_of(world, "ready", "created running ready READY aborting CANCELLED concluded null");
    assert_told_of(world, "pending",
                   "created running waiting pending PENDING aborting CANCELLED concluded null");
    assert_told_of(world, "paused",
                   "created running paused running aborting CANCELLED concluded null");
    fiber_assert(held.n_cleaned == 1 && paused.n_committed == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_that_does_well_goes_by_waiting_and_pending),
        cmocka_unit_test(a_job_that_fails_goes_by_aborting_and_keeps_the_reason),
        cmocka_unit_test(a_job_that_cannot_be_prepared_is_aborted_with_the_reason),
        cmocka_unit_test(a_job_that_waits_for_it_is_finalized_and_dismissed_by_its_user),
        cmocka_unit_test(a_job_that_gets_ready_ends_when_it_is_completed),
        cmocka_unit_test(a_job_that_is_not_started_leaves_no_trace),
        cmocka_unit_test(ids_are_well_formed_and_unique_until_the_job_is_dismissed),
        cmocka_unit_test(jobs_of_a_group_wait_for_each_other),
        cmocka_unit_test(nobody_of_a_group_waits_while_another_one_clears_up),
        cmocka_unit_test(one_finalize_is_for_the_whole_group),
        cmocka_unit_test(when_one_of_a_group_fails_the_others_are_cancelled),
        cmocka_unit_test(when_one_of_a_group_cannot_be_prepared_nothing_is_committed),
        cmocka_unit_test(a_group_whose_last_job_is_dropped_goes_on_without_it),
        cmocka_unit_test(the_end_cancels_jobs_waits_for_them_and_dismisses_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
