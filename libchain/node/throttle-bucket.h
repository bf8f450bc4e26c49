// SPDX-License-Identifier: LGPL-2.1-or-later
// The leaky buckets of a throttle group: how much of each kind went on, leaking away at the allowed
// rate. What is full makes requests wait. Pure; one thread at a time.
#pragma once

#include "chain-core/throttle-group.h"

typedef struct ThrottleBuckets {
    ThrottleLimits limits;
    double levels[THROTTLE_N_KINDS];       // leak at the average
    double burst_levels[THROTTLE_N_KINDS]; // leak at the burst rate
    uint64_t leaked_ns;                    // until then
} ThrottleBuckets;

// New limits; all buckets are empty.
void throttle_buckets_init(ThrottleBuckets *buckets, const ThrottleLimits *limits, uint64_t now_ns);
// How long until a request of that direction may go on; 0: now.
uint64_t throttle_buckets_wait_ns(ThrottleBuckets *buckets, bool is_write, uint64_t now_ns);
// One goes on.
void throttle_buckets_add(ThrottleBuckets *buckets, bool is_write, uint64_t bytes);
