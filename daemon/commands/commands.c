// SPDX-License-Identifier: LGPL-2.1-or-later
// The list of families, in the order of docs/qmp.md. Each is a file of this folder.
#include "commands.h"

#include "backing-file.h"
#include "bitmaps.h"
#include "block-commit.h"
#include "block-jobs.h"
#include "block-stream.h"
#include "blockdev-backup.h"
#include "blockdev-mirror.h"
#include "chain-health.h"
#include "chain-maps.h"
#include "chardevs.h"
#include "create.h"
#include "disk-backup.h"
#include "disk-branches.h"
#include "disk-copy.h"
#include "disk-delete.h"
#include "disk-exports.h"
#include "disk-mirror.h"
#include "disk-pull.h"
#include "disk-snapshots.h"
#include "disks.h"
#include "drive-jobs.h"
#include "export-stats.h"
#include "exports.h"
#include "internal-snapshots.h"
#include "io-throttle.h"
#include "job-history.h"
#include "jobs.h"
#include "log-level.h"
#include "node-queries.h"
#include "nodes.h"
#include "objects.h"
#include "plans.h"
#include "protocol.h"
#include "reload.h"
#include "reopen.h"
#include "resize.h"
#include "snapshots.h"
#include "transaction.h"

const QmpFamily *const qmp_families[] = {
    &qmp_protocol_family,
    &qmp_nodes_family,
    &qmp_reopen_family,
    &qmp_create_family,
    &qmp_backing_file_family,
    &qmp_node_queries_family,
    &qmp_bitmaps_family,
    &qmp_resize_family,
    &qmp_exports_family,
    &qmp_export_stats_family,
    &qmp_io_throttle_family,
    &qmp_internal_snapshots_family,
    &qmp_snapshots_family,
    &qmp_transaction_family,
    &qmp_jobs_family,
    &qmp_block_jobs_family,
    &qmp_block_stream_family,
    &qmp_block_commit_family,
    &qmp_blockdev_mirror_family,
    &qmp_blockdev_backup_family,
    &qmp_drive_jobs_family,
    &qmp_plans_family,
    &qmp_chain_maps_family,
    &qmp_chain_health_family,
    &qmp_disks_family,
    &qmp_disk_exports_family,
    &qmp_disk_snapshots_family,
    &qmp_disk_delete_family,
    &qmp_disk_branches_family,
    &qmp_disk_backup_family,
    &qmp_disk_pull_family,
    &qmp_disk_copy_family,
    &qmp_disk_mirror_family,
    &qmp_job_history_family,
    &qmp_objects_family,
    &qmp_chardevs_family,
    &qmp_log_level_family,
    &qmp_reload_family,
    NULL, // ends
};
