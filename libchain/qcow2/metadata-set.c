// SPDX-License-Identifier: LGPL-2.1-or-later
// Space is asked for once for each cluster while an image is open; after that a look-up knows.
// Where the host can reserve nothing without writing, what the file holds is written over itself.
// That is safe because nothing in the range is dirty or on its way: it has to be reserved before,
// and reservations take turns.

#include "qcow2/metadata-set.h"

#include <errno.h>

#include "qcow2/image.h"

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
static int rewrite(Fiber *self, Qcow2Image *image, HostOff off, uint64_t len)
{
    void *buf = image_get_cow_buffer(image);
    if (!buf)
        return -ENOMEM;
    int r = file_read(self, image->file, off, buf, len);
    if (r == 0)
        r = file_write(self, image->file, off, buf, len);
    image_put_cow_buffer(image, buf);
    return r;
}

int metadata_set_reserve(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    MetadataSet *set = &image->metadata;
    if (cluster_set_contains(&set->with_space, cluster))
        return 0;
    HostOff off = image_cluster_off(image, cluster);
    uint64_t len = image->geometry.cluster_bytes;
    fiber_mutex_lock(self, &set->space_mutex);
    int r = 0;
    if (!cluster_set_contains(&set->with_space, cluster)) {
        r = file_reserve(self, image->file, off, len);
        if (r == -ENOTSUP)
            r = rewrite(self, image, off, len);
        if (r == 0)
            cluster_set_add(&set->with_space, cluster);
    }
    fiber_mutex_unlock(self, &set->space_mutex);
    return r;
}

static int reserve_slice_locked(Fiber *self, Qcow2Image *image, TableSlice *slice)
{
    MetadataSet *set = &image->metadata;
    uint64_t cluster = image_cluster_of(image, slice->host);
    if (slice->has_space || cluster_set_contains(&set->with_space, cluster))
        return 0;
    int r = file_reserve(self, image->file, image_cluster_off(image, cluster),
                         image->geometry.cluster_bytes);
    if (r == 0)
        cluster_set_add(&set->with_space, cluster);
    else if (r == -ENOSPC)
        r = file_reserve(self, image->file, slice->host, slice->bytes);
    else if (r == -ENOTSUP) // other slices of the cluster may be on their way
        r = rewrite(self, image, slice->host, slice->bytes);
    return r;
}

int metadata_set_reserve_slice(Fiber *self, Qcow2Image *image, TableSlice *slice)
{
    MetadataSet *set = &image->metadata;
    int r = 0;
    if (slice->has_space)
        return 0;
    if (!cluster_set_contains(&set->with_space, image_cluster_of(image, slice->host))) {
        fiber_mutex_lock(self, &set->space_mutex);
        r = reserve_slice_locked(self, image, slice);
        fiber_mutex_unlock(self, &set->space_mutex);
    }
    slice->has_space = r == 0;
    return r;
}
