// SPDX-License-Identifier: LGPL-2.1-or-later
// How host files use workers and the ring: what happens when their device has no free place.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/host-file.h"

static const char path[] = "test-host-file.tmp";

// A file whose writes go to workers, whatever the file system can do.
static HostFile *create(Fiber *self)
{
    File *file;
    GError *error = NULL;
    unlink(path);
    if (file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, &error) < 0)
        g_error("%s", error->message);
    HostFile *h = (HostFile *)file;
    h->inline_writes = HOST_FILE_INLINE_NEVER;
    return h;
}

// A call that keeps a place of the device until its pipe can be read.
typedef struct Hang {
    HostDevice *device;
    int gate[2];
    FiberWaitGroup group;
} Hang;

static int wait_for_gate(void *arg)
{
    char c;
    return read(((Hang *)arg)->gate[0], &c, 1) == 1 ? 0 : -1;
}

static void hangs(Fiber *self, void *arg)
{
    Hang *h = arg;
    fiber_assert_equal(host_device_work(self, h->device, wait_for_gate, h), 0);
    fiber_wait_group_done(&h->group);
}

static void hang_start(Fiber *self, Hang *h, HostDevice *device)
{
    *h = (Hang){.device = device};
    fiber_assert_equal(pipe2(h->gate, O_CLOEXEC), 0);
    fiber_wait_group_add(&h->group, 1);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "hangs", hangs, h, NULL), 0);
}

static void hang_end(Fiber *self, Hang *h)
{
    fiber_assert_equal(write(h->gate[1], "", 1), 1);
    fiber_wait_group_wait(self, &h->group);
    close(h->gate[0]);
    close(h->gate[1]);
}

static void write_byte(HostFile *h, uint64_t off, IoBatch *batch)
{
    struct iovec iov = {(void *)"x", 1};
    file_write_start(&h->file, host_off(off), &iov, 1, batch);
}

static void close_fiber(Fiber *self, void *arg)
{
    HostFile *h = create(self);
    IoBatch batch;
    Hang hang;
    io_batch_init(&batch, self);
    hang_start(self, &hang, h->device);
    write_byte(h, 0, &batch);
    fiber_sleep(self, 1000); // a turn of the loop each, so that there is a job for each
    write_byte(h, 1, &batch);
    fiber_sleep(self, 1000);
    fiber_assert_equal(write(hang.gate[1], "", 1), 1);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert_equal(unlink(path), 0);
    file_close(self, &h->file);
    hang_end(self, &hang);
}

static void a_file_is_closed_while_a_write_job_without_writes_waits_for_its_place(void **state)
{
    LoopConfig config = {.max_workers = 4}; // one place for a device
    run_in_fiber_of(&config, close_fiber, NULL);
}

static void joining_fiber(Fiber *self, void *arg)
{
    enum { N_TURNS = 5, N_EACH = 100 };
    static uint8_t out[N_TURNS][N_EACH];
    uint8_t in[N_TURNS][N_EACH];
    HostFile *h = create(self);
    IoBatch batch;
    Hang hang;
    io_batch_init(&batch, self);
    hang_start(self, &hang, h->device);
    for (unsigned turn = 0; turn < N_TURNS; turn++) {
        for (unsigned i = 0; i < N_EACH; i++) {
            out[turn][i] = (uint8_t)(turn * 7 + i);
            struct iovec iov = {&out[turn][i], 1};
            file_write_start(&h->file, host_off(turn * N_EACH + i), &iov, 1, &batch);
        }
        fiber_sleep(self, 1000);
    }
    fiber_assert(h->is_job_under_way && atomic_load(&h->writes));
    hang_end(self, &hang);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert_equal(file_read(self, &h->file, host_off(0), in, sizeof(in)), 0);
    fiber_assert(!memcmp(in, out, sizeof(in)));
    // A write that fails fails alone.
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    fiber_assert(dup3(fd, h->fd, O_CLOEXEC) == h->fd);
    close(fd);
    write_byte(h, 0, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), -EBADF);
    fiber_assert_equal(unlink(path), 0);
    file_close(self, &h->file);
}

static void writes_of_later_turns_join_the_job_under_way(void **state)
{
    LoopConfig config = {.max_workers = 4}; // one place for a device
    run_in_fiber_of(&config, joining_fiber, NULL);
}

