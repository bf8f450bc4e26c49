// SPDX-License-Identifier: LGPL-2.1-or-later
// How long requests took, as the daemon counts them: by their binary logarithm in microseconds.
// Pure, but for asking the daemon.
#pragma once

#include "ctl.h"

enum { LATENCY_CLASSES = 24 };

typedef struct Latency {
    uint64_t n[LATENCY_CLASSES]; // [0] below 1 us, [i] from 2^(i-1) to below 2^i
} Latency;

// Adds what an export (of query-export-stats) counted of an operation; NULL: of all that wait for
// data, reads and writes.
void latency_add(Latency *latency, const json_t *export, const char *operation);
uint64_t latency_count(const Latency *latency);
// What was counted since `before`.
Latency latency_since(const Latency *now, const Latency *before);
// Microseconds within which `fraction` of them were done, by interpolation; <0: there were none.
double latency_percentile(const Latency *latency, double fraction);

// Reads and writes of a disk's clients, by the name of its export or of its node. -1: `error`.
int latency_load(Ctl *ctl, const char *disk, Latency *ret_latency, GError **error);
