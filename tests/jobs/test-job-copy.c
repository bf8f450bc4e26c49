// SPDX-License-Identifier: LGPL-2.1-or-later
// A copy engine as the work of a job, on two loops of the simulation: what users ask is done, and
// what becomes of it told.
#include "fake-job.h"

#include "job-copy.h"

enum { N_CHUNKS = 64, CHUNK = 1 << 16, SIZE = N_CHUNKS * CHUNK };

typedef struct CopyWork {
    JobCopy copy; // first
    FakeWorld *world;
    JobOnError policy;
    unsigned n_fail; // chunks, from now on
    bool has_holes;  // every other chunk is no work
    bool fails_reading;
    bool moves_beside;    // as much as each chunk
    uint64_t moves_bytes; // with each chunk; 0: as many as it has
    _Atomic unsigned n_copied;
} CopyWork;

static int work_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    const CopyWork *work = arg;
    bool is_hole = work->has_holes && off / CHUNK % 2;
    *ret_extent = (CopyExtent){
        .len = MIN(len, CHUNK - off % CHUNK),
        .is_work = !is_hole,
        .kind = WORK_DATA,
    };
    return 0;
}

static int work_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    CopyWork *work = arg;
    fiber_sleep(self, 1000000);
    if (work->n_fail) {
        work->n_fail--;
        chunk->failed_reading = work->fails_reading;
        return -ENOSPC;
    }
    work->n_copied++;
    chunk->copied_bytes = work->moves_bytes ?: chunk->len;
    chunk->beside_copied = work->moves_beside ? chunk->len : 0;
    return 0;
}

static const CopyEngineOps work_ops = {.find = work_find, .copy = work_copy, JOB_COPY_OPS};

static int work_run(Fiber *self, JobControl *control, void *arg, GError **error)
{
    CopyWork *work = arg;
    work->copy.control = control;
    work->copy.on_read_error = work->copy.on_write_error = work->policy;
    CopyEngineConfig config = {.size_bytes = SIZE,
                               .granularity_bits = 16,
                               .chunk_bytes = CHUNK,
                               .window_bytes = 2 * CHUNK,
                               .ops = &work_ops,
                               .arg = work};
    job_copy_begin(&work->copy, fiber_loop(self), &config);
    int r = job_copy_run(self, &work->copy);
    job_copy_end(&work->copy);
    return r;
}

static const JobKind copy_kind = {.type = "copy", .is_block_job = true, .run = work_run};

static Job *start(Fiber *self, FakeWorld *world, CopyWork *work, JobSpec spec)
{
    spec.id = "a";
    spec.kind = &copy_kind;
    spec.work = work;
    work->world = world;
    Job *job = job_new(world->table, &spec, NULL);
    job_start(self, job, world->work);
    return job;
}

static uint64_t now_ns(Fiber *self)
{
    return loop_now_ns(fiber_loop(self));
}

JOB_TEST(its_progress_is_that_of_the_copy)
{
    CopyWork work = {0};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    JobInfo info = job_info(job, now_ns(self));
    fiber_assert_equal(info.current, SIZE);
    fiber_assert_equal(info.total, SIZE);
    fiber_assert_equal(info.bytes[JOB_BYTES_COPIED], SIZE);
    fiber_assert_told(world, "a:created a:running a:waiting a:pending a:COMPLETED a:concluded");
}

JOB_TEST(or_that_of_the_whole_disk_where_it_counts_what_is_no_work)
{
    CopyWork work = {.has_holes = true, .copy.counts_all = true};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true, .total = SIZE});
    JobInfo info, before = {0};
    do {
        info = job_info(job, now_ns(self));
        fiber_assert(info.current >= before.current && info.current <= SIZE);
        fiber_assert_equal(info.total, SIZE);
        before = info;
        fiber_sleep(self, 100000);
    } while (!strstr(world->told->str, "a:concluded"));
    info = job_info(job, now_ns(self));
    fiber_assert_equal(info.current, SIZE);
    fiber_assert_equal(info.bytes[JOB_BYTES_COPIED], SIZE / 2);
    fiber_assert_equal(info.bytes[JOB_BYTES_SKIPPED], SIZE / 2);
}

