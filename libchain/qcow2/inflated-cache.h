// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads of compressed clusters: the compressed bytes are read, inflated on a worker, and the last
// few inflated clusters of an image kept. Fibers that want the same cluster share one inflation. On
// the image's loop.
#pragma once

#include "chain-core/file.h"
#include "chain-core/units.h"

typedef struct Qcow2Image Qcow2Image;
typedef struct InflatedCache InflatedCache;

InflatedCache *inflated_cache_new(Qcow2Image *image);
void inflated_cache_free(InflatedCache *cache); // accepts NULL; nobody may be reading

// A compressed cluster, from one of its bytes on.
typedef struct CompressedPart {
    HostOff host; // where its stream starts
    uint32_t compressed_bytes;
    uint32_t in_cluster; // the first byte, as inflated
} CompressedPart;

// Copies `len` inflated bytes of `part`, which lie inside its cluster, into `buf`. -EIO for a
// broken stream. May suspend.
int inflated_cache_read(Fiber *self, InflatedCache *cache, const CompressedPart *part, void *buf,
                        size_t len);
// Forgets what lies in [host, host+bytes): those clusters are being freed.
void inflated_cache_forget(InflatedCache *cache, HostOff host, uint64_t bytes);
