// SPDX-License-Identifier: LGPL-2.1-or-later
// Leaky buckets with QEMU's meaning. A request is let go on whenever no bucket is over its edge,
// and then counted whole, so that buckets overflow and the next one waits until that has leaked
// away.
//
//     without a burst rate    the bucket holds a tenth of a second at the average
//     with one                it holds what the burst rate gives in burst_s; while it fills, a
//                             second bucket of a tenth of a second keeps the burst rate itself
#include "node/throttle-bucket.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

#define MAX_VALUE UINT64_C(1000000000000000)
#define SECOND_NS 1e9

void throttle_limits_init(ThrottleLimits *limits)
{
    *limits = (ThrottleLimits){0};
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++)
        limits->rates[i].burst_s = 1;
}

bool throttle_limits_are_none(const ThrottleLimits *limits)
{
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++)
        if (limits->rates[i].average)
            return false;
    return true;
}

static bool is_mixed(uint64_t total, uint64_t reads, uint64_t writes)
{
    return total && (reads || writes);
}

static bool has_mixed_rates(const ThrottleRate *total)
{
    return is_mixed(total[0].average, total[1].average, total[2].average) ||
           is_mixed(total[0].burst, total[1].burst, total[2].burst);
}

static int check_rate(const ThrottleRate *rate, GError **error)
{
    if (rate->average > MAX_VALUE || rate->burst > MAX_VALUE)
        return error_set(error, -EINVAL, "bps/iops/max values must be within [0, %llu]",
                         (unsigned long long)MAX_VALUE);
    if (!rate->burst_s)
        return error_set(error, -EINVAL, "the burst length cannot be 0");
    if (rate->burst_s > 1 && !rate->burst)
        return error_set(error, -EINVAL, "burst length set without burst rate");
    if (rate->burst && rate->burst_s > MAX_VALUE / rate->burst)
        return error_set(error, -EINVAL, "burst length too high for this burst rate");
    if (rate->burst && !rate->average)
        return error_set(error, -EINVAL, "bps_max/iops_max require corresponding bps/iops values");
    if (rate->burst && rate->burst < rate->average)
        return error_set(error, -EINVAL, "bps_max/iops_max cannot be lower than bps/iops");
    return 0;
}

int throttle_limits_check(const ThrottleLimits *limits, GError **error)
{
    const ThrottleRate *rates = limits->rates;
    if (has_mixed_rates(&rates[THROTTLE_BPS_TOTAL]) || has_mixed_rates(&rates[THROTTLE_IOPS_TOTAL]))
        return error_set(error, -EINVAL,
                         "bps/iops/max total values and read/write values cannot be used at the "
                         "same time");
    if (limits->request_bytes && !rates[THROTTLE_IOPS_TOTAL].average &&
        !rates[THROTTLE_IOPS_READ].average && !rates[THROTTLE_IOPS_WRITE].average)
        return error_set(error, -EINVAL, "iops size requires an iops value to be set");
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++) {
        int r = check_rate(&rates[i], error);
        if (r < 0)
            return r;
    }
    return 0;
}

void throttle_buckets_init(ThrottleBuckets *buckets, const ThrottleLimits *limits, uint64_t now_ns)
{
    *buckets = (ThrottleBuckets){.limits = *limits, .leaked_ns = now_ns};
}

// Loops read the clock at their own moments: an earlier one changes nothing.
static void leak(ThrottleBuckets *b, uint64_t now_ns)
{
    if (now_ns <= b->leaked_ns)
        return;
    double seconds = (double)(now_ns - b->leaked_ns) / SECOND_NS;
    b->leaked_ns = now_ns;
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++) {
        const ThrottleRate *rate = &b->limits.rates[i];
        b->levels[i] = MAX(b->levels[i] - (double)rate->average * seconds, 0);
        b->burst_levels[i] = MAX(b->burst_levels[i] - (double)rate->burst * seconds, 0);
    }
}

static uint64_t time_to_leak(double amount, uint64_t rate)
{
    return amount > 0 ? (uint64_t)(amount * SECOND_NS / (double)rate) + 1 : 0;
}

static uint64_t wait_of_kind(const ThrottleBuckets *b, ThrottleKind kind)
{
    const ThrottleRate *rate = &b->limits.rates[kind];
    if (!rate->average)
        return 0;
    double size =
        rate->burst ? (double)rate->burst * (double)rate->burst_s : (double)rate->average / 10;
    uint64_t wait_ns = time_to_leak(b->levels[kind] - size, rate->average);
    if (!wait_ns && rate->burst_s > 1)
        wait_ns = time_to_leak(b->burst_levels[kind] - (double)rate->burst / 10, rate->burst);
    return wait_ns;
}

static const ThrottleKind kinds_of[2][4] = {
    {THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_READ},
    {THROTTLE_BPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_WRITE},
};

uint64_t throttle_buckets_wait_ns(ThrottleBuckets *b, bool is_write, uint64_t now_ns)
{
    uint64_t wait_ns = 0;
    leak(b, now_ns);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds_of[0]); i++)
        wait_ns = MAX(wait_ns, wait_of_kind(b, kinds_of[is_write][i]));
    return wait_ns;
}

void throttle_buckets_add(ThrottleBuckets *b, bool is_write, uint64_t bytes)
{
    double requests = 1;
    if (b->limits.request_bytes && bytes > b->limits.request_bytes)
        requests = (double)bytes / (double)b->limits.request_bytes;
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds_of[0]); i++) {
        ThrottleKind kind = kinds_of[is_write][i];
        double amount = kind < THROTTLE_IOPS_TOTAL ? (double)bytes : requests;
        b->levels[kind] += amount;
        b->burst_levels[kind] += amount;
    }
}
