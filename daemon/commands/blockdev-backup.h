// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that copy what a node shows at one moment. Control loop.
#pragma once

#include "daemon/qmp/command.h"
#include "job-start.h"

extern const QmpFamily qmp_blockdev_backup_family;

// --- for who starts such a job with arguments of his own

extern const QmpType qmp_blockdev_backup_args;
QmpPrepareJobFn qmp_prepare_backup;
// A command whose arguments name the node as "device". Takes the graph lock.
int qmp_start_backup(Fiber *self, const QmpCall *call, const json_t *args, QmpPrepareJobFn *prepare,
                     GError **error);

// An action whose state is a QmpJobStart.
int qmp_drain_backup_action(Fiber *self, void *state, GError **error);
void qmp_commit_backup_action(Fiber *self, void *state);
void qmp_resume_backup_action(Fiber *self, void *state);
const char *qmp_drained_by_backup(const json_t *data);
#define QMP_BACKUP_MOMENT                                                                          \
    .drain = qmp_drain_backup_action, .commit = qmp_commit_backup_action,                          \
    .resume = qmp_resume_backup_action, .drains = qmp_drained_by_backup
