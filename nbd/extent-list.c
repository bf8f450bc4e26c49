// SPDX-License-Identifier: LGPL-2.1-or-later
// Lists of extents.
#include "extent-list.h"

#include <assert.h>
#include <glib.h>
#include <string.h>

void nbds_extent_list_init(NbdsExtentList *list, unsigned max_extents)
{
    assert(max_extents > 0);
    list->extents = list->inline_extents;
    list->n_extents = 0;
    list->n_allocated = NBDS_EXTENT_LIST_INLINE;
    list->max_extents = max_extents;
    list->is_full = false;
}

void nbds_extent_list_done(NbdsExtentList *list)
{
    if (list->extents != list->inline_extents)
        g_free(list->extents);
}

static bool grow(NbdsExtentList *list)
{
    unsigned n = list->n_allocated * 4;
    bool was_inline = list->extents == list->inline_extents;
    NbdsExtent *extents = g_try_realloc_n(was_inline ? NULL : list->extents, n, sizeof *extents);
    if (!extents)
        return false;
    if (was_inline)
        memcpy(extents, list->inline_extents, sizeof list->inline_extents);
    list->extents = extents;
    list->n_allocated = n;
    return true;
}

bool nbds_extent_list_add(NbdsExtentList *list, uint64_t length, uint64_t flags)
{
    assert(length > 0);
    if (list->is_full)
        return false;
    NbdsExtent *last = list->n_extents ? &list->extents[list->n_extents - 1] : NULL;
    if (last && last->flags == flags) {
        last->length += length;
        return true;
    }
    list->is_full = list->n_extents >= list->max_extents ||
                    (list->n_extents == list->n_allocated && !grow(list));
    if (list->is_full)
        return false;
    list->extents[list->n_extents++] = (NbdsExtent){length, flags};
    return true;
}
