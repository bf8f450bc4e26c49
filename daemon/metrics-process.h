// SPDX-License-Identifier: LGPL-2.1-or-later
// Metrics of the process, under the names that all of Prometheus' clients use, and the processor
// time of its threads by name. From /proc: on a worker.
#pragma once

#include <glib.h>

void metrics_process_append(GString *text);
