// SPDX-License-Identifier: LGPL-2.1-or-later
// How far something is, on standard error: one line that is drawn anew on a terminal, else a plain
// line from time to time.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct ProgressState {
    uint64_t done, total; // bytes
    uint64_t rate;        // bytes a second
    int64_t seconds_left; // <0: not known
    bool knows_latency;
    double latency_change_us; // of the guest's 99th percentile
    const char *note;         // instead of rate and time: "paused: no space"; NULL: none
} ProgressState;

typedef struct Progress {
    const char *label; // borrowed: "web → delete mon"
    bool is_terminal, has_color, is_drawn;
    int64_t next_us; // when the next plain line is due
} Progress;

void progress_init(Progress *progress, const char *label, bool has_color);
// Draws the line, or prints one if it is time to or `is_forced`.
void progress_show(Progress *progress, const ProgressState *state, bool is_forced);
// Takes the line away, so that something else can be printed.
void progress_clear(Progress *progress);
// Leaves it, and ends it.
void progress_end(Progress *progress);
