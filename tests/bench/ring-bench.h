// SPDX-License-Identifier: LGPL-2.1-or-later
// What the groups of ring-bench share: variants, and the meter of one run.
#pragma once

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

typedef enum Flags {
    POLL_FIRST = 1 << 0,
    MULTISHOT = 1 << 1,
    FIXED_FILES = 1 << 2,
    FIXED_BUFFERS = 1 << 3,
    SEND_CALL = 1 << 4, // send() before the ring is asked
    NO_RING = 1 << 5,
    WAIT_ALL = 1 << 6,
    COOP = 1 << 7, // ring without DEFER_TASKRUN
    NOWAIT = 1 << 8,
    DIRECT = 1 << 9,
    COPY = 1 << 10,   // from the registered buffer to where the data shall be
    ACROSS = 1 << 11, // blocks on two pages each
} Flags;

typedef struct Variant {
    const char *name;
    unsigned flags;
    unsigned depth; // files: operations in flight
} Variant;

typedef struct Sample {
    double cpu_ns, per_second, per_turn;
} Sample;

typedef struct Meter {
    clockid_t cpu_clock;
    uint64_t start_ns, cpu_ns, n_done, n_turns;
} Meter;

void meter_start(Meter *m, clockid_t cpu_clock);
// Counts what a turn did; true when the time is up, then with the result.
bool meter_add(Meter *m, uint64_t n, Sample *ret_sample);

// Runs each variant once a round, so that what else the machine does meets all alike, and prints.
void measure(const Variant *variants, unsigned n, Sample (*run)(const Variant *, const void *),
             const void *arg);

// Both end the program with a sentence when `result` is negative; else they return it.
int check(int result, const char *what); // negative errno
int check_errno(int result, const char *what);
void use_processor(size_t n); // unless the scheduler shall choose
void ring_init(struct io_uring *ring, unsigned flags);

void bench_requests(void); // ring-bench-sockets.c
void bench_payloads(void);
void bench_accept(void);
void bench_files(void); // ring-bench-files.c
