// SPDX-License-Identifier: LGPL-2.1-or-later
// The io_uring back end. One io_uring_enter a turn hands over all that the turn's fibers submitted
// and waits for completions, which are then reaped together. Messages from other threads end the
// wait through an eventfd, whose read is itself an operation of the ring. Before a wait that is
// likely to be short the loop polls for events itself (busy-poll.h). Loop thread, except
// notify().
#include "host/host-loop.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "loop/valgrind-hints.h"

enum { MAX_WORKERS_DEFAULT = 16 };

static void event_came(LoopOp *op, int result)
{
    HostLoop *host = (HostLoop *)((char *)op - offsetof(HostLoop, event_op));
    host->is_event_armed = false;
}

static void arm_event(HostLoop *host)
{
    host->event_op.done = event_came;
    struct io_uring_sqe *sqe = host_ring_get_sqe(&host->ring, &host->event_op);
    io_uring_prep_read(sqe, host->event_fd, &host->event_value, sizeof(host->event_value), 0);
    host->is_event_armed = true;
}

static uint64_t host_now(Loop *loop)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// --- the kernel's timer ---

static void alarm_came(LoopOp *op, int result)
{
    HostLoop *host = (HostLoop *)((char *)op - offsetof(HostLoop, alarm_op));
    host->alarm_ns = UINT64_MAX;
}

// Arming a timer of the kernel is expensive, above all in a virtual machine. It is left armed when
// the timer of the loop that it was for is stopped: where timers are started and stopped all the
// time, it comes once for many of them, with nothing to do. Relative times: absolute ones are those
// of the host, which a time namespace has others than.
static void set_alarm(HostLoop *host, uint64_t deadline_ns)
{
    if (deadline_ns >= host->alarm_ns)
        return;
    bool is_armed = host->alarm_ns != UINT64_MAX;
    uint64_t now = host_now(&host->io.loop), ns = deadline_ns > now ? deadline_ns - now : 0;
    host->alarm_ns = deadline_ns;
    host->alarm_time.tv_sec = (int64_t)(ns / 1000000000u);
    host->alarm_time.tv_nsec = (long long)(ns % 1000000000u);
    struct io_uring_sqe *sqe = host_ring_get_sqe(&host->ring, is_armed ? NULL : &host->alarm_op);
    if (is_armed) { // if it has just come, this fails, and alarm_came() is about to run
        io_uring_prep_timeout_update(sqe, &host->alarm_time, (uint64_t)(uintptr_t)&host->alarm_op,
                                     0);
        sqe->flags |= IOSQE_CQE_SKIP_SUCCESS; // it would end the wait
    } else {
        io_uring_prep_timeout(sqe, &host->alarm_time, 0, 0);
    }
}

// valgrind (3.19) keeps all other threads stopped during io_uring_enter, so there the wait is a
// poll() of the ring, which it knows to block.
static void wait_by_poll(HostLoop *host, uint64_t deadline_ns)
{
    struct pollfd p = {.fd = host->ring.uring.ring_fd, .events = POLLIN};
    uint64_t now = host->io.loop.now_ns;
    int ms = deadline_ns == UINT64_MAX ? -1 : (int)MIN((deadline_ns - now) / 1000000 + 1, 1000);
    io_uring_submit(&host->ring.uring);
    poll(&p, 1, ms);
    io_uring_get_events(&host->ring.uring);
}

// --- busy polling ---

// A completion, one that the kernel has put off until the ring is entered, or a message.
static inline bool has_event(HostLoop *host)
{
    unsigned flags = IO_URING_READ_ONCE(*host->ring.uring.sq.kflags);
    return flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW) ||
           io_uring_cq_ready(&host->ring.uring) ||
           atomic_load_explicit(&host->io.loop.inbox, memory_order_relaxed);
}

// Reads memory that the kernel writes: while it goes on, neither side makes a system call. Returns
// when an event came, or 0.
static uint64_t poll_events(HostLoop *host, uint64_t start_ns, uint64_t end_ns)
{
    enum { LOOKS_PER_CLOCK = 8 };
    bool has_come = false;
    uint64_t now = start_ns;
    while (!has_come && now < end_ns) {
        for (unsigned i = 0; i < LOOKS_PER_CLOCK && !(has_come = has_event(host)); i++)
            host_loop_relax();
        now = host_now(&host->io.loop);
    }
    return has_come ? now : 0;
}

static void hand_over(HostLoop *host)
{
    host_file_dispatch_writes(host);
    if (!host->is_event_armed)
        arm_event(host);
}

// From "0.20 0.18 0.12 3/80 11206": 3 threads of the machine, this one included.
static void count_runnable(HostLoop *host)
{
    char text[128];
    unsigned n_runnable;
    ssize_t n = host->load_fd < 0 ? 0 : pread(host->load_fd, text, sizeof text - 1, 0);
    if (n <= 0)
        return;
    text[n] = 0;
    if (sscanf(text, "%*s %*s %*s %u/", &n_runnable) == 1)
        busy_poll_count(&host->busy_poll, n_runnable, host->n_processors);
}

static bool host_busy_poll(Loop *loop, uint64_t deadline_ns)
{
    HostLoop *host = (HostLoop *)loop;
    if (busy_poll_shall_count(&host->busy_poll, loop->now_ns))
        count_runnable(host);
    if (deadline_ns <= loop->now_ns || !busy_poll_measures(&host->busy_poll))
        return false;
    hand_over(host);
    io_uring_submit(&host->ring.uring);
    if (io_uring_cq_ready(&host->ring.uring)) // sends, usually: the loop was not idle
        return true;
    uint64_t start = host_now(loop), came = 0;
    if (busy_poll_pays(&host->busy_poll))
        came = poll_events(host, start, MIN(deadline_ns, start + host->busy_poll.max_ns));
    if (came)
        busy_poll_learn(&host->busy_poll, came - start);
    else
        host->idle_since_ns = start;
    return came;
}

