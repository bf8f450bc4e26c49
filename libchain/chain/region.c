// SPDX-License-Identifier: LGPL-2.1-or-later
// Laying layers over each other to make a region. Pure: no I/O, no graph; any thread.
#include "chain/region.h"

#include "chain-core/node.h"

size_t region_bytes(const Region *region)
{
    return sizeof *region + region->n_runs * sizeof(Run);
}

void region_free(Region *region)
{
    if (!region)
        return;
    map_memory_add(region->memory, MAP_MEMORY_REGIONS, -(int64_t)region_bytes(region));
    g_free(region);
}

void region_draft_init(RegionDraft *draft, uint32_t len)
{
    Span all = {0, len};
    draft->len = len;
    draft->open = g_array_new(FALSE, FALSE, sizeof(Span));
    draft->pieces = g_array_new(FALSE, FALSE, sizeof(Piece));
    g_array_append_val(draft->open, all);
}

void region_draft_done(RegionDraft *draft)
{
    g_array_unref(draft->open);
    g_array_unref(draft->pieces);
}

static void add_piece(RegionDraft *draft, const Piece *piece, uint32_t start, uint32_t end)
{
    Piece part = *piece;
    part.span = (Span){start, end};
    part.run.host += start - piece->span.start;
    g_array_append_val(draft->pieces, part);
}

void region_draft_add_layer(RegionDraft *draft, const Piece *pieces, size_t n_pieces)
{
    GArray *still_open = g_array_sized_new(FALSE, FALSE, sizeof(Span), draft->open->len + 1);
    size_t p = 0;
    for (guint i = 0; i < draft->open->len; i++) {
        Span span = g_array_index(draft->open, Span, i);
        while (p < n_pieces && pieces[p].span.end <= span.start)
            p++;
        // A piece may reach into the next span: only step past it when it ends inside this one.
        for (size_t q = p; span.start < span.end; q++) {
            uint32_t start = q < n_pieces ? MIN(pieces[q].span.start, span.end) : span.end;
            start = MAX(start, span.start);
            if (start > span.start) {
                Span gap = {span.start, start};
                g_array_append_val(still_open, gap);
            }
            if (start == span.end)
                break;
            uint32_t end = MIN(pieces[q].span.end, span.end);
            add_piece(draft, &pieces[q], start, end);
            span.start = end;
        }
    }
    g_array_unref(draft->open);
    draft->open = still_open;
}

static int compare_pieces(const void *a, const void *b)
{
    uint32_t x = ((const Piece *)a)->span.start, y = ((const Piece *)b)->span.start;
    return x < y ? -1 : x > y;
}

static bool continues(const Piece *a, const Piece *b)
{
    if (a->run.kind != b->run.kind || a->run.layer != b->run.layer)
        return false;
    return a->run.kind != NODE_EXTENT_DATA ||
           a->run.host + (a->span.end - a->span.start) == b->run.host;
}

// Joins neighbours in place; returns how many pieces are left.
static guint join_pieces(Piece *pieces, guint n)
{
    guint last = 0;
    for (guint i = 1; i < n; i++) {
        if (continues(&pieces[last], &pieces[i]))
            pieces[last].span.end = pieces[i].span.end;
        else
            pieces[++last] = pieces[i];
    }
    return last + 1;
}

Region *region_draft_finish(RegionDraft *draft, uint64_t number, MapMemory *memory)
{
    Piece nothing = {.span = {0, draft->len}, .run = {.kind = NODE_EXTENT_BELOW}};
    region_draft_add_layer(draft, &nothing, 1);
    Piece *pieces = (Piece *)draft->pieces->data;
    qsort(pieces, draft->pieces->len, sizeof *pieces, compare_pieces);
    guint n = join_pieces(pieces, draft->pieces->len);

    Region *region = g_try_malloc(sizeof *region + n * sizeof(Run));
    if (!region)
        return NULL;
    *region = (Region){.len = draft->len, .n_runs = n, .number = number, .memory = memory};
    atomic_init(&region->n_refs, 1);
    for (guint i = 0; i < n; i++) {
        region->runs[i] = pieces[i].run;
        region->runs[i].start = pieces[i].span.start;
    }
    map_memory_add(memory, MAP_MEMORY_REGIONS, (int64_t)region_bytes(region));
    return region;
}