JOB_TEST(what_is_moved_beside_it_counts_and_falls_under_the_limit)
{
    CopyWork work = {.moves_beside = true, .copy.counts_all = true};
    uint64_t start_ns = now_ns(self);
    Job *job = start(self, world, &work, (JobSpec){.speed = SIZE, .waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    JobInfo info = job_info(job, now_ns(self));
    fiber_assert_equal(info.bytes[JOB_BYTES_COPIED], 2 * SIZE);
    fiber_assert_equal(info.bytes[JOB_BYTES_SKIPPED], 0);
    fiber_assert_equal(info.current, 2 * SIZE);
    fiber_assert_equal(info.total, 2 * SIZE);
    fiber_assert(now_ns(self) - start_ns > 1500000000); // simulated: two seconds at that speed
}

// A target of which only the file counts.
typedef struct FileNode {
    Node node;
    File *file;
} FileNode;

static File *file_of_node(Node *node)
{
    return ((FileNode *)node)->file;
}

JOB_TEST(what_is_copied_is_written_out_on_the_way)
{
    enum { FILE_MIB = N_CHUNKS, PART_MIB = 16 };
    static const NodeOps ops = {.file = file_of_node};
    FileNode target = {.node.ops = &ops};
    int r = file_open(self, "target", FILE_WRITABLE | FILE_CREATE, &target.file, NULL);
    fiber_assert_equal(r, 0);
    CopyWork work = {.copy.target = &target.node, .moves_bytes = 1 << 20};
    start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    fiber_assert_equal(sim_file_n_written_out(target.file), FILE_MIB / PART_MIB);
    file_close(self, target.file);
}

JOB_TEST(it_is_paused_and_resumed)
{
    CopyWork work = {0};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    while (work.n_copied < 4)
        fiber_sleep(self, 100000);
    fiber_assert_equal(job_pause(job, NULL), 0);
    fake_wait_told(self, world, "a:paused");
    unsigned n_copied = work.n_copied;
    fiber_sleep(self, 1000000000);
    fiber_assert(n_copied > 0 && n_copied < N_CHUNKS);
    fiber_assert_equal(work.n_copied, n_copied);
    fiber_assert_equal(job_resume(job, NULL), 0);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert_equal(work.n_copied, N_CHUNKS);
}

JOB_TEST(its_speed_is_changed_while_it_waits_for_the_limit)
{
    CopyWork work = {0};
    Job *job = start(self, world, &work, (JobSpec){.speed = 1, .waits_concluded = true});
    fiber_sleep(self, 1000000000);
    fiber_assert(work.n_copied <= 1);
    uint64_t start_ns = now_ns(self);
    fiber_assert_equal(job_set_speed(job, 0, NULL), 0);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert(now_ns(self) - start_ns < 1000000000);
}

JOB_TEST(it_is_cancelled_while_it_waits_for_the_limit)
{
    CopyWork work = {0};
    Job *job = start(self, world, &work, (JobSpec){.speed = 1, .waits_concluded = true});
    fiber_sleep(self, 1000000000);
    uint64_t start_ns = now_ns(self);
    fiber_assert_equal(job_cancel(self, job, false, NULL), 0);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert_told(world, "a:created a:running a:aborting a:CANCELLED a:concluded");
    fiber_assert(now_ns(self) - start_ns < 1000000000);
}

JOB_TEST(an_error_ends_it)
{
    CopyWork work = {.n_fail = 1, .policy = JOB_ON_ERROR_REPORT};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    fiber_assert(strstr(world->told->str, "a:ERROR-write-report"));
    fiber_assert(g_str_equal(job_error(job), "No space left on device"));
    fiber_assert(work.n_copied < N_CHUNKS);
}

JOB_TEST(an_error_pauses_it_and_it_goes_on_once_resumed_losing_nothing)
{
    CopyWork work = {.n_fail = 1, .policy = JOB_ON_ERROR_ENOSPC};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:paused");
    fiber_assert(strstr(world->told->str, "a:ERROR-write-stop"));
    fiber_sleep(self, 1000000000);
    fiber_assert(work.n_copied < N_CHUNKS);
    fiber_assert_equal(job_info(job, now_ns(self)).io_status, JOB_IO_NOSPACE);
    fiber_assert_equal(job_resume(job, NULL), 0);
    fake_wait_told(self, world, "a:concluded");
    fiber_assert(!job_error(job));
    fiber_assert_equal(work.n_copied, N_CHUNKS);
}

JOB_TEST(an_error_that_is_ignored_is_told_at_the_end)
{
    CopyWork work = {.n_fail = 1, .policy = JOB_ON_ERROR_IGNORE, .fails_reading = true};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    fiber_assert(strstr(world->told->str, "a:ERROR-read-ignore"));
    fiber_assert(g_str_equal(job_error(job), "No space left on device"));
    fiber_assert_equal(work.n_copied, N_CHUNKS - 1);
}

JOB_TEST(or_tried_again_until_it_succeeds)
{
    CopyWork work = {.n_fail = 5, .policy = JOB_ON_ERROR_IGNORE, .copy.retries_ignored = true};
    Job *job = start(self, world, &work, (JobSpec){.waits_concluded = true});
    fake_wait_told(self, world, "a:concluded");
    fiber_assert(!job_error(job));
    fiber_assert_equal(work.n_copied, N_CHUNKS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(its_progress_is_that_of_the_copy),
        cmocka_unit_test(or_that_of_the_whole_disk_where_it_counts_what_is_no_work),
        cmocka_unit_test(what_is_moved_beside_it_counts_and_falls_under_the_limit),
        cmocka_unit_test(what_is_copied_is_written_out_on_the_way),
        cmocka_unit_test(it_is_paused_and_resumed),
        cmocka_unit_test(its_speed_is_changed_while_it_waits_for_the_limit),
        cmocka_unit_test(it_is_cancelled_while_it_waits_for_the_limit),
        cmocka_unit_test(an_error_ends_it),
        cmocka_unit_test(an_error_pauses_it_and_it_goes_on_once_resumed_losing_nothing),
        cmocka_unit_test(an_error_that_is_ignored_is_told_at_the_end),
        cmocka_unit_test(or_tried_again_until_it_succeeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