static void host_wait(Loop *loop, uint64_t deadline_ns)
{
    HostLoop *host = (HostLoop *)loop;
    struct io_uring *ring = &host->ring.uring;
    hand_over(host);
    if (deadline_ns <= loop->now_ns) {
        io_uring_submit_and_get_events(ring);
    } else if (RUNNING_ON_VALGRIND) {
        wait_by_poll(host, deadline_ns);
    } else {
        set_alarm(host, deadline_ns);
        io_uring_submit_and_wait(ring, 1);
    }
    if (host->idle_since_ns) {
        busy_poll_learn(&host->busy_poll, host_now(loop) - host->idle_since_ns);
        host->idle_since_ns = 0;
    }
    // A failure is EINTR or a full completion queue: reaping is the answer to each.
    host_ring_reap(&host->ring);
}

static void host_notify(Loop *loop)
{
    HostLoop *host = (HostLoop *)loop;
    uint64_t one = 1;
    ssize_t n = write(host->event_fd, &one, sizeof(one));
    assert(n == sizeof(one) || errno == EAGAIN);
}

typedef struct Work {
    WorkerJob job;
    LoopWorkFn *fn;
    void *arg;
    int result;
    bool is_done;
    Fiber *fiber;
} Work;

static void work_run(WorkerJob *job)
{
    Work *w = (Work *)job;
    w->result = w->fn(w->arg);
}

static void work_done(LoopCall *call)
{
    Work *w = (Work *)call;
    w->is_done = true;
    fiber_wake(w->fiber);
}

static int host_work(Fiber *self, LoopWorkFn *fn, void *arg)
{
    HostLoop *host = (HostLoop *)fiber_loop(self);
    Work w = {.job.call.fn = work_done, .job.run = work_run, .fn = fn, .arg = arg, .fiber = self};
    int r = worker_pool_submit(host->pool, &w.job);
    if (r < 0)
        return r;
    while (!w.is_done)
        fiber_suspend(self, "worker");
    return w.result;
}

// Many short turns on the processor rather than few long ones: a busy loop gets it back sooner from
// others that want it as well, a client's threads above all. Takes nothing from anybody's share,
// needs no privilege, and kernels before 6.12 do nothing about it. Best effort.
static void ask_for_short_slices(void)
{
    struct { // sched_setattr(2), SCHED_ATTR_SIZE_VER0
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    } attr = {.size = 48, .runtime_ns = 100000}; // the shortest that the kernel grants
    _Static_assert(sizeof attr == 48, "no padding");
    if (sched_getscheduler(0) != SCHED_OTHER)
        return;
    attr.nice = getpriority(PRIO_PROCESS, 0); // of this thread, and it stays what it is
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

static void host_start(Loop *loop)
{
    HostLoop *host = (HostLoop *)loop;
    ask_for_short_slices();
    host_ring_enable(&host->ring);
}

static void host_free(Loop *loop)
{
    HostLoop *host = (HostLoop *)loop;
    worker_pool_free(host->pool);
    assert(!host->devices);
    host_ring_done(&host->ring);
    fixed_buffers_done(&host->fixed_buffers);
    close(host->event_fd);
    if (host->load_fd >= 0)
        close(host->load_fd);
    io_loop_done(&host->io);
    g_free(host);
}

static const LoopBackend loop_backend = {
    .name = "io_uring",
    .busy_poll = host_busy_poll,
    .wait = host_wait,
    .now = host_now,
    .notify = host_notify,
    .work = host_work,
    .start = host_start,
    .free = host_free,
};

static const IoBackend io_backend = {
    .file_open = host_file_open,
    .file_rename = host_file_rename,
    .file_unlink = host_file_unlink,
    .file_sync_dir = host_file_sync_dir,
};

// The soft limit is small for programs that use select(); many layers and clients need what the
// hard limit allows.
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

Loop *loop_new(const LoopConfig *config, GError **error)
{
    HostLoop *host = g_new0(HostLoop, 1);
    raise_file_limit();
    io_loop_init(&host->io, &loop_backend, &io_backend, config);
    host->max_workers = config && config->max_workers ? config->max_workers : MAX_WORKERS_DEFAULT;
    host->busy_poll.max_ns = config && !RUNNING_ON_VALGRIND ? config->busy_poll_ns : 0;

    int r = host_ring_init(&host->ring, error);
    if (r < 0)
        goto no_ring;
    host->event_fd = eventfd(0, EFD_CLOEXEC);
    if (host->event_fd < 0) {
        r = -errno;
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "cannot create an eventfd: %s", g_strerror(-r));
        goto no_event_fd;
    }
    host->alarm_op.done = alarm_came;
    host->alarm_ns = UINT64_MAX;
    host->io.loop.now_ns = host_now(&host->io.loop);
    host->pool = worker_pool_new(&host->io.loop, host->max_workers);
    host->load_fd = host->busy_poll.max_ns ? open("/proc/loadavg", O_RDONLY | O_CLOEXEC) : -1;
    host->n_processors = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    return &host->io.loop;

no_event_fd:
    host_ring_done(&host->ring);
no_ring:
    io_loop_done(&host->io);
    g_free(host);
    return NULL;
}
