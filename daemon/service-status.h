// SPDX-License-Identifier: LGPL-2.1-or-later
// The line that `systemctl status` shows: "3 disks, 5 clients, delete-7 42% ETA 3m". Pure.
#pragma once

#include <stdint.h>

typedef struct ServiceJob {
    const char *id;
    const char *state; // instead of the time left: "paused"; NULL: it runs
    uint64_t done, total;
    int64_t seconds_left; // negative: not known
} ServiceJob;

typedef struct ServiceFacts {
    unsigned n_disks, n_clients;
    const ServiceJob *jobs; // of which the first ones are named
    unsigned n_jobs;
} ServiceFacts;

// Owned; one line.
char *service_status_text(const ServiceFacts *facts);
