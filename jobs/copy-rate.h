// SPDX-License-Identifier: LGPL-2.1-or-later
// A limit on how many bytes a job moves a second: a bucket of tokens that fills at that rate and
// holds 100 ms of it. Whoever finds it above zero may take more than is in it; the debt is waited
// for by the next one. So a chunk may be larger than the bucket. Pure.
#pragma once

#include <stdint.h>

typedef struct CopyRate {
    uint64_t bytes_per_s; // 0: no limit
    double tokens;        // bytes; negative: debt
    uint64_t filled_ns;   // until then
} CopyRate;

// What was taken before is forgotten where there was no limit, and else still counts.
void copy_rate_set(CopyRate *rate, uint64_t bytes_per_s, uint64_t now_ns);
// How long until something may be taken; 0: now.
uint64_t copy_rate_wait_ns(CopyRate *rate, uint64_t now_ns);
// Negative: gives back what was not needed.
void copy_rate_take(CopyRate *rate, int64_t bytes);
