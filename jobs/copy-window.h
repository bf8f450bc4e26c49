// SPDX-License-Identifier: LGPL-2.1-or-later
// How many bytes a job may have in flight: all that it wants while guests do not notice, less when
// their requests take longer than they could, and at least a little. The one place where a job
// gives way to guests. Pure.
//
// Guests' latency follows from what is counted at their ports (Little's law): requests in flight,
// on average, by requests that ended in a time. What it could be is the best of the last seconds.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "chain-core/port.h"

typedef struct CopyWindow {
    uint64_t limit_bytes, min_bytes, max_bytes;
    uint64_t sampled_ns;
    // Since the tick began:
    uint64_t tick_ns, n_ended_before;
    double in_flight_sum;
    unsigned n_samples;
    // The best latency of this span of seconds, and of the one before; 0: none was seen.
    double best_ns[2];
    uint64_t span_ns;
} CopyWindow;

void copy_window_init(CopyWindow *window, uint64_t min_bytes, uint64_t max_bytes, uint64_t now_ns);
// Is it time to look at the guests' ports?
bool copy_window_wants_sample(const CopyWindow *window, uint64_t now_ns);
// What is there now.
void copy_window_sample(CopyWindow *window, PortLoad load, uint64_t now_ns);