// A read of a pipe waits like one that keeps a worker of the kernel.
static void reads_fiber(Fiber *self, void *arg)
{
    enum { N = 40, MAX_READS = 16 };
    HostFile *h = create(self);
    HostLoop *host = h->host;
    int gate[2];
    uint8_t out[N], in[N] = {0};
    IoBatch batch;
    fiber_assert_equal(pipe2(gate, O_CLOEXEC), 0);
    fiber_assert(dup2(gate[0], h->fd) == h->fd);
    h->inline_reads = HOST_FILE_INLINE_NEVER;
    h->file.size = N;
    io_batch_init(&batch, self);
    unsigned n_before = io_uring_sq_ready(&host->ring.uring);
    for (unsigned i = 0; i < N; i++) {
        out[i] = (uint8_t)(i + 1);
        file_read_start(&h->file, host_off(i), &in[i], 1, &batch);
    }
    fiber_assert_equal(io_uring_sq_ready(&host->ring.uring) - n_before, MAX_READS);
    fiber_assert_equal(write(gate[1], out, N), N);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    for (unsigned i = 0; i < N; i++)
        fiber_assert(in[i]);
    close(gate[0]);
    close(gate[1]);
    fiber_assert_equal(unlink(path), 0);
    file_close(self, &h->file);
}

static void reads_that_block_take_a_part_of_the_kernels_workers(void **state)
{
    run_in_fiber(reads_fiber, NULL);
}

// -- the page cache -------------------------------------------------------------------------------

enum { COPIED_BYTES = (700 << 10) + 123 };

