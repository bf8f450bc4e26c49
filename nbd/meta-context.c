// SPDX-License-Identifier: LGPL-2.1-or-later
// Names, queries and flags of metadata contexts. base:allocation is the protocol's own;
// qemu:allocation-depth is documented in QEMU's docs/interop/nbd.rst (0 unallocated, 1 in the
// export's own layer, 2 and more below it). Pure.
#include "meta-context.h"

#include <assert.h>
#include <string.h>

enum { STATE_HOLE = 1 << 0, STATE_ZERO = 1 << 1 };

static const char *const names[NBDS_N_CONTEXTS] = {
    [NBDS_CONTEXT_ALLOCATION] = "base:allocation",
    [NBDS_CONTEXT_DEPTH] = "qemu:allocation-depth",
};

const char *nbds_context_name(NbdsContext context)
{
    return names[context];
}

uint32_t nbds_context_id(NbdsContext context)
{
    return context + 1;
}

NbdsContextSet nbds_context_from_id(uint32_t id)
{
    return id >= 1 && id <= NBDS_N_CONTEXTS ? 1u << (id - 1) : 0;
}

static bool is_wildcard_for(const uint8_t *query, size_t len, const char *name)
{
    size_t namespace_len = strchr(name, ':') + 1 - name;
    return len == namespace_len && !memcmp(query, name, len);
}

NbdsContextSet nbds_context_match(const uint8_t *query, size_t len, bool wildcards)
{
    NbdsContextSet set = 0;
    for (unsigned i = 0; i < NBDS_N_CONTEXTS; i++) {
        if (len == strlen(names[i]) && !memcmp(query, names[i], len))
            set |= 1u << i;
        else if (wildcards && is_wildcard_for(query, len, names[i]))
            set |= 1u << i;
    }
    return set;
}

// As QEMU: a hole is where no image holds data, so also a zero cluster that keeps its space. Data
// that the host's file does not store is no hole, but zero.
static uint64_t allocation_flags(const NodeExtent *extent)
{
    switch (extent->kind) {
    case NODE_EXTENT_BELOW: // unallocated in every layer
    case NODE_EXTENT_ZERO:
    case NODE_EXTENT_ZERO_ALLOCATED:
        return STATE_HOLE | STATE_ZERO;
    case NODE_EXTENT_DATA:
        return extent->is_host_hole ? STATE_ZERO : 0;
    case NODE_EXTENT_OPAQUE:
        break;
    }
    return 0;
}

uint64_t nbds_context_flags(NbdsContext context, const NodeExtent *extent)
{
    switch (context) {
    case NBDS_CONTEXT_ALLOCATION:
        return allocation_flags(extent);
    case NBDS_CONTEXT_DEPTH:
        return extent->kind == NODE_EXTENT_BELOW ? 0 : (uint64_t)extent->depth + 1;
    case NBDS_N_CONTEXTS:
        break;
    }
    assert(!"no such context");
    return 0;
}

void nbds_extent_list_done(NbdsExtentList *list)
{
    if (list->extents != list->inline_extents)
        g_free(list->extents);
    *list = (NbdsExtentList){0};
}

static bool grow(NbdsExtentList *list)
{
    if (!list->extents) {
        list->extents = list->inline_extents;
        list->n_allocated = NBDS_EXTENT_LIST_INLINE;
        return true;
    }
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

bool nbds_extent_list_add(NbdsExtentList *list, uint64_t length, uint64_t flags, unsigned max)
{
    assert(length > 0);
    if (list->n_extents && list->extents[list->n_extents - 1].flags == flags) {
        list->extents[list->n_extents - 1].length += length;
        return true;
    }
    if (list->n_extents >= max)
        return false;
    if (list->n_extents == list->n_allocated && !grow(list))
        return false;
    list->extents[list->n_extents++] = (NbdsExtent){length, flags};
    return true;
}
