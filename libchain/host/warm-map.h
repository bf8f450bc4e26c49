// SPDX-License-Identifier: LGPL-2.1-or-later
// Which parts of a file its file system has mapped before. A read with RWF_NOWAIT that misses the
// page cache starts the kernel's read-ahead all the same, and for that a file system may first have
// to read its own map of that part (ext4: its extent tree), for as long as the disk takes, and on
// the calling thread. So the first read of a part that is not cached goes to a kernel worker; by
// then the map is in memory, and later misses only start I/O. A bit for each MiB, larger parts in
// files beyond 1 TiB. Pure; on the file's loop.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct WarmMap {
    uint64_t *bits; // NULL: nothing is warm
    uint64_t n_parts;
    unsigned part_bits;
} WarmMap;

// Of a file that is `size` bytes now; what lies beyond counts as warm once the file has grown that
// far and warm_map_add() found memory for it.
void warm_map_init(WarmMap *map, uint64_t size);
void warm_map_done(WarmMap *map);

// `len` > 0.
void warm_map_add(WarmMap *map, uint64_t off, uint64_t len);
void warm_map_forget(WarmMap *map);

static inline bool warm_map_covers(const WarmMap *map, uint64_t off, uint64_t len)
{
    uint64_t part = off >> map->part_bits, last = (off + len - 1) >> map->part_bits;
    if (last >= map->n_parts)
        return false;
    for (; part <= last; part++)
        if (!(map->bits[part / 64] >> part % 64 & 1))
            return false;
    return true;
}
