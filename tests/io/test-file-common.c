// SPDX-License-Identifier: LGPL-2.1-or-later
// What file.c does above a back end, on an injected one: flushes are shared only with callers they
// cover, a failure sticks, short and failing transfers, zeroing without help.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <string.h>

#include "io/file-private.h"
#include "io/io-loop.h"

typedef struct FakeFile {
    File file;
    // Flushes.
    unsigned n_flushes;
    bool may_flush_end;
    int flush_result;
    Fiber *flusher;
    // Transfers: each moves at most `max_bytes`; after `n_good` of them comes `result`.
    uint8_t data[4096];
    size_t max_bytes;
    int n_good, result;
    unsigned n_submits;
} FakeFile;

static int fake_flush(Fiber *self, File *file)
{
    FakeFile *f = (FakeFile *)file;
    f->n_flushes++;
    f->flusher = self;
    while (!f->may_flush_end)
        fiber_suspend(self, "fake flush");
    f->may_flush_end = false;
    return f->flush_result;
}

static ssize_t fake_try_read(File *file, uint64_t off, void *buf, size_t len)
{
    return -EAGAIN;
}

static ssize_t fake_try_write(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    return -EAGAIN;
}

static void fake_submit(FileTransfer *x)
{
    FakeFile *f = (FakeFile *)x->file;
    struct iovec *iov = &x->iov[x->first_iov];
    f->n_submits++;
    if (f->n_good-- <= 0 && f->result) {
        file_transfer_done(x, f->result);
        return;
    }
    uint64_t end = x->is_write ? sizeof(f->data) : f->file.size;
    size_t room = x->off < end ? end - x->off : 0;
    size_t n = MIN(MIN(iov->iov_len, f->max_bytes), room);
    if (x->is_write)
        memcpy(f->data + x->off, iov->iov_base, n);
    else
        memcpy(iov->iov_base, f->data + x->off, n);
    file_transfer_done(x, (ssize_t)n);
}

static int fake_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    return -ENOTSUP;
}

static const FileOps fake_ops = {
    .try_read = fake_try_read,
    .try_write = fake_try_write,
    .submit = fake_submit,
    .flush = fake_flush,
    .zero = fake_zero,
};

static void fake_init(Fiber *self, FakeFile *f)
{
    memset(f, 0, sizeof(*f));
    f->max_bytes = SIZE_MAX;
    f->n_good = INT_MAX;
    file_init(&f->file, &fake_ops, fiber_loop(self), "fake", FILE_WRITABLE);
}

typedef struct Flush {
    FakeFile *fake;
    bool is_done;
    int result;
} Flush;

static void flushes(Fiber *self, void *arg)
{
    Flush *f = arg;
    f->result = file_flush(self, &f->fake->file);
    f->is_done = true;
}

static void start_flush(Fiber *self, Flush *f, FakeFile *fake)
{
    *f = (Flush){.fake = fake};
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "flush", flushes, f, NULL), 0);
}

static void end_flush(Fiber *self, FakeFile *fake, int result)
{
    fake->may_flush_end = true;
    fake->flush_result = result;
    fiber_wake(fake->flusher);
    for (int i = 0; i < 8; i++)
        fiber_yield(self);
}

FIBER_TEST(who_comes_during_a_flush_waits_for_the_next_one_and_shares_it)
{
    FakeFile fake;
    Flush f[4];
    fake_init(self, &fake);
    for (int i = 0; i < 4; i++)
        start_flush(self, &f[i], &fake);
    fiber_assert_equal(fake.n_flushes, 1);
    end_flush(self, &fake, 0);
    fiber_assert(f[0].is_done && !f[1].is_done && !f[2].is_done && !f[3].is_done);
    fiber_assert_equal(fake.n_flushes, 2);
    end_flush(self, &fake, 0);
    fiber_assert(f[1].is_done && f[2].is_done && f[3].is_done);
    fiber_assert_equal(fake.n_flushes, 2);
    for (int i = 0; i < 4; i++)
        fiber_assert_equal(f[i].result, 0);
    file_done(&fake.file);
}

FIBER_TEST(a_failed_flush_fails_all_that_wait_and_all_later_ones)
{
    FakeFile fake;
    Flush f[3];
    fake_init(self, &fake);
    for (int i = 0; i < 3; i++)
        start_flush(self, &f[i], &fake);
    fiber_assert(!file_flush_failed(&fake.file));
    end_flush(self, &fake, -ENOSPC);
    for (int i = 0; i < 3; i++)
        fiber_assert(f[i].is_done);
    fiber_assert_equal(f[0].result, -ENOSPC);
    fiber_assert_equal(f[1].result, -EIO);
    fiber_assert_equal(f[2].result, -EIO);
    fiber_assert(file_flush_failed(&fake.file));
    fiber_assert_equal(file_flush(self, &fake.file), -EIO);
    fiber_assert_equal(fake.n_flushes, 1); // the host is not asked again: it would say yes
    file_done(&fake.file);
}

