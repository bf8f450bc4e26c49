// SPDX-License-Identifier: LGPL-2.1-or-later
// Is there room for what a job is about to copy? Asked before its first byte, of metadata. On the
// work's loop.
#pragma once

#include "chain-core/port.h"
#include "copy-engine.h"
#include "jobs/job-control.h"

typedef struct JobSpace {
    const CopyEngineConfig *config; // `find` says what is to be copied
    Port *port;                     // from which both can be reached; entered for each look-up
    Node *source, *target;
} JobSpace;

// -ENOSPC with a sentence when the target cannot hold it, which is for sure: what may need no space
// of its own is not counted, nor what the host may have more than it says. 0: it can, or nobody can
// tell, or the job is to be paused when there is no room. -ECANCELED. Looks at the tables of source
// and target only where room is scarce, and is a pause point.
int job_space_check(Fiber *self, const JobSpace *space, JobControl *control, JobOnError on_error,
                    GError **error);
