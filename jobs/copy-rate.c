// SPDX-License-Identifier: LGPL-2.1-or-later
// Pure.
#include "copy-rate.h"

#include <glib.h>

enum { NS_PER_S = 1000000000, BUCKETS_PER_S = 10 };

static double bucket_bytes(const CopyRate *rate)
{
    return MAX((double)rate->bytes_per_s / BUCKETS_PER_S, 1);
}

static void fill(CopyRate *rate, uint64_t now_ns)
{
    double came = (double)(now_ns - rate->filled_ns) * (double)rate->bytes_per_s / NS_PER_S;
    rate->tokens = MIN(rate->tokens + came, bucket_bytes(rate));
    rate->filled_ns = now_ns;
}

void copy_rate_set(CopyRate *rate, uint64_t bytes_per_s, uint64_t now_ns)
{
    fill(rate, now_ns);
    if (!rate->bytes_per_s)
        rate->tokens = 0;
    rate->bytes_per_s = bytes_per_s;
    rate->tokens = MIN(rate->tokens, bucket_bytes(rate));
}

uint64_t copy_rate_wait_ns(CopyRate *rate, uint64_t now_ns)
{
    if (!rate->bytes_per_s)
        return 0;
    fill(rate, now_ns);
    if (rate->tokens > 0)
        return 0;
    double s = (1 - rate->tokens) / (double)rate->bytes_per_s;
    return (uint64_t)(MIN(s, 3600.0) * NS_PER_S) + 1;
}

void copy_rate_take(CopyRate *rate, int64_t bytes)
{
    if (rate->bytes_per_s)
        rate->tokens -= (double)bytes;
}
