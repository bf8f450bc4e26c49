// SPDX-License-Identifier: LGPL-2.1-or-later
// Disks as trees for people: the head, points in time, sizes, what is shared, jobs, clients.
#pragma once

#include <jansson.h>

#include "output.h"

// `disks`: of disk_view_load(). `jobs`: of job_rows().
void tree_print(const Output *output, const json_t *disks, const json_t *jobs);
