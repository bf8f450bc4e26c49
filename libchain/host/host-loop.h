// SPDX-License-Identifier: LGPL-2.1-or-later
// The loop's back end on a real machine: one io_uring, an eventfd that ends its wait, a pool of
// workers. What host files and host streams need of it. Loop thread.
#pragma once

#include "host/busy-poll.h"
#include "host/fixed-buffers.h"
#include "host/host-ring.h"
#include "host/worker-pool.h"
#include "io/io-loop.h"

typedef struct HostLoop HostLoop;
typedef struct HostDevice HostDevice;
typedef struct HostFile HostFile;

struct HostLoop {
    IoLoop io;
    HostRing ring;
    unsigned max_workers;
    WorkerPool *pool;
    int event_fd;
    bool is_event_armed;
    uint64_t event_value;
    LoopOp event_op;
    LoopOp alarm_op;
    uint64_t alarm_ns; // when the kernel's timer ends the wait; UINT64_MAX: it is not armed
    struct __kernel_timespec alarm_time;
    BusyPoll busy_poll;
    int load_fd; // /proc/loadavg, for busy_poll_count(); -1 without
    unsigned n_processors;
    uint64_t idle_since_ns; // while it sleeps and its idle time shall be learnt from
    HostDevice *devices;    // host-device.c
    HostFile *dirty_files;  // have writes to hand to a worker at the end of the turn
    FixedBuffers fixed_buffers;
};

// A moment of busy polling.
static inline void host_loop_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

// host-file.c
int host_file_open(Fiber *self, Loop *loop, const char *path, FileOpenFlags flags, File **ret_file,
                   GError **error);
void host_file_dispatch_writes(HostLoop *host);
// host-names.c
int host_file_rename(Fiber *self, const char *from, const char *to, GError **error);
int host_file_unlink(Fiber *self, const char *path, GError **error);
int host_file_sync_dir(Fiber *self, const char *path_in_dir, GError **error);
