// SPDX-License-Identifier: LGPL-2.1-or-later
// What a view has of its own in each cell of a range, for those who go through whole disks. Tables
// are read in long runs, those that lie next to each other together, and leave the cache as it is:
// it is for guests. What the cache has is taken from there, for it may be newer. In a fiber on the
// image's loop.

#include <errno.h>
#include <string.h>

#include "chain-core/io-buffers.h"
#include "chain-core/node-kinds.h"
#include "qcow2/view.h"

enum { RUN_BYTES = 256 << 10 };

static void add_subclusters(const Qcow2Geometry *g, const Qcow2L2Entry *e, uint64_t cell,
                            const NodeKinds *kinds)
{
    uint64_t n = UINT64_C(1) << (g->subcluster_bits - kinds->cell_bits);
    for (uint32_t s = 0; s < g->subclusters; s++) {
        if (e->alloc_bitmap >> s & 1)
            node_kinds_set(kinds->data, kinds->n_cells, cell + s * n, n);
        else if (e->zero_bitmap >> s & 1)
            node_kinds_set(kinds->zero, kinds->n_cells, cell + s * n, n);
    }
}

// Entry `i`. False: it is damaged.
static bool add_entry(const Qcow2Geometry *g, const void *slice, uint32_t i, uint64_t cell,
                      const NodeKinds *kinds)
{
    uint64_t n = UINT64_C(1) << (g->cluster_bits - kinds->cell_bits);
    Qcow2L2Entry e = qcow2_l2_entry_decode(g, slice, i);
    switch (e.kind) {
    case QCOW2_CLUSTER_BAD:
        return false;
    case QCOW2_CLUSTER_COMPRESSED:
        node_kinds_set(kinds->data, kinds->n_cells, cell, n);
        return true;
    default:
        break;
    }
    if (g->extended_l2)
        add_subclusters(g, &e, cell, kinds);
    else if (e.kind != QCOW2_CLUSTER_UNALLOCATED)
        node_kinds_set(e.kind == QCOW2_CLUSTER_DATA ? kinds->data : kinds->zero, kinds->n_cells,
                       cell, n);
    return true;
}

// Entries of a slice, one bit each: data and nothing else said of it; what has to be looked at.
typedef struct Classes {
    uint64_t plain, other;
} Classes;

enum { MAX_AT_ONCE = 64 };

// Bits of a plain entry, in the order of bytes in which tables have them.
typedef struct PlainBits {
    uint64_t wrong, offset; // none of these is set, one of those is
} PlainBits;

static PlainBits plain_bits(const Qcow2Geometry *g)
{
    const uint64_t known = QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED;
    return (PlainBits){
        .wrong = be64_make(~known | (g->cluster_bytes - 1)).raw,
        .offset = be64_make(QCOW2_ENTRY_OFFSET_MASK).raw,
    };
}

typedef uint64_t Entries __attribute__((vector_size(16))); // two at a time

// Most groups are of one kind: nothing, or plain entries. True: it is one.
static bool classify_uniform(PlainBits bits, const Be64 entry[MAX_AT_ONCE], Classes *ret_classes)
{
    enum { LANES = sizeof(Entries) / sizeof(uint64_t) };
    Entries any = {0}, have_offset = ~any; // the highest bit: all have
    for (uint32_t k = 0; k < MAX_AT_ONCE; k += LANES) {
        Entries raw;
        memcpy(&raw, entry + k, sizeof raw);
        Entries offset = raw & bits.offset;
        any |= raw;
        have_offset &= offset | -offset;
    }
    uint64_t any_bits = 0, all_have = UINT64_MAX;
    for (unsigned i = 0; i < LANES; i++) {
        any_bits |= any[i];
        all_have &= have_offset[i];
    }
    bool is_plain = !(any_bits & bits.wrong) && all_have >> 63;
    *ret_classes = (Classes){.plain = is_plain ? UINT64_MAX : 0};
    return is_plain || !any_bits;
}

// Of standard entries. No jumps that depend on them: no prediction is of use where owners change
// from cluster to cluster.
static Classes classify_standard(const Qcow2Geometry *g, const Be64 *entry, uint32_t n)
{
    PlainBits bits = plain_bits(g);
    Classes c = {0};
    if (n == MAX_AT_ONCE && classify_uniform(bits, entry, &c))
        return c;
    for (uint32_t k = 0; k < n; k++) {
        uint64_t raw = entry[k].raw;
        bool is_plain = !(raw & bits.wrong) & ((raw & bits.offset) != 0);
        c.plain |= (uint64_t)is_plain << k;
        c.other |= (uint64_t)(raw != 0) << k;
    }
    c.other &= ~c.plain;
    return c;
}

// Of `n` entries from `first` on.
static Classes classify(const Qcow2Geometry *g, const void *slice, uint32_t first, uint32_t n)
{
    uint32_t words = g->extended_l2 ? 2 : 1;
    const Be64 *entry = (const Be64 *)slice + first * words;
    if (!g->extended_l2 && !g->external_data)
        return classify_standard(g, entry, n);
    Classes c = {0};
    for (uint32_t k = 0; k < n; k++, entry += words)
        c.other |= (uint64_t)((entry[0].raw | entry[words - 1].raw) != 0) << k;
    return c;
}

// Who goes through a range.
typedef struct Scan {
    Qcow2View *view;
    GuestOff start;
    uint64_t end, at; // guest offsets
    const NodeKinds *kinds;
    uint8_t *buf; // RUN_BYTES; NULL: none was needed so far
} Scan;

// A part of a table that lies in one piece, and what it is about.
typedef struct Part {
    GuestOff off;
    HostOff host;
    uint32_t index, n; // entries, of the slice at `host`
} Part;

