// SPDX-License-Identifier: LGPL-2.1-or-later
// ring-bench's groups that concern files: random reads of 4 KiB, called or through the ring. CPU
// time is the process's: where the ring hands a read to a worker of the kernel, that belongs to it.
#include "ring-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BLOCK = 4096, FILE_BYTES = 64 * 1024 * 1024, DEPTH = 32 };

static uint8_t blocks[DEPTH + 1][BLOCK] __attribute__((aligned(BLOCK)));
static uint8_t copies[DEPTH][BLOCK];

static off_t some_offset(void)
{
    static unsigned seed = 1;
    seed = seed * 1103515245u + 12345u;
    return (off_t)((seed >> 8) % (FILE_BYTES / BLOCK)) * BLOCK;
}

static unsigned read_inline(const Variant *v, int fd)
{
    struct iovec iov = {blocks[0], BLOCK};
    ssize_t n = -1;
    if (v->flags & NOWAIT)
        n = preadv2(fd, &iov, 1, some_offset(), RWF_NOWAIT);
    if (n < 0) // not in the page cache any more
        n = pread(fd, blocks[0], BLOCK, some_offset());
    if (n != BLOCK)
        check(n < 0 ? -errno : -EIO, "read");
    return 1;
}

static unsigned read_batch(struct io_uring *ring, const Variant *v, int fd, unsigned *n_free,
                           unsigned free[static DEPTH])
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    while (*n_free) {
        unsigned slot = free[--*n_free];
        struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
        int file = v->flags & FIXED_FILES ? 0 : fd;
        uint64_t off = (uint64_t)some_offset();
        if (v->flags & FIXED_BUFFERS)
            io_uring_prep_read_fixed(sqe, file, blocks[slot], BLOCK, off, 0);
        else
            io_uring_prep_read(sqe, file, blocks[slot] + (v->flags & ACROSS ? 512 : 0), BLOCK, off);
        if (v->flags & FIXED_FILES)
            sqe->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(sqe, slot);
    }
    io_uring_submit_and_wait(ring, 1);
    io_uring_for_each_cqe(ring, head, cqe)
    {
        if (cqe->res != BLOCK)
            check(cqe->res < 0 ? cqe->res : -EIO, "read");
        if (v->flags & COPY)
            memcpy(copies[cqe->user_data], blocks[cqe->user_data], BLOCK);
        free[(*n_free)++] = (unsigned)cqe->user_data;
        n++;
    }
    io_uring_cq_advance(ring, n);
    return n;
}

static Sample run_reads(const Variant *v, const void *path)
{
    Sample sample;
    Meter meter;
    struct io_uring ring;
    unsigned n, n_free = v->depth, free[DEPTH];
    struct iovec iov = {blocks, sizeof(blocks)};
    int fd = check_errno(open(path, O_RDONLY | (v->flags & DIRECT ? O_DIRECT : 0)), path);
    ring_init(&ring, v->flags);
    if (v->flags & FIXED_FILES)
        check(io_uring_register_files(&ring, &fd, 1), "fixed files");
    if (v->flags & FIXED_BUFFERS)
        check(io_uring_register_buffers(&ring, &iov, 1), "registered buffers");
    for (unsigned i = 0; i < n_free; i++)
        free[i] = i;
    meter_start(&meter, CLOCK_PROCESS_CPUTIME_ID); // with the kernel's workers
    do {
        n = v->flags & NO_RING ? read_inline(v, fd) : read_batch(&ring, v, fd, &n_free, free);
    } while (!meter_add(&meter, n, &sample));
    io_uring_queue_exit(&ring);
    close(fd);
    return sample;
}

static void make_file(const char *path)
{
    int fd = check_errno(open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600), path);
    for (size_t i = 0; i < FILE_BYTES / BLOCK; i++)
        if (write(fd, blocks[0], BLOCK) != BLOCK)
            check(-EIO, path);
    check_errno(fsync(fd), path);
    close(fd);
}

static void bench_reads(const char *path, const char *title, const Variant *variants, unsigned n)
{
    make_file(path);
    printf("%s, 4 KiB\n", title);
    measure(variants, n, run_reads, path);
    unlink(path);
}

void bench_files(void)
{
    static const Variant memory[] = {
        {"pread()", NO_RING, 0},
        {"ring, 1 at a time", 0, 1},
        {"ring, 16 at a time", 0, 16},
        {"ring, 16 at a time, fixed file and buffers", FIXED_FILES | FIXED_BUFFERS, 16},
    };
    static const Variant cached[] = {
        {"preadv2(RWF_NOWAIT)", NO_RING | NOWAIT, 0},
        {"pread()", NO_RING, 0},
        {"ring, 1 at a time", 0, 1},
        {"ring, 4 at a time", 0, 4},
        {"ring, 16 at a time", 0, 16},
        {"ring, 1 at a time, fixed file and buffers", FIXED_FILES | FIXED_BUFFERS, 1},
        {"ring, 4 at a time, fixed file and buffers", FIXED_FILES | FIXED_BUFFERS, 4},
        {"ring, 16 at a time, fixed file", FIXED_FILES, 16},
        {"ring, 16 at a time, registered buffers", FIXED_BUFFERS, 16},
        {"ring, 16 at a time, fixed file and buffers", FIXED_FILES | FIXED_BUFFERS, 16},
    };
    static const Variant direct[] = {
        {"ring, 32 in flight", DIRECT, DEPTH},
        {"fixed file", DIRECT | FIXED_FILES, DEPTH},
        {"registered buffers", DIRECT | FIXED_BUFFERS, DEPTH},
        {"registered buffers, copied out of", DIRECT | FIXED_BUFFERS | COPY, DEPTH},
        {"fixed file and registered buffers", DIRECT | FIXED_FILES | FIXED_BUFFERS, DEPTH},
    };
    static const Variant across[] = {
        {"ring, 32 in flight", DIRECT | ACROSS, DEPTH},
        {"registered buffers, copied out of", DIRECT | FIXED_BUFFERS | COPY, DEPTH},
    };
    bench_reads("/dev/shm/ring-bench", "/dev/shm", memory, 4);
    bench_reads("ring-bench.tmp", "current directory, page cache", cached, 10);
    bench_reads("ring-bench.tmp", "current directory, O_DIRECT", direct, 5);
    bench_reads("ring-bench.tmp", "current directory, O_DIRECT, to where pages meet", across, 2);
}
