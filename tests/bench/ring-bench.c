// SPDX-License-Identifier: LGPL-2.1-or-later
// What each feature of io_uring is worth to a server like ours: ways to receive requests and send
// replies, to receive large payloads, to read files, to accept, each against the way the loop has
// it (first of its group). Not a test: prints for each the median CPU time per operation, and
// ratios to the first measured in the same round. No part of libchain takes part. Arguments: groups
// to measure (requests, payloads, files, accept; default all); --free leaves placing threads to the
// scheduler, where otherwise server and clients have a processor each.
#include "ring-bench.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_ROUNDS = 15,
    MAX_VARIANTS = 12,
    RUN_NS = 40 * 1000 * 1000,
    WARM_UP_NS = 5 * 1000 * 1000,
};

static bool threads_are_free;

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-result));
        exit(1);
    }
    return result;
}

int check_errno(int result, const char *what)
{
    return check(result < 0 ? -errno : result, what);
}

void use_processor(size_t n)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(n, &set);
    if (!threads_are_free)
        sched_setaffinity(0, sizeof(set), &set);
}

void ring_init(struct io_uring *ring, unsigned flags)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_TASKRUN_FLAG |
                 (flags & COOP ? IORING_SETUP_COOP_TASKRUN
                               : IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN),
        .cq_entries = 4096,
    };
    check(io_uring_queue_init_params(256, ring, &params), "io_uring");
    io_uring_register_ring_fd(ring);
}

// --- a run's time --------------------------------------------------------------------------------

void meter_start(Meter *m, clockid_t cpu_clock)
{
    *m = (Meter){.cpu_clock = cpu_clock, .start_ns = clock_ns(CLOCK_MONOTONIC)};
}

bool meter_add(Meter *m, uint64_t n, Sample *ret_sample)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    m->n_done += n;
    m->n_turns += n > 0;
    if (!m->cpu_ns && now - m->start_ns >= WARM_UP_NS)
        *m = (Meter){m->cpu_clock, now, clock_ns(m->cpu_clock), 0, 0};
    if (!m->cpu_ns || now - m->start_ns < RUN_NS || !m->n_done)
        return false;
    ret_sample->cpu_ns = (double)(clock_ns(m->cpu_clock) - m->cpu_ns) / (double)m->n_done;
    ret_sample->per_second = (double)m->n_done * 1e9 / (double)(now - m->start_ns);
    ret_sample->per_turn = (double)m->n_done / (double)m->n_turns;
    return true;
}

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(double v[static N_ROUNDS])
{
    qsort(v, N_ROUNDS, sizeof(*v), compare_doubles);
    return v[N_ROUNDS / 2];
}

static void report(const Variant *variants, unsigned n, Sample samples[][N_ROUNDS])
{
    for (unsigned i = 0; i < n; i++) {
        double cpu[N_ROUNDS], rate[N_ROUNDS], cpu_ratio[N_ROUNDS], rate_ratio[N_ROUNDS];
        double per_turn[N_ROUNDS];
        for (unsigned r = 0; r < N_ROUNDS; r++) {
            cpu[r] = samples[i][r].cpu_ns;
            rate[r] = samples[i][r].per_second;
            per_turn[r] = samples[i][r].per_turn;
            cpu_ratio[r] = cpu[r] / samples[0][r].cpu_ns;
            rate_ratio[r] = rate[r] / samples[0][r].per_second;
        }
        printf("    %-52s %8.0f ns %5.2f %9.0f /s %5.2f %6.1f\n", variants[i].name, median(cpu),
               median(cpu_ratio), median(rate), median(rate_ratio), median(per_turn));
    }
}

void measure(const Variant *variants, unsigned n, Sample (*run)(const Variant *, const void *),
             const void *arg)
{
    Sample samples[MAX_VARIANTS][N_ROUNDS];
    for (unsigned round = 0; round < N_ROUNDS; round++)
        for (unsigned i = 0; i < n; i++)
            samples[i][round] = run(&variants[i], arg);
    report(variants, n, samples);
}

static bool is_wanted(char **args, const char *group)
{
    bool has_groups = false;
    for (; *args; args++) {
        if (strcmp(*args, group) == 0)
            return true;
        has_groups |= **args != '-';
    }
    return !has_groups;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++)
        threads_are_free |= strcmp(argv[i], "--free") == 0;
    use_processor(0);
    printf("%-56s %11s %5s %12s %5s %6s\n", "", "CPU each", "ratio", "rate", "ratio", "a turn");
    if (is_wanted(argv + 1, "requests"))
        bench_requests();
    if (is_wanted(argv + 1, "payloads"))
        bench_payloads();
    if (is_wanted(argv + 1, "accept"))
        bench_accept();
    if (is_wanted(argv + 1, "files"))
        bench_files();
    return 0;
}
