// SPDX-License-Identifier: LGPL-2.1-or-later
// Space is asked for once for each cluster while an image is open; after that a look-up knows.
// Where the host can reserve nothing without writing, what the file holds is written over itself.
// That is safe because nothing in the range is dirty or on its way: it has to be reserved before,
// and reservations take turns.

#include "qcow2/metadata-set.h"
#include "chain-core/mutant.h"

#include <errno.h>
#include <glib.h>

void metadata_set_init(MetadataSet *set, File *file, uint32_t cluster_bits)
{
    *set = (MetadataSet){.file = file, .cluster_bits = cluster_bits};
}

void metadata_set_done(MetadataSet *set)
{
    cluster_set_done(&set->clusters);
    cluster_set_done(&set->with_space);
    cluster_set_done(&set->new_tables);
}

bool metadata_set_add(MetadataSet *set, uint64_t cluster)
{
    return cluster_set_add(&set->clusters, cluster);
}

void metadata_set_remove(MetadataSet *set, uint64_t cluster)
{
    cluster_set_remove(&set->clusters, cluster);
    cluster_set_remove(&set->with_space, cluster);
    cluster_set_remove(&set->new_tables, cluster);
}

// Writes [off, off+len), at most a cluster, as it is.
static int rewrite(Fiber *self, MetadataSet *set, HostOff off, uint64_t len)
{
    g_autofree void *buf = g_try_malloc(len);
    int r = buf ? file_read(self, set->file, off, buf, len) : -ENOMEM;
    return r < 0 ? r : file_write(self, set->file, off, buf, len);
}

// A block device may end inside its last cluster; a file grows.
static uint64_t cluster_bytes(const MetadataSet *set, uint64_t cluster)
{
    uint64_t bytes = UINT64_C(1) << set->cluster_bits, off = cluster << set->cluster_bits;
    uint64_t end = file_size(set->file);
    return file_is_block_device(set->file) && off < end ? MIN(bytes, end - off) : bytes;
}

static int reserve_cluster(Fiber *self, MetadataSet *set, uint64_t cluster)
{
    int r = file_reserve(self, set->file, host_off(cluster << set->cluster_bits),
                         cluster_bytes(set, cluster));
    if (r == 0)
        cluster_set_add(&set->with_space, cluster);
    return r;
}

int metadata_set_reserve(Fiber *self, MetadataSet *set, uint64_t cluster)
{
    if (cluster_set_contains(&set->with_space, cluster) || MUTANT("space-before-the-answer"))
        return 0;
    fiber_mutex_lock(self, &set->space_mutex);
    int r = 0;
    if (!cluster_set_contains(&set->with_space, cluster))
        r = reserve_cluster(self, set, cluster);
    if (r == -ENOTSUP) {
        r = rewrite(self, set, host_off(cluster << set->cluster_bits), cluster_bytes(set, cluster));
        if (r == 0)
            cluster_set_add(&set->with_space, cluster);
    }
    fiber_mutex_unlock(self, &set->space_mutex);
    return r;
}

int metadata_set_reserve_slice(Fiber *self, MetadataSet *set, TableSlice *slice)
{
    uint64_t cluster = slice->host.v >> set->cluster_bits;
    int r = 0;
    if (slice->has_space)
        return 0;
    if (!cluster_set_contains(&set->with_space, cluster)) {
        fiber_mutex_lock(self, &set->space_mutex);
        if (!slice->has_space && !cluster_set_contains(&set->with_space, cluster))
            r = reserve_cluster(self, set, cluster);
        if (r == -ENOSPC)
            r = file_reserve(self, set->file, slice->host, slice->bytes);
        else if (r == -ENOTSUP) // other slices of the cluster may be on their way
            r = rewrite(self, set, slice->host, slice->bytes);
        fiber_mutex_unlock(self, &set->space_mutex);
    }
    slice->has_space |= r == 0;
    return r;
}
