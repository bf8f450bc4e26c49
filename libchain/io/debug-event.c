// SPDX-License-Identifier: LGPL-2.1-or-later
// The names of events, and who hears of them. On the file's loop.
#include "chain-core/debug-event.h"

#include "io/file-private.h"

const char *const debug_event_names[] = {
    [DEBUG_L1_UPDATE] = "l1_update",
    [DEBUG_L1_GROW_ALLOC_TABLE] = "l1_grow_alloc_table",
    [DEBUG_L1_GROW_WRITE_TABLE] = "l1_grow_write_table",
    [DEBUG_L1_GROW_ACTIVATE_TABLE] = "l1_grow_activate_table",
    [DEBUG_L2_LOAD] = "l2_load",
    [DEBUG_L2_UPDATE] = "l2_update",
    [DEBUG_L2_UPDATE_COMPRESSED] = "l2_update_compressed",
    [DEBUG_L2_ALLOC_COW_READ] = "l2_alloc_cow_read",
    [DEBUG_L2_ALLOC_WRITE] = "l2_alloc_write",
    [DEBUG_READ_AIO] = "read_aio",
    [DEBUG_READ_BACKING_AIO] = "read_backing_aio",
    [DEBUG_READ_COMPRESSED] = "read_compressed",
    [DEBUG_WRITE_AIO] = "write_aio",
    [DEBUG_WRITE_COMPRESSED] = "write_compressed",
    [DEBUG_VMSTATE_LOAD] = "vmstate_load",
    [DEBUG_VMSTATE_SAVE] = "vmstate_save",
    [DEBUG_COW_READ] = "cow_read",
    [DEBUG_COW_WRITE] = "cow_write",
    [DEBUG_REFTABLE_LOAD] = "reftable_load",
    [DEBUG_REFTABLE_GROW] = "reftable_grow",
    [DEBUG_REFTABLE_UPDATE] = "reftable_update",
    [DEBUG_REFBLOCK_LOAD] = "refblock_load",
    [DEBUG_REFBLOCK_UPDATE] = "refblock_update",
    [DEBUG_REFBLOCK_UPDATE_PART] = "refblock_update_part",
    [DEBUG_REFBLOCK_ALLOC] = "refblock_alloc",
    [DEBUG_REFBLOCK_ALLOC_HOOKUP] = "refblock_alloc_hookup",
    [DEBUG_REFBLOCK_ALLOC_WRITE] = "refblock_alloc_write",
    [DEBUG_REFBLOCK_ALLOC_WRITE_BLOCKS] = "refblock_alloc_write_blocks",
    [DEBUG_REFBLOCK_ALLOC_WRITE_TABLE] = "refblock_alloc_write_table",
    [DEBUG_REFBLOCK_ALLOC_SWITCH_TABLE] = "refblock_alloc_switch_table",
    [DEBUG_CLUSTER_ALLOC] = "cluster_alloc",
    [DEBUG_CLUSTER_ALLOC_BYTES] = "cluster_alloc_bytes",
    [DEBUG_CLUSTER_FREE] = "cluster_free",
    [DEBUG_FLUSH_TO_OS] = "flush_to_os",
    [DEBUG_FLUSH_TO_DISK] = "flush_to_disk",
    [DEBUG_PWRITEV_RMW_HEAD] = "pwritev_rmw_head",
    [DEBUG_PWRITEV_RMW_AFTER_HEAD] = "pwritev_rmw_after_head",
    [DEBUG_PWRITEV_RMW_TAIL] = "pwritev_rmw_tail",
    [DEBUG_PWRITEV_RMW_AFTER_TAIL] = "pwritev_rmw_after_tail",
    [DEBUG_PWRITEV] = "pwritev",
    [DEBUG_PWRITEV_ZERO] = "pwritev_zero",
    [DEBUG_PWRITEV_DONE] = "pwritev_done",
    [DEBUG_EMPTY_IMAGE_PREPARE] = "empty_image_prepare",
    [DEBUG_L1_SHRINK_WRITE_TABLE] = "l1_shrink_write_table",
    [DEBUG_L1_SHRINK_FREE_L2_CLUSTERS] = "l1_shrink_free_l2_clusters",
    [DEBUG_COR_WRITE] = "cor_write",
    [DEBUG_CLUSTER_ALLOC_SPACE] = "cluster_alloc_space",
    [DEBUG_NONE] = "none",
    [DEBUG_N_EVENTS] = NULL,
};

void file_debug_event(File *file, DebugEvent event)
{
    if (file->ops->debug_event)
        file->ops->debug_event(file, event);
}
