// SPDX-License-Identifier: LGPL-2.1-or-later
// The command query-job-history.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_job_history_family;
