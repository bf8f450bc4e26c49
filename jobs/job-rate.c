// SPDX-License-Identifier: LGPL-2.1-or-later
// Bytes are counted in a ring of seconds. Pure but for the atomics.
#include "job-rate.h"

#include <glib.h>

static const uint64_t second_ns = 1000000000;

static uint64_t get(const _Atomic uint64_t *value)
{
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void set(_Atomic uint64_t *value, uint64_t to)
{
    atomic_store_explicit(value, to, memory_order_relaxed);
}

void job_rate_count(JobRate *rate, uint64_t now_ns, uint64_t bytes)
{
    uint64_t second = now_ns / second_ns;
    unsigned slot = second % JOB_RATE_SLOTS;
    if (!get(&rate->begun_ns))
        set(&rate->begun_ns, MAX(now_ns, 1));
    if (get(&rate->second[slot]) != second) {
        set(&rate->bytes[slot], 0);
        set(&rate->second[slot], second);
    }
    set(&rate->bytes[slot], get(&rate->bytes[slot]) + bytes);
}

uint64_t job_rate_get(const JobRate *rate, uint64_t now_ns)
{
    uint64_t second = now_ns / second_ns, begun_ns = get(&rate->begun_ns), sum = 0;
    if (!begun_ns || now_ns <= begun_ns)
        return 0;
    for (unsigned i = 0; i < JOB_RATE_SLOTS; i++) {
        uint64_t counted = get(&rate->second[i]);
        if (counted <= second && counted + JOB_RATE_SECONDS > second)
            sum += get(&rate->bytes[i]);
    }
    // The window begins with a whole second, and ends now; what lasted less is no rate.
    uint64_t window_ns = (JOB_RATE_SECONDS - 1) * second_ns + now_ns % second_ns;
    uint64_t ns = MAX(MIN(now_ns - begun_ns, window_ns), second_ns);
    return (uint64_t)((double)sum * (double)second_ns / (double)ns);
}
