// SPDX-License-Identifier: LGPL-2.1-or-later
// What the service manager is told, as far as it can be seen without one: the status line, and
// whether a loop that hangs is found. The talk itself is in tests/integration/test-service.py.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>

#include "heartbeat.h"
#include "loops.h"
#include "service-status.h"

static void assert_text(const ServiceFacts *facts, const char *want)
{
    g_autofree char *text = service_status_text(facts);
    assert_string_equal(text, want);
}

static void disks_and_clients_are_counted(void **state)
{
    assert_text(&(ServiceFacts){0}, "0 disks, 0 clients");
    assert_text(&(ServiceFacts){.n_disks = 1, .n_clients = 1}, "1 disk, 1 client");
    assert_text(&(ServiceFacts){.n_disks = 3, .n_clients = 5}, "3 disks, 5 clients");
}

static void jobs_are_told_with_their_part_and_time_or_state(void **state)
{
    ServiceJob jobs[] = {
        {"delete-7", NULL, 42, 100, 170},
        {"mirror-1", "ready", 7, 7, -1},
        {"backup-2", "paused: no space", 1, 3, 10},
    };
    assert_text(&(ServiceFacts){3, 5, jobs, 1}, "3 disks, 5 clients, delete-7 42% ETA 3m");
    assert_text(
        &(ServiceFacts){3, 5, jobs, 3},
        "3 disks, 5 clients, delete-7 42% ETA 3m, mirror-1 100% ready, backup-2 33% paused: no "
        "space");
}

static void further_jobs_are_counted(void **state)
{
    ServiceJob jobs[5];
    for (unsigned i = 0; i < 5; i++)
        jobs[i] = (ServiceJob){"j", NULL, 0, 0, -1};
    assert_text(&(ServiceFacts){1, 0, jobs, 4}, "1 disk, 0 clients, j 0%, j 0%, j 0%, 1 more job");
    assert_text(&(ServiceFacts){1, 0, jobs, 5}, "1 disk, 0 clients, j 0%, j 0%, j 0%, 2 more jobs");
}

static void times_have_a_unit_that_fits(void **state)
{
    static const struct {
        int64_t seconds;
        const char *want;
    } cases[] = {
        {0, "0s"},     {59, "59s"},      {60, "1m"},       {89, "1m"},           {90, "2m"},
        {3569, "59m"}, {3570, "1h 00m"}, {7500, "2h 05m"}, {360000, "100h 00m"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        ServiceJob job = {"j", NULL, 1, 2, cases[i].seconds};
        g_autofree char *want = g_strdup_printf("0 disks, 0 clients, j 50%% ETA %s", cases[i].want);
        assert_text(&(ServiceFacts){0, 0, &job, 1}, want);
    }
}

// -- heartbeat ------------------------------------------------------------------------------------

// Keeps a loop from turning until it is let go.
typedef struct Hang {
    LoopCall call; // first
    GMutex mutex;
    GCond changed;
    bool is_hanging, is_let_go;
} Hang;

static void hang(LoopCall *call)
{
    Hang *h = (Hang *)call;
    g_mutex_lock(&h->mutex);
    h->is_hanging = true;
    g_cond_signal(&h->changed);
    while (!h->is_let_go)
        g_cond_wait(&h->changed, &h->mutex);
    g_mutex_unlock(&h->mutex);
}

// Checks until it is complete: what is asked is answered in the end.
static void wait_complete(Heartbeat *heartbeat, const GPtrArray *loops)
{
    while (!heartbeat_check(heartbeat, loops))
        g_usleep(100);
}

static void a_loop_that_hangs_is_found_and_forgiven(void **state)
{
    Loops *loops = loops_start("test", 2, NULL, NULL);
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    g_ptr_array_add(all, loops_get(loops, 0));
    g_ptr_array_add(all, loops_get(loops, 1));
    Heartbeat *heartbeat = heartbeat_new();
    assert_true(heartbeat_check(heartbeat, all)); // asks idle loops
    for (unsigned i = 0; i < 3; i++)
        wait_complete(heartbeat, all);
    Hang h = {.call.fn = hang};
    loop_post(loops_get(loops, 1), &h.call);
    g_mutex_lock(&h.mutex);
    while (!h.is_hanging)
        g_cond_wait(&h.changed, &h.mutex);
    g_mutex_unlock(&h.mutex);
    wait_complete(heartbeat, all); // what was asked before; asks anew
    g_usleep(20000);               // the other loop has answered long since
    for (unsigned i = 0; i < 3; i++)
        assert_false(heartbeat_check(heartbeat, all));
    g_mutex_lock(&h.mutex);
    h.is_let_go = true;
    g_cond_signal(&h.changed);
    g_mutex_unlock(&h.mutex);
    wait_complete(heartbeat, all);
    loops_stop(loops);
    loops_free(loops);
    heartbeat_free(heartbeat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disks_and_clients_are_counted),
        cmocka_unit_test(jobs_are_told_with_their_part_and_time_or_state),
        cmocka_unit_test(further_jobs_are_counted),
        cmocka_unit_test(times_have_a_unit_that_fits),
        cmocka_unit_test(a_loop_that_hangs_is_found_and_forgiven),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
