// SPDX-License-Identifier: LGPL-2.1-or-later
// How many bytes a second there were in the last seconds. One thread counts, any may read; a value
// that is read while another second begins may miss some.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

enum {
    JOB_RATE_SECONDS = 5, // that a rate is of
    JOB_RATE_SLOTS = 8,   // more, so that none is reused while it is read
};

// Zero-initialised.
typedef struct JobRate {
    _Atomic uint64_t begun_ns; // the first count; 0: none yet
    _Atomic uint64_t second[JOB_RATE_SLOTS], bytes[JOB_RATE_SLOTS];
} JobRate;

void job_rate_count(JobRate *rate, uint64_t now_ns, uint64_t bytes);
uint64_t job_rate_get(const JobRate *rate, uint64_t now_ns);
