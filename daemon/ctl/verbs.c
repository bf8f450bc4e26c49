// SPDX-License-Identifier: LGPL-2.1-or-later
// The families, in the order of the help. Pure.
#include "verbs.h"

#include "doctor.h"
#include "top.h"
#include "verbs-copies.h"
#include "verbs-daemon.h"
#include "verbs-disks.h"
#include "verbs-help.h"
#include "verbs-jobs.h"
#include "verbs-limit.h"
#include "verbs-look.h"
#include "verbs-map.h"
#include "verbs-points.h"
#include "verbs-pool.h"
#include "verbs-pull.h"

const VerbFamily *const verb_families[] = {
    &verbs_look_family,
    &verbs_map_family,
    &verbs_top_family,
    &verbs_doctor_family,
    &verbs_disks_family,
    &verbs_limit_family,
    &verbs_points_family,
    &verbs_copies_family,
    &verbs_pull_family,
    &verbs_jobs_family,
    &verbs_daemon_family,
    &verbs_pool_family,
    &verbs_help_family,
    NULL, // ends
};
