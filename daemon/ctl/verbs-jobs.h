// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs: jobs, wait, cancel.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_jobs_family;
