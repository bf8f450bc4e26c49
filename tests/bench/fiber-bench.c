// SPDX-License-Identifier: LGPL-2.1-or-later
// What the loop itself costs: spawn, switch, a cached read against a bare pread(), a turn of a
// server (receive requests, send replies) against bare recv() and send(). Not a test: prints a
// table. Arguments: files to read (default: one on /dev/shm, one in the current directory).
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/file.h"
#include "chain-core/stream.h"

enum {
    N_SWITCHES = 2000000,
    N_READS = 500000,
    N_TURNS = 30000,
    N_WRITES = 100000,
    WINDOW = 16,
    BLOCK = 4096,
    FILE_BLOCKS = 4096,
    REQUEST = 16 * 28,
    REPLY = 16 * (BLOCK + 16),
};

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t thread_ns(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void report(const char *what, uint64_t ns, uint64_t n)
{
    printf("%-64s %8.1f ns\n", what, (double)ns / (double)n);
}

static void check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-result));
        exit(1);
    }
}

// --- fibers --------------------------------------------------------------------------------------

static void does_nothing(Fiber *self, void *arg)
{
    ++*(unsigned *)arg;
}

static void yields(Fiber *self, void *arg)
{
    for (int i = 0; i < N_SWITCHES / 2; i++)
        fiber_yield(self);
}

static void bench_fibers(Fiber *self)
{
    unsigned n = 0;
    uint64_t before = thread_ns();
    for (int i = 0; i < N_SWITCHES; i++)
        check(fiber_spawn(fiber_loop(self), "nothing", does_nothing, &n, NULL), "spawn");
    report("spawn, run and end of a fiber", thread_ns() - before, n);

    check(fiber_spawn(fiber_loop(self), "yields", yields, NULL, NULL), "spawn");
    before = thread_ns();
    for (int i = 0; i < N_SWITCHES / 2; i++)
        fiber_yield(self);
    report("fiber_yield(): through the loop to another fiber", thread_ns() - before, N_SWITCHES);
}

// --- files ---------------------------------------------------------------------------------------

typedef struct Writer {
    File *file;
    unsigned *n_left;
    unsigned seed;
    FiberWaitGroup *group;
} Writer;

static uint8_t block[BLOCK] __attribute__((aligned(BLOCK)));

static uint64_t some_offset(unsigned *seed)
{
    *seed = *seed * 1103515245u + 12345u;
    return (uint64_t)((*seed >> 8) % FILE_BLOCKS) * BLOCK;
}

static void writes(Fiber *self, void *arg)
{
    Writer *w = arg;
    while (*w->n_left) {
        --*w->n_left;
        check(file_write(self, w->file, host_off(some_offset(&w->seed)), block, BLOCK), "write");
    }
    fiber_wait_group_done(w->group);
}

