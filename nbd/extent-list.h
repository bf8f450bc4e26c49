// SPDX-License-Identifier: LGPL-2.1-or-later
// Consecutive extents from one offset, as BLOCK_STATUS answers them; neighbours with equal flags
// become one. A list takes its first extent without allocating. Pure; any thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { NBDS_EXTENT_LIST_INLINE = 32 };

typedef struct NbdsExtent {
    uint64_t length;
    uint64_t flags;
} NbdsExtent;

typedef struct NbdsExtentList {
    NbdsExtent *extents; // `inline_extents` or allocated
    unsigned n_extents, n_allocated, max_extents;
    bool is_full; // takes no more, so that there is no gap
    NbdsExtent inline_extents[NBDS_EXTENT_LIST_INLINE];
} NbdsExtentList;

void nbds_extent_list_init(NbdsExtentList *list, unsigned max_extents); // ≥1
void nbds_extent_list_done(NbdsExtentList *list);
// False, with nothing changed, from when that would be more than the list's maximum, or memory is
// out; what the list has is then a valid, shorter answer.
bool nbds_extent_list_add(NbdsExtentList *list, uint64_t length, uint64_t flags);
