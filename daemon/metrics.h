// SPDX-License-Identifier: LGPL-2.1-or-later
// What is measured, as text for Prometheus: exports, disks, jobs, memory, the process. Counters are
// read where they are counted anyway; no loop but the control loop does anything for it.
#pragma once

#include <glib.h>

#include "chain-core/fiber.h"

typedef struct Daemon Daemon;

// Owned. Control loop; lets others go on from time to time.
GString *metrics_make(Fiber *self, const Daemon *daemon);
