// SPDX-License-Identifier: LGPL-2.1-or-later
// Small direct reads go through registered memory while there is some, else through the
// caller's: the bytes are the same. The file lies in the current directory.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/file.h"
#include "host/host-file.h"

enum { BLOCK = 4096, N_BLOCKS = 2 * FIXED_BUFFERS };

static File *create(Fiber *self)
{
    static const char path[] = "chaind-test-fixed-buffers.tmp";
    File *file;
    GError *error = NULL;
    unlink(path);
    if (file_open(self, path, FILE_WRITABLE | FILE_CREATE | FILE_DIRECT, &file, &error) < 0)
        g_error("%s", error->message);
    return file;
}

static void destroy(Fiber *self, File *file)
{
    fiber_assert_equal(unlink(file_path(file)), 0);
    file_close(self, file);
}

static FixedBuffers *buffers_of(Fiber *self)
{
    return &((HostLoop *)fiber_loop(self))->fixed_buffers;
}

// All blocks at once, each with bytes of its own, there and back.
static void transfer_all(Fiber *self, File *file)
{
    uint8_t *out = g_aligned_alloc(N_BLOCKS, BLOCK, BLOCK);
    uint8_t *in = g_aligned_alloc0(N_BLOCKS, BLOCK, BLOCK);
    IoBatch batch;
    for (size_t i = 0; i < (size_t)N_BLOCKS * BLOCK; i++)
        out[i] = (uint8_t)(i / BLOCK * 7 + i);
    io_batch_init(&batch, self);
    for (size_t i = 0; i < N_BLOCKS; i++) {
        struct iovec iov = {out + i * BLOCK, BLOCK};
        file_write_start(file, host_off(i * BLOCK), &iov, 1, &batch);
    }
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    io_batch_init(&batch, self);
    for (size_t i = 0; i < N_BLOCKS; i++)
        file_read_start(file, host_off(i * BLOCK), in + i * BLOCK, BLOCK, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert(!memcmp(in, out, (size_t)N_BLOCKS * BLOCK));
    g_aligned_free(in);
    g_aligned_free(out);
}

FIBER_TEST(more_direct_reads_than_registered_buffers)
{
    File *file = create(self);
    transfer_all(self, file);
    if (file_alignment(file) > 1) {
        fiber_assert(buffers_of(self)->memory);
        fiber_assert_equal(buffers_of(self)->n_free, FIXED_BUFFERS);
    }
    destroy(self, file);
}

FIBER_TEST(direct_reads_go_on_when_the_kernel_registers_nothing)
{
    static uint8_t other[BLOCK] __attribute__((aligned(BLOCK)));
    struct iovec iov = {other, sizeof(other)};
    HostLoop *host = (HostLoop *)fiber_loop(self);
    fiber_assert_equal(io_uring_register_buffers(&host->ring.uring, &iov, 1),
                       0); // one set is all it has
    File *file = create(self);
    transfer_all(self, file);
    fiber_assert(!buffers_of(self)->memory);
    fiber_assert(buffers_of(self)->is_refused == (file_alignment(file) > 1));
    destroy(self, file);
}

FIBER_TEST(a_failed_direct_read_gives_its_registered_buffer_back)
{
    uint8_t *block = g_aligned_alloc0(1, BLOCK, BLOCK);
    File *file = create(self);
    fiber_assert_equal(file_write(self, file, host_off(0), block, BLOCK), 0);
    int fd = open(file_path(file), O_WRONLY | O_CLOEXEC);
    int own_fd = ((HostFile *)file)->fd;
    fiber_assert_equal(dup3(fd, own_fd, O_CLOEXEC), own_fd); // cannot be read any more
    fiber_assert_equal(file_read(self, file, host_off(0), block, BLOCK), -EBADF);
    if (buffers_of(self)->memory)
        fiber_assert_equal(buffers_of(self)->n_free, FIXED_BUFFERS);
    close(fd);
    g_aligned_free(block);
    destroy(self, file);
}

FIBER_TEST(a_direct_read_through_a_registered_buffer_ends_in_zeros)
{
    uint8_t *block = g_aligned_alloc0(1, BLOCK, BLOCK);
    File *file = create(self);
    memset(block, 7, BLOCK);
    fiber_assert_equal(file_write(self, file, host_off(0), block, 1000), 0);
    fiber_assert_equal(file_read(self, file, host_off(0), block, BLOCK), 0);
    for (size_t i = 0; i < BLOCK; i++)
        fiber_assert_equal(block[i], i < 1000 ? 7 : 0);
    g_aligned_free(block);
    destroy(self, file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_direct_reads_than_registered_buffers),
        cmocka_unit_test(direct_reads_go_on_when_the_kernel_registers_nothing),
        cmocka_unit_test(a_failed_direct_read_gives_its_registered_buffer_back),
        cmocka_unit_test(a_direct_read_through_a_registered_buffer_ends_in_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
