// SPDX-License-Identifier: LGPL-2.1-or-later
// Streams and drains, on images in a folder: neither waits for the other, whatever the job is
// doing. What a stream leaves, over power cuts, errors and cancels, is
// ../crash/test-crash-stream.c.
#include "../loop/in-fiber.h"

#include <stdlib.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/port.h"
#include "jobs/block-stream.h"
#include "jobs/job.h"

#define MS UINT64_C(1000000)

typedef struct World {
    char *dir;
    MapMemory *memory;
    Node *top;
    BlockStream *stream;
    JobTable *table;
    Job *job; // while there is one
    bool is_well;
} World;

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    World *w = work;
    return block_stream_run(self, w->stream, control, JOB_ON_ERROR_REPORT, error);
}

static int prepare(Fiber *self, void *work, GError **error)
{
    World *w = work;
    return block_stream_switch(self, w->stream, &(BlockStreamBacking){0}, error);
}

static void commit(Fiber *self, void *work)
{
    ((World *)work)->is_well = true;
}

static void clean(Fiber *self, void *work)
{
    block_stream_free(self, ((World *)work)->stream);
}

static void happened(void *arg, const Job *job, const JobEvent *event)
{
    World *w = arg;
    if (job_status(job) == JOB_NULL)
        w->job = NULL;
}

static void begin(Fiber *self, World *w, JobSpec spec)
{
    static const JobKind kind = {
        .type = "stream", .run = run, .prepare = prepare, .commit = commit, .clean = clean};
    *w = (World){.dir = g_dir_make_tmp("chaind-test-stream-XXXXXX", NULL)};
    w->memory = map_memory_new(8 << 20);
    w->table = job_table_new(happened, w);
    g_autofree char *command =
        g_strdup_printf("cd '%s' && { qemu-img create -f qcow2 base 4M && qemu-io -f qcow2 -c "
                        "'write -P 5 0 4M' base "
                        "&& qemu-img create -f qcow2 -F qcow2 -b base top; } >out 2>&1",
                        w->dir);
    g_autofree char *path = g_build_filename(w->dir, "top", NULL);
    LayerOptions options = {.format = "qcow2", .memory = w->memory};
    fiber_assert_equal(system(command), 0);
    fiber_assert_equal(chain_open(self, path, &options, &w->top, NULL, NULL), 0);
    w->stream = block_stream_new(w->top, chain_backing(w->top), w->memory, "stream job 'j'");
    spec.id = "j";
    spec.kind = &kind;
    spec.work = w;
    w->job = job_new(w->table, &spec, NULL);
    job_start(self, w->job, fiber_loop(self));
}

// That the stream has ended, and (not `is_cancelled`) what it left.
static void end(Fiber *self, World *w, bool is_cancelled)
{
    uint8_t block[512];
    while (w->job)
        fiber_sleep(self, MS);
    fiber_assert_equal(w->is_well, !is_cancelled);
    fiber_assert_equal(chain_backing(w->top) != NULL, is_cancelled);
    for (uint64_t off = 0; off < w->top->size_bytes; off += 64 << 10) {
        fiber_assert_equal(node_read(self, w->top, guest_off(off), block, sizeof block), 0);
        fiber_assert(block[0] == 5 && memcmp(block, block + 1, sizeof block - 1) == 0);
    }
    node_unref_close(self, w->top);
    job_table_free(w->table);
    map_memory_free(w->memory);
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", w->dir);
    fiber_assert_equal(system(command), 0);
    g_free(w->dir);
}

FIBER_TEST(a_drain_does_not_wait_for_a_job_that_is_paused)
{
    World w;
    begin(self, &w, (JobSpec){.speed = 1 << 20});
    fiber_assert_equal(job_pause(w.job, NULL), 0);
    while (job_status(w.job) != JOB_PAUSED)
        fiber_sleep(self, MS);
    for (unsigned i = 0; i < 3; i++) { // whatever it was about to do
        node_drain_begin(self, w.top, REQUESTS_ALL);
        fiber_assert_equal(job_status(w.job), JOB_PAUSED);
        node_drain_end(w.top, REQUESTS_ALL);
    }
    fiber_assert_equal(job_set_speed(w.job, 0, NULL), 0);
    fiber_assert_equal(job_resume(w.job, NULL), 0);
    end(self, &w, false);
}

FIBER_TEST(a_drain_does_not_wait_for_a_job_that_waits_for_its_limit)
{
    World w;
    begin(self, &w, (JobSpec){.speed = 1}); // years
    fiber_sleep(self, 20 * MS);
    node_drain_begin(self, w.top, REQUESTS_ALL);
    node_drain_end(w.top, REQUESTS_ALL);
    fiber_assert_equal(job_set_speed(w.job, 0, NULL), 0);
    end(self, &w, false);
}

FIBER_TEST(a_job_that_meets_a_drain_waits_for_it_and_goes_on_by_itself)
{
    World w;
    begin(self, &w, (JobSpec){0});
    node_drain_begin(self, w.top, REQUESTS_ALL);
    JobInfo before = job_info(w.job, 0);
    fiber_sleep(self, 30 * MS);
    fiber_assert_equal(job_info(w.job, 0).current, before.current);
    fiber_assert_equal(job_status(w.job), JOB_RUNNING);
    node_drain_end(w.top, REQUESTS_ALL);
    end(self, &w, false);
}

FIBER_TEST(a_job_that_is_cancelled_in_a_drain_ends_with_it)
{
    World w;
    begin(self, &w, (JobSpec){0});
    node_drain_begin(self, w.top, REQUESTS_ALL);
    fiber_assert_equal(job_cancel(self, w.job, true, NULL), 0);
    fiber_sleep(self, 5 * MS);
    node_drain_end(w.top, REQUESTS_ALL);
    end(self, &w, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_drain_does_not_wait_for_a_job_that_is_paused),
        cmocka_unit_test(a_drain_does_not_wait_for_a_job_that_waits_for_its_limit),
        cmocka_unit_test(a_job_that_meets_a_drain_waits_for_it_and_goes_on_by_itself),
        cmocka_unit_test(a_job_that_is_cancelled_in_a_drain_ends_with_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
