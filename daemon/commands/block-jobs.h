// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and events of the jobs that copy between nodes.
#pragma once

#include "daemon/qmp/command.h"
#include "jobs/copy-mode.h"
#include "jobs/job.h"

extern const QmpFamily qmp_block_jobs_family;

// A JobEventFn of the daemon (`arg`): tells the monitors what qmp_jobs_happened() does not.
JobEventFn qmp_block_jobs_happened;

// --- for the commands that start one

extern const QmpType qmp_mirror_copy_mode;
extern const QmpType qmp_on_error;
extern const QmpType qmp_mirror_sync_mode;
extern const QmpType qmp_bitmap_sync_mode;
// What the member `name` of that type says; report, where it is not there.
JobOnError qmp_args_on_error(const json_t *args, const char *name);
// What the member `name` of type qmp_mirror_copy_mode says; automatic, where it is not there.
CopyMode qmp_args_copy_mode(const json_t *args, const char *name);
// From job-id (without which there is no valid id), auto-finalize, auto-dismiss. Strings are
// borrowed.
JobSpec qmp_block_job_spec(const json_t *args, const JobKind *kind, void *work);
