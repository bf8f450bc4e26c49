// SPDX-License-Identifier: LGPL-2.1-or-later
// How host files use workers and the ring: what happens when their device has no free place.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_closed_while_a_write_job_without_writes_waits_for_its_place),
        cmocka_unit_test(writes_of_later_turns_join_the_job_under_way),
        cmocka_unit_test(reads_that_block_take_a_part_of_the_kernels_workers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
