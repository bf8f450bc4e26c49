// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs: the states that users are told of, in their order; ids; verbs; the end of all.
#include "../loop/in-fiber.h"

#include <errno.h>

#include "jobs/job.h"

static GString *told;

static void changed(void *arg, const Job *job)
{
    g_string_append_printf(told, "%s%s:%s", told->len ? " " : "", job_id(job),
                           job_status_name(job_status(job)));
}

static JobTable *begin(void)
{
    told = g_string_new(NULL);
    return job_table_new(changed, NULL);
}

static void end(JobTable *table)
{
    job_table_free(table);
    g_string_free(told, true);
}

static void a_job_that_does_well_goes_by_waiting_and_pending(void **state)
{
    JobTable *table = begin();
    Job *job = job_new(table, "a", "create", NULL);
    job_start(job);
    job_conclude(job, NULL);
    assert_null(job_error(job));
    assert_int_equal(job_dismiss(job, NULL), 0);
    assert_string_equal(told->str, "a:created a:running a:waiting a:pending a:concluded a:null");
    assert_int_equal(job_table_all(table)->len, 0);
    end(table);
}

static void a_job_that_fails_goes_by_aborting_and_keeps_the_reason(void **state)
{
    JobTable *table = begin();
    Job *job = job_new(table, "a", "create", NULL);
    job_start(job);
    job_conclude(job, "no space");
    assert_string_equal(told->str, "a:created a:running a:aborting a:concluded");
    assert_string_equal(job_error(job), "no space");
    end(table);
}

static void ids_are_well_formed_and_unique_until_the_job_is_dismissed(void **state)
{
    static const char *const bad[] = {"", "0j", "-x", "a b", "a/b", "\xc3\xa4"};
    JobTable *table = begin();
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *expected = g_strdup_printf("Invalid job ID '%s'", bad[i]);
        assert_null(job_new(table, bad[i], "create", &error));
        assert_string_equal(error->message, expected);
    }
    Job *job = job_new(table, "a-1.b_2", "create", NULL);
    g_autoptr(GError) taken = NULL;
    assert_null(job_new(table, "a-1.b_2", "create", &taken));
    assert_string_equal(taken->message, "Job ID 'a-1.b_2' already in use");
    job_start(job);
    job_conclude(job, NULL);
    assert_ptr_equal(job_table_get(table, "a-1.b_2", NULL), job);
    job_dismiss(job, NULL);
    g_autoptr(GError) gone = NULL;
    assert_null(job_table_get(table, "a-1.b_2", &gone));
    assert_string_equal(gone->message, "Job not found");
    assert_non_null(job_new(table, "a-1.b_2", "create", NULL));
    job_conclude(job_table_get(table, "a-1.b_2", NULL), "never started");
    end(table);
}

static void a_verb_that_the_state_does_not_allow_is_refused(void **state)
{
    JobTable *table = begin();
    Job *job = job_new(table, "a", "create", NULL);
    job_start(job);
    g_autoptr(GError) early = NULL;
    assert_int_equal(job_dismiss(job, &early), -EPERM);
    assert_string_equal(early->message,
                        "Job 'a' in state 'running' cannot accept command verb 'dismiss'");
    job_conclude(job, NULL);
    g_autoptr(GError) late = NULL;
    assert_int_equal(job_check_verb(job, JOB_CANCEL, &late), -EPERM);
    assert_string_equal(late->message,
                        "Job 'a' in state 'concluded' cannot accept command verb 'cancel'");
    end(table);
}

static void concludes_later(Fiber *self, void *arg)
{
    fiber_yield(self);
    job_conclude(arg, NULL);
}

FIBER_TEST(the_end_waits_for_jobs_and_dismisses_them)
{
    JobTable *table = begin();
    Job *done = job_new(table, "done", "create", NULL);
    job_start(done);
    job_conclude(done, NULL);
    Job *late = job_new(table, "late", "create", NULL);
    job_start(late);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "late", concludes_later, late, NULL), 0);
    job_table_end(self, table);
    fiber_assert_equal(job_table_all(table)->len, 0);
    fiber_assert(g_str_has_suffix(told->str, "late:concluded done:null late:null"));
    end(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_that_does_well_goes_by_waiting_and_pending),
        cmocka_unit_test(a_job_that_fails_goes_by_aborting_and_keeps_the_reason),
        cmocka_unit_test(ids_are_well_formed_and_unique_until_the_job_is_dismissed),
        cmocka_unit_test(a_verb_that_the_state_does_not_allow_is_refused),
        cmocka_unit_test(the_end_waits_for_jobs_and_dismisses_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
