// SPDX-License-Identifier: LGPL-2.1-or-later
// What all commands of disks share: what they tell of a disk, how one is found, the lock that they
// hold. Control loop.
#pragma once

#include "daemon/qmp/command.h"
#include "daemon/state/catalogue.h"

extern const QmpType qmp_disk_info, qmp_disk_export_info;
// {"safe", "hard"}: what becomes of clients that are connected.
extern const QmpType qmp_disk_client_mode;
// Are they disconnected?
bool qmp_args_is_hard(const json_t *args);

// NULL with a sentence: there is no state directory. Then the catalogue's lock is held, until
// qmp_disks_end(); suspends.
Catalogue *qmp_disks_begin(Fiber *self, const QmpCall *call, GError **error);
void qmp_disks_end(Fiber *self, Catalogue *catalogue);
// With the lock: the disk that the member `name` says, if it is open and no job changes its layers.
int qmp_disks_get_idle(const Catalogue *catalogue, const json_t *args, const char *name,
                       Disk **ret_disk, GError **error);
// The same where any disk will do.
Disk *qmp_disks_get(const Catalogue *catalogue, const json_t *args, const char *name,
                    GError **error);

// A sentence; gives back `r`, the errno that says what kind of refusal it is.
int qmp_disk_refuse(GError **error, int r, const char *format, ...) G_GNUC_PRINTF(3, 4);

// A new reference.
json_t *qmp_describe_disk(const Daemon *daemon, const Disk *disk);
json_t *qmp_describe_disk_export(const Daemon *daemon, const DiskExport *export);