static void evict(HostFile *h)
{
    fiber_assert_equal(fdatasync(h->fd), 0);
    fiber_assert_equal(posix_fadvise(h->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

// A full source, in the page cache; NULL: no kernel says so here, or nothing is to be written out.
static HostFile *create_cached(Fiber *self)
{
    HostFile *h = create(self);
    g_autofree uint8_t *data = g_malloc(COPIED_BYTES);
    for (size_t i = 0; i < COPIED_BYTES; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    fiber_assert_equal(file_write(self, &h->file, host_off(0), data, COPIED_BYTES), 0);
    fiber_assert_equal(unlink(path), 0);
    if (!h->file.is_in_memory && host_file_is_cached(h, 0, COPIED_BYTES))
        return h;
    file_close(self, &h->file);
    return NULL;
}

static HostFile *create_target(Fiber *self, const HostFile *from)
{
    HostFile *to = create(self);
    to->no_sharing_with = from->file.identity[0];
    fiber_assert_equal(unlink(path), 0);
    return to;
}

static void assert_same(Fiber *self, HostFile *from, HostFile *to, uint64_t to_off)
{
    g_autofree uint8_t *a = g_malloc(COPIED_BYTES), *b = g_malloc(COPIED_BYTES);
    fiber_assert_equal(file_read(self, &from->file, host_off(0), a, COPIED_BYTES), 0);
    fiber_assert_equal(file_read(self, &to->file, host_off(to_off), b, COPIED_BYTES), 0);
    fiber_assert(!memcmp(a, b, COPIED_BYTES));
}

typedef struct Copying {
    HostFile *from, *to;
    uint64_t to_off;
    FiberWaitGroup *group;
    int result;
} Copying;

static void copies(Fiber *self, void *arg)
{
    Copying *c = arg;
    c->result = file_copy(self, &c->from->file, host_off(0), &c->to->file, host_off(c->to_off),
                          COPIED_BYTES);
    fiber_wait_group_done(c->group);
}

static void copy_start(Fiber *self, Copying *c)
{
    fiber_wait_group_add(c->group, 1);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "copies", copies, c, NULL), 0);
}

static void copying_fiber(Fiber *self, void *arg)
{
    enum { N = 5 };
    HostFile *from = create_cached(self);
    if (!from)
        return;
    HostFile *to = create_target(self, from);
    FiberWaitGroup group = {0};
    Copying c[N];
    fiber_assert(file_may_copy(&from->file, host_off(0), &to->file, COPIED_BYTES));
    for (unsigned i = 0; i < N; i++) {
        c[i] = (Copying){from, to, (uint64_t)i * COPIED_BYTES + 3, &group, 1};
        copy_start(self, &c[i]);
    }
    fiber_wait_group_wait(self, &group);
    for (unsigned i = 0; i < N; i++) {
        fiber_assert_equal(c[i].result, 0);
        assert_same(self, from, to, c[i].to_off);
    }
    fiber_assert_equal(file_size(&to->file), N * (uint64_t)COPIED_BYTES + 3);
    file_close(self, &from->file);
    file_close(self, &to->file);
}

static void what_is_cached_is_copied_by_the_write_job(void **state)
{
    run_in_fiber(copying_fiber, NULL);
}

static void evicted_fiber(Fiber *self, void *arg)
{
    HostFile *from = create_cached(self);
    if (!from)
        return;
    HostFile *to = create_target(self, from);
    FiberWaitGroup group = {0};
    Copying c = {from, to, 0, &group, 1};
    Hang hang;
    hang_start(self, &hang, to->device); // so that the copy is made after this:
    copy_start(self, &c);
    fiber_sleep(self, 1000);
    evict(from);
    bool is_evicted = !host_file_is_cached(from, 0, COPIED_BYTES); // no promise of the kernel's
    if (is_evicted)
        fiber_assert(!file_may_copy(&from->file, host_off(0), &to->file, COPIED_BYTES));
    hang_end(self, &hang);
    fiber_wait_group_wait(self, &group);
    fiber_assert_equal(c.result, is_evicted ? -ENOTSUP : 0);
    file_close(self, &from->file);
    file_close(self, &to->file);
}

static void what_has_left_the_cache_meanwhile_is_not_copied(void **state)
{
    LoopConfig config = {.max_workers = 4}; // one place for a device
    run_in_fiber_of(&config, evicted_fiber, NULL);
}

static uint64_t dirty_pages(const HostFile *h)
{
    enum { SYS_CACHESTAT = 451 };
    uint64_t range[2] = {0, 0}, stat[5] = {0}; // all; [1] dirty, [2] under write-out
    fiber_assert_equal(syscall(SYS_CACHESTAT, h->fd, range, stat, 0), 0);
    return stat[1] + stat[2];
}

static void write_out_fiber(Fiber *self, void *arg)
{
    enum { MAX_TRIES = 2000 };
    HostFile *h = create_cached(self);
    if (!h)
        return;
    for (unsigned i = 0; i < MAX_TRIES && dirty_pages(h); i++) {
        file_write_out(&h->file);
        fiber_sleep(self, 5000000);
    }
    fiber_assert_equal(dirty_pages(h), 0);
    file_close(self, &h->file);
}

static void what_is_written_out_needs_no_flush_to_leave(void **state)
{
    run_in_fiber(write_out_fiber, NULL);
}

typedef struct Closing {
    HostFile *h;
    bool is_closed;
} Closing;

static void closes(Fiber *self, void *arg)
{
    Closing *c = arg;
    file_close(self, &c->h->file);
    c->is_closed = true;
}

// As if the job took its time, which nobody can make it do.
static void close_writing_out_fiber(Fiber *self, void *arg)
{
    enum { LONG_NS = 20000000 };
    HostFile *h = create(self);
    Closing c = {.h = h};
    fiber_assert_equal(unlink(path), 0);
    h->is_writing_out = true;
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "closes", closes, &c, NULL), 0);
    fiber_sleep(self, LONG_NS);
    fiber_assert(!c.is_closed);
    h->is_writing_out = false;
    fiber_queue_wake_all(&h->job_ended);
    while (!c.is_closed)
        fiber_sleep(self, 1000);
}

static void a_file_is_closed_once_it_is_written_out(void **state)
{
    run_in_fiber(close_writing_out_fiber, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_cached_is_copied_by_the_write_job),
        cmocka_unit_test(what_has_left_the_cache_meanwhile_is_not_copied),
        cmocka_unit_test(what_is_written_out_needs_no_flush_to_leave),
        cmocka_unit_test(a_file_is_closed_once_it_is_written_out),
        cmocka_unit_test(a_file_is_closed_while_a_write_job_without_writes_waits_for_its_place),
        cmocka_unit_test(writes_of_later_turns_join_the_job_under_way),
        cmocka_unit_test(reads_that_block_take_a_part_of_the_kernels_workers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
