// SPDX-License-Identifier: LGPL-2.1-or-later
// Setting a ring up as well as the kernel lets us, filling and reaping it. Loop thread.
#include "host/host-ring.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loop/valgrind-hints.h"

enum {
    SQ_ENTRIES = 256,
    CQ_ENTRIES = 4096,
    // Kernel threads for reads that must block. The default (four a processor) would let one hung
    // disk take them all.
    KERNEL_WORKERS = 64,
};

struct io_uring_sqe *host_ring_get_sqe(HostRing *ring, LoopOp *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    while (!sqe) {
        assert(ring->is_enabled);
        io_uring_submit(&ring->uring);
        sqe = io_uring_get_sqe(&ring->uring);
    }
    // Its address is the completion's user data; io_uring_prep_* (2.3) leaves that field alone.
    io_uring_sqe_set_data(sqe, op);
    return sqe;
}

void host_ring_cancel(HostRing *ring, LoopOp *op)
{
    struct io_uring_sqe *sqe = host_ring_get_sqe(ring, NULL);
    io_uring_prep_cancel(sqe, op, 0);
}

void host_ring_reap(HostRing *ring)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    io_uring_for_each_cqe(&ring->uring, head, cqe)
    {
        LoopOp *op = io_uring_cqe_get_data(cqe);
        n++;
        if (op)
            op->done(op, cqe->res);
    }
    io_uring_cq_advance(&ring->uring, n);
}

// The best set-up that the kernel accepts (6.1 has the first).
static int make_uring(struct io_uring *uring)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int r = 0;
    // A ring that is polled (host-loop.c) must complete on its own.
    for (size_t i = RUNNING_ON_VALGRIND ? 2 : 0; i < G_N_ELEMENTS(flags); i++) {
        struct io_uring_params params = {
            .flags = flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
            .cq_entries = CQ_ENTRIES,
        };
        r = io_uring_queue_init_params(SQ_ENTRIES, uring, &params);
        if (r != -EINVAL)
            break;
    }
    return r;
}

static void explain(int r, GError **error)
{
    int disabled = 0;
    FILE *f = fopen("/proc/sys/kernel/io_uring_disabled", "re");
    if (f) {
        if (fscanf(f, "%d", &disabled) != 1)
            disabled = 0;
        fclose(f);
    }
    if (disabled)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "cannot create an io_uring: %s; the sysctl kernel.io_uring_disabled is %d: "
                    "allow it with `sysctl kernel.io_uring_disabled=0`",
                    g_strerror(-r), disabled);
    else
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "cannot create an io_uring: %s; %s", g_strerror(-r),
                    r == -ENOMEM ? "raise RLIMIT_MEMLOCK (ulimit -l)"
                                 : "a Linux kernel of 6.1 or newer is needed, with the sysctl "
                                   "kernel.io_uring_disabled=0 and no seccomp filter against it");
}

int host_ring_init(HostRing *ring, GError **error)
{
    int r = make_uring(&ring->uring);
    if (r < 0) {
        explain(r, error);
        return r;
    }
    unsigned kernel_workers[2] = {KERNEL_WORKERS, 0}; // 0: leave the unbounded ones as they are
    io_uring_register_iowq_max_workers(&ring->uring, kernel_workers);
    return 0;
}

void host_ring_enable(HostRing *ring)
{
    // Whoever enables the ring is the one task that may submit. (liburing 2.3 declares
    // io_uring_enable_rings() without exporting it.)
    if (ring->uring.flags & IORING_SETUP_R_DISABLED)
        syscall(SYS_io_uring_register, ring->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    io_uring_register_ring_fd(&ring->uring); // only saves time
    ring->is_enabled = true;
}

void host_ring_done(HostRing *ring)
{
    io_uring_queue_exit(&ring->uring);
}