FIBER_TEST(short_transfers_are_continued)
{
    FakeFile fake;
    char text[] = "the quick brown fox", back[sizeof(text)];
    fake_init(self, &fake);
    fake.max_bytes = 3;
    struct iovec iov[3] = {{text, 4}, {text + 4, 0}, {text + 4, sizeof(text) - 4}};
    IoBatch batch;
    io_batch_init(&batch, self);
    file_write_start(&fake.file, host_off(10), iov, 3, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert_equal(fake.n_submits, 8);
    fiber_assert_equal(file_size(&fake.file), 10 + sizeof(text));
    fiber_assert_equal(file_read(self, &fake.file, host_off(10), back, sizeof(back)), 0);
    fiber_assert(!memcmp(text, back, sizeof(text)));
    file_done(&fake.file);
}

FIBER_TEST(an_error_halfway_is_the_result_and_an_interruption_is_not)
{
    FakeFile fake;
    char buf[100] = "x";
    fake_init(self, &fake);
    fake.max_bytes = 10;
    fake.n_good = 2;
    fake.result = -ENOSPC;
    fiber_assert_equal(file_write(self, &fake.file, host_off(0), buf, 100), -ENOSPC);
    fiber_assert_equal(file_size(&fake.file), 20); // what did land
    fake.max_bytes = 0;
    fake.n_good = 1;
    fiber_assert_equal(file_write(self, &fake.file, host_off(0), buf, 100), -EIO); // no progress
    fake.max_bytes = 10;
    fake.n_good = 0;
    fake.result = -EIO;
    fiber_assert_equal(file_read(self, &fake.file, host_off(0), buf, 10), -EIO);
    file_done(&fake.file);
}

FIBER_TEST(a_host_that_says_try_again_for_ever_is_an_error)
{
    FakeFile fake;
    char buf[100] = "x";
    fake_init(self, &fake);
    fake.file.size = 100;
    fake.n_good = 0;
    fake.result = -EAGAIN;
    fiber_assert_equal(file_read(self, &fake.file, host_off(0), buf, 100), -EIO);
    fiber_assert_equal(file_write(self, &fake.file, host_off(0), buf, 100), -EIO);
    file_done(&fake.file);
}

FIBER_TEST(memory_of_a_burst_of_transfers_is_given_back)
{
    enum { N = 10000, KEPT = 4096 };
    static char byte[1];
    FakeFile fake;
    IoBatch batch;
    FileTransfer **x = g_new(FileTransfer *, N);
    fake_init(self, &fake);
    io_batch_init(&batch, self);
    struct iovec iov = {byte, 1};
    for (int i = 0; i < N; i++)
        x[i] = file_transfer_new(&fake.file, true, 0, &iov, 1, &batch);
    for (int i = 0; i < N; i++)
        file_transfer_done(x[i], 1);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert_equal(io_loop_of(fiber_loop(self))->n_free_transfers, KEPT);
    g_free(x);
    file_done(&fake.file);
}

FIBER_TEST(a_shrunken_file_reads_as_zeros)
{
    FakeFile fake;
    char buf[20];
    fake_init(self, &fake);
    memset(fake.data, 'x', sizeof(fake.data));
    memset(buf, 'y', sizeof(buf));
    fake.file.size = 5;
    fiber_assert_equal(file_read(self, &fake.file, host_off(0), buf, 20), 0);
    fiber_assert(!memcmp(buf, "xxxxx\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20));
    file_done(&fake.file);
}

FIBER_TEST(zeros_are_written_where_there_is_no_faster_way_unless_it_must_be_fast)
{
    FakeFile fake;
    fake_init(self, &fake);
    memset(fake.data, 'x', sizeof(fake.data));
    fiber_assert_equal(file_zero(self, &fake.file, host_off(100), 50, FILE_ZERO_FAST), -ENOTSUP);
    fiber_assert(fake.data[100] == 'x');
    fiber_assert_equal(file_zero(self, &fake.file, host_off(100), 50, 0), 0);
    fiber_assert(fake.data[99] == 'x' && fake.data[150] == 'x');
    for (int i = 100; i < 150; i++)
        fiber_assert_equal(fake.data[i], 0);
    fiber_assert_equal(file_zero(self, &fake.file, host_off(UINT64_MAX - 5), 50, 0), -EFBIG);
    file_done(&fake.file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_comes_during_a_flush_waits_for_the_next_one_and_shares_it),
        cmocka_unit_test(a_failed_flush_fails_all_that_wait_and_all_later_ones),
        cmocka_unit_test(short_transfers_are_continued),
        cmocka_unit_test(an_error_halfway_is_the_result_and_an_interruption_is_not),
        cmocka_unit_test(a_host_that_says_try_again_for_ever_is_an_error),
        cmocka_unit_test(memory_of_a_burst_of_transfers_is_given_back),
        cmocka_unit_test(a_shrunken_file_reads_as_zeros),
        cmocka_unit_test(zeros_are_written_where_there_is_no_faster_way_unless_it_must_be_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