static uint64_t process_ns(void)
{
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static void bench_writes(Fiber *self, const char *path, File *file, int fd)
{
    char text[128];
    unsigned seed = 1;
    uint64_t before = thread_ns();
    for (int i = 0; i < N_WRITES; i++)
        if (pwrite(fd, block, BLOCK, (off_t)some_offset(&seed)) != BLOCK)
            check(-errno, path);
    snprintf(text, sizeof(text), "%s: bare pwrite(), 4 KiB", path);
    report(text, thread_ns() - before, N_WRITES);

    Writer writers[WINDOW];
    FiberWaitGroup group = {0};
    unsigned n_left = N_WRITES;
    fiber_wait_group_add(&group, WINDOW);
    before = process_ns();
    uint64_t wall = clock_ns(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < WINDOW; i++) {
        writers[i] = (Writer){file, &n_left, i, &group};
        check(fiber_spawn(fiber_loop(self), "writes", writes, &writers[i], NULL), "spawn");
    }
    fiber_wait_group_wait(self, &group);
    snprintf(text, sizeof(text), "%s: file_write(), 4 KiB, 16 in flight, CPU", path);
    report(text, process_ns() - before, N_WRITES);
    snprintf(text, sizeof(text), "%s: the same, elapsed", path);
    report(text, clock_ns(CLOCK_MONOTONIC) - wall, N_WRITES);
}

static void bench_file(Fiber *self, const char *path)
{
    GError *error = NULL;
    File *file;
    char text[128];
    unlink(path);
    if (file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, &error) < 0) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    memset(block, 7, sizeof(block));
    for (uint64_t i = 0; i < FILE_BLOCKS; i++)
        check(file_write(self, file, host_off(i * BLOCK), block, BLOCK), path);

    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned seed = 1;
    uint64_t before = thread_ns();
    for (int i = 0; i < N_READS; i++)
        if (pread(fd, block, BLOCK, (off_t)some_offset(&seed)) != BLOCK)
            check(-errno, path);
    snprintf(text, sizeof(text), "%s: bare pread(), cached 4 KiB", path);
    report(text, thread_ns() - before, N_READS);

    before = thread_ns();
    for (int i = 0; i < N_READS; i++)
        check(file_read(self, file, host_off(some_offset(&seed)), block, BLOCK), path);
    snprintf(text, sizeof(text), "%s: file_read(), cached 4 KiB", path);
    report(text, thread_ns() - before, N_READS);

    bench_writes(self, path, file, fd);
    close(fd);
    file_close(self, file);
    unlink(path);
}

// --- sockets -------------------------------------------------------------------------------------

static uint8_t reply[REPLY], client_buffer[REPLY];

static void *client(void *arg)
{
    int fd = *(int *)arg;
    for (int i = 0; i < 2 * N_TURNS; i++) {
        if (send(fd, client_buffer, REQUEST, 0) != REQUEST ||
            recv(fd, client_buffer, REPLY, MSG_WAITALL) != REPLY)
            check(-EIO, "client");
    }
    return NULL;
}

static void bench_sockets(Fiber *self)
{
    int fds[2];
    uint8_t request[8192];
    pthread_t thread;
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "socketpair");
    check(-pthread_create(&thread, NULL, client, &fds[0]), "thread");

    uint64_t before = thread_ns(), wall = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < N_TURNS; i++)
        if (recv(fds[1], request, sizeof(request), 0) != REQUEST ||
            send(fds[1], reply, REPLY, 0) != REPLY)
            check(-EIO, "server");
    report("a turn of a blocking server: recv(), send() of 64 KiB, CPU", thread_ns() - before,
           N_TURNS);
    report("the same, elapsed", clock_ns(CLOCK_MONOTONIC) - wall, N_TURNS);

    Stream *stream = stream_new_fd(fiber_loop(self), fds[1]);
    before = thread_ns();
    wall = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < N_TURNS; i++) {
        struct iovec iov = {reply, REPLY};
        check(stream_recv_all(self, stream, request, REQUEST), "server");
        check(stream_send(self, stream, &iov, 1), "server");
    }
    report("a turn of a server on streams, CPU", thread_ns() - before, N_TURNS);
    report("the same, elapsed", clock_ns(CLOCK_MONOTONIC) - wall, N_TURNS);
    pthread_join(thread, NULL);
    stream_free(stream);
    close(fds[0]);
}

static void bench(Fiber *self, void *arg)
{
    const char *const *paths = arg;
    bench_fibers(self);
    bench_sockets(self);
    for (; *paths; paths++)
        bench_file(self, *paths);
    loop_stop(fiber_loop(self));
}

int main(int argc, char **argv)
{
    static const char *const default_paths[] = {"/dev/shm/fiber-bench", "fiber-bench.tmp", NULL};
    GError *error = NULL;
    Loop *loop = loop_new(NULL, &error);
    if (!loop) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    check(fiber_spawn(loop, "bench", bench, argc > 1 ? (void *)(argv + 1) : (void *)default_paths,
                      NULL),
          "spawn");
    loop_run(loop);
    loop_free(loop);
    return 0;
}