static void add_plain(uint64_t plain, uint64_t cell, uint32_t cells_bits, const NodeKinds *kinds)
{
    while (plain) {
        uint32_t first = (uint32_t)__builtin_ctzll(plain);
        uint64_t from_first = ~(plain >> first);
        uint32_t n = from_first ? (uint32_t)__builtin_ctzll(from_first) : 64;
        node_kinds_set(kinds->data, kinds->n_cells, cell + ((uint64_t)first << cells_bits),
                       (uint64_t)n << cells_bits);
        plain = first + n < 64 ? plain & UINT64_MAX << (first + n) : 0;
    }
}

// -EUCLEAN: an entry is damaged.
static int add_part(const Scan *scan, const Part *part, const void *slice)
{
    const Qcow2Geometry *g = &scan->view->image->geometry;
    const NodeKinds *kinds = scan->kinds;
    uint64_t cluster = (part->off.v - scan->start.v) >> g->cluster_bits;
    uint32_t cells_bits = g->cluster_bits - kinds->cell_bits;
    for (uint32_t i = 0, n; i < part->n; i += n) {
        n = MIN(part->n - i, MAX_AT_ONCE);
        uint64_t cell = (cluster + i) << cells_bits;
        Classes c = classify(g, slice, part->index + i, n);
        add_plain(c.plain, cell, cells_bits, kinds);
        for (; c.other; c.other &= c.other - 1) {
            uint32_t k = (uint32_t)__builtin_ctzll(c.other);
            if (!add_entry(g, slice, part->index + i + k, cell + ((uint64_t)k << cells_bits),
                           kinds))
                return -EUCLEAN;
        }
    }
    return 0;
}

// The slice at `off`; 1: there is no table up to the end of *ret_part, of which only `n` says
// something.
static int find_part(Qcow2View *view, uint64_t off, uint64_t end, Part *ret_part)
{
    const Qcow2Geometry *g = &view->image->geometry;
    MappingPlace place;
    HostOff host = {0};
    int r = mapping_find_slice(view, guest_off(off), &host, &place);
    uint64_t clusters = (end - off + g->cluster_bytes - 1) >> g->cluster_bits;
    if (r >= 0)
        *ret_part = (Part){guest_off(off), host, place.index, MIN(place.n_left, clusters)};
    return r;
}

static uint64_t end_of(const Qcow2View *view, const Part *part)
{
    return part->off.v + ((uint64_t)part->n << view->image->geometry.cluster_bits);
}

// So many bytes from the slice of `first` on can be read at once.
static uint64_t run_bytes(Qcow2View *view, const Part *first, uint64_t end)
{
    uint64_t slice = view->image->geometry.slice_bytes, bytes = slice;
    Part next = *first;
    while (bytes < RUN_BYTES && end_of(view, &next) < end &&
           find_part(view, end_of(view, &next), end, &next) == 0 &&
           next.host.v == first->host.v + bytes)
        bytes += slice;
    return bytes;
}

static const void *cached(const Qcow2View *view, HostOff host)
{
    const TableSlice *slice = table_cache_find(view->image->cache, view->image, host);
    return slice && slice->kind == TABLE_SLICE_L2 ? slice->data : NULL;
}

// The slices that lie from `run` on, `bytes` of which are in the buffer, as long as they are those
// that the range is told of.
static int add_run(Scan *scan, const Part *run, uint64_t bytes)
{
    Qcow2View *view = scan->view;
    uint64_t slice_bytes = view->image->geometry.slice_bytes;
    Part part = *run;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < bytes; at += slice_bytes) {
        const void *newer = cached(view, part.host);
        r = add_part(scan, &part, newer ? newer : scan->buf + at);
        scan->at = r < 0 ? part.off.v : end_of(view, &part);
        if (scan->at >= scan->end || find_part(view, scan->at, scan->end, &part) != 0 ||
            part.host.v != run->host.v + at + slice_bytes)
            break;
    }
    return r;
}

// One run of tables, or of nothing, from `at` on, which is where it ends then. -EUCLEAN: the entry
// there is damaged.
static int find_run(Fiber *self, Scan *scan)
{
    Qcow2View *view = scan->view;
    Part part, again;
    int r = find_part(view, scan->at, scan->end, &part);
    if (r > 0)
        scan->at = end_of(view, &part);
    if (r)
        return MIN(r, 0);
    uint64_t bytes = view->image->geometry.slice_bytes;
    if (!cached(view, part.host)) {
        if (!scan->buf && !(scan->buf = io_buffer_take(fiber_loop(self), RUN_BYTES)))
            return -ENOMEM;
        bytes = run_bytes(view, &part, scan->end);
        r = file_read(self, view->image->file, part.host, scan->buf, bytes);
        if (r < 0 || find_part(view, scan->at, scan->end, &again) || again.host.v != part.host.v)
            return r; // it has moved meanwhile: again
    }
    return add_run(scan, &part, bytes);
}

int view_find_kinds(Fiber *self, Node *node, GuestOff off, uint64_t len, const NodeKinds *kinds)
{
    Scan scan = {view_of(node), off, off.v + len, off.v, kinds, NULL};
    if (scan.view->image->is_shared)
        return -ENOTSUP;
    int r = 0;
    while (scan.at < scan.end && r == 0)
        r = find_run(self, &scan);
    if (scan.buf)
        io_buffer_put(fiber_loop(self), scan.buf, RUN_BYTES);
    if (r != -EUCLEAN)
        return r;
    MappingRun run;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(scan.view->image);
    r = mapping_find(self, scan.view, guest_off(scan.at), 1, &run); // says what is wrong with it
    return r < 0 ? r : -EIO;
}
