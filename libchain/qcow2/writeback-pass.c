// SPDX-License-Identifier: LGPL-2.1-or-later
// A pass holds pieces (copies of slices and of sectors of tables) in three groups, and writes
//
//     early    refcount slices, slices of L2 tables that nothing on disk names yet    → sync
//     entries  refcount table entries of new blocks, when there are any               → sync
//     late     slices of linked L2 tables, L1 entries                                 → sync
//
// (docs/ordering.md §2, §3, §6; the first sync covers data and copied edges as well, §1.)
//
// A piece that cannot be written takes with it what must not be on disk before it, and no more:
//
//     refcount slice  ──▶ its clusters are uncounted; if its block is new, all that the block
//                         counts, and the block's entry keeps what the disk says
//     uncounted       ──▶ L2 slices that name such a cluster; new tables that lie in one
//     new L2 table    ──▶ its L1 entry keeps what the disk says
//     L1 entry        ──▶ what its table's slices freed stays in use
//
// All of this is looked at only after a failure. What failed is dirty again and part of the next
// pass, so each pass judges anew. In a fiber on the image's loop.

#include "qcow2/writeback-pass.h"
#include "chain-core/debug-event.h"
#include "chain-core/mutant.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SECTOR_BYTES = 512, SECTOR_ENTRIES = SECTOR_BYTES / sizeof(Be64) };

// A piece of metadata on its way to the disk: a copy, so that the original may change.
typedef struct Piece {
    HostOff off;
    uint32_t bytes;
    uint8_t *data;
    TableSlice *slice; // held until the end; NULL: a sector of a table
    bool has_failed;   // could not, or must not, be written
} Piece;

// The changed entries of a table that go with a pass.
typedef struct Entries {
    EntryTable *table;
    GArray *changed; // ChangedEntry
    GArray *failed;  // ChangedEntry: of these, what cannot or must not be on disk yet
    uint8_t *sectors;
} Entries;

struct WritebackPass {
    WritebackParts *parts;
    GArray *early, *entries, *late; // Piece
    Entries refcount_table, l1;
    uint64_t *new_tables; // clusters of L2 tables that nothing on disk names
    uint64_t n_new_tables;
    GArray *freed;     // FreedRange
    uint8_t *slices;   // the copies
    GArray *uncounted; // ClusterRange: their refcounts are not on disk
    int error;         // the first of a piece
};

// --- copying -------------------------------------------------------------------------------------

static uint64_t cluster_of(const WritebackPass *p, HostOff off)
{
    return off.v >> p->parts->geometry->cluster_bits;
}

static bool is_of_new_table(const WritebackPass *p, const TableSlice *s)
{
    const ClusterSet *set = &p->parts->metadata->new_tables;
    return set->n && !MUTANT("new-table-before-l1") &&
           cluster_set_contains(set, cluster_of(p, s->host));
}

static void copy_slices(WritebackPass *p)
{
    TableSliceList *dirty = &p->parts->dirty;
    uint32_t slice_bytes = p->parts->geometry->slice_bytes;
    uint8_t *copy = p->slices = dirty->n ? g_malloc(dirty->n * slice_bytes) : NULL;
    while (dirty->first) {
        TableSlice *slice = dirty->first;
        memcpy(copy, slice->data, slice_bytes);
        Piece piece = {slice->host, slice_bytes, copy, slice, false};
        bool is_early = slice->kind == TABLE_SLICE_REFCOUNT || is_of_new_table(p, slice);
        if (slice->kind == TABLE_SLICE_REFCOUNT && MUTANT("refcounts-before-entries"))
            is_early = false;
        g_array_append_val(is_early ? p->early : p->late, piece);
        copy += slice_bytes;
        table_slice_begin_write(slice, dirty);
    }
}

// The sectors in which entries of `table` changed. NULL: nothing.
static void copy_entries(Entries *e, EntryTable *table, GArray *pieces)
{
    *e = (Entries){.table = table, .failed = g_array_new(false, false, sizeof(ChangedEntry))};
    e->changed =
        table ? entry_table_take_changes(table) : g_array_new(false, false, sizeof(ChangedEntry));
    uint8_t *copy = e->sectors = g_malloc((gsize)e->changed->len * SECTOR_BYTES);
    uint64_t last = UINT64_MAX;
    for (guint i = 0; i < e->changed->len; i++) {
        uint64_t first = g_array_index(e->changed, ChangedEntry, i).index;
        first -= first % SECTOR_ENTRIES;
        if (first == last)
            continue;
        last = first;
        uint32_t bytes = MIN(SECTOR_ENTRIES, table->n - first) * sizeof(Be64);
        memcpy(copy, table->entries + first, bytes);
        Piece piece = {entry_table_place(table, first), bytes, copy, NULL, false};
        g_array_append_val(pieces, piece);
        copy += SECTOR_BYTES;
    }
}

WritebackPass *writeback_pass_begin(WritebackParts *parts)
{
    WritebackPass *p = g_new0(WritebackPass, 1);
    p->parts = parts;
    p->early = g_array_new(false, false, sizeof(Piece));
    p->entries = g_array_new(false, false, sizeof(Piece));
    p->late = g_array_new(false, false, sizeof(Piece));
    p->uncounted = g_array_new(false, false, sizeof(ClusterRange));
    copy_slices(p);
    copy_entries(&p->refcount_table, parts->refcount_table, p->entries);
    copy_entries(&p->l1, parts->l1, p->late);
    p->new_tables = cluster_set_list(&parts->metadata->new_tables, &p->n_new_tables);
    p->freed = freed_take(parts->freed);
    return p;
}

// --- writing pieces ------------------------------------------------------------------------------

static int compare_pieces(const void *a, const void *b)
{
    const Piece *x = a, *y = b;
    return (x->off.v > y->off.v) - (x->off.v < y->off.v);
}

static void announce(const WritebackPass *p, const GArray *pieces, const Piece *piece)
{
    File *file = p->parts->file;
    if (!piece->slice)
        file_debug_event(file, pieces == p->late ? DEBUG_L1_UPDATE : DEBUG_REFBLOCK_ALLOC_HOOKUP);
    else if (piece->slice->kind == TABLE_SLICE_REFCOUNT)
        file_debug_event(file, DEBUG_REFBLOCK_UPDATE_PART);
    else
        file_debug_event(file, DEBUG_L2_UPDATE);
}

// All in one batch, neighbours together.
static int write_together(Fiber *self, const WritebackPass *pass, GArray *pieces)
{
    File *file = pass->parts->file;
    IoBatch batch;
    io_batch_init(&batch, self);
    for (guint i = 0; i < pieces->len;) {
        struct iovec iov[FILE_MAX_IOV];
        unsigned n = 0;
        HostOff start = g_array_index(pieces, Piece, i).off;
        uint64_t end = start.v;
        while (i < pieces->len && n < FILE_MAX_IOV) {
            Piece *p = &g_array_index(pieces, Piece, i);
            if (p->off.v != end || p->has_failed)
                break;
            announce(pass, pieces, p);
            iov[n++] = (struct iovec){p->data, p->bytes};
            end += p->bytes;
            i++;
        }
        if (n)
            file_write_start(file, start, iov, n, &batch);
        else
            i++; // a piece that has failed
    }
    return io_batch_wait(self, &batch);
}

// Which of them is it that cannot be written? Again, each by itself, some at a time.
static void write_apart(Fiber *self, WritebackPass *p, GArray *pieces)
{
    enum { AT_A_TIME = 16 };
    for (guint start = 0; start < pieces->len; start += AT_A_TIME) {
        IoBatch batches[AT_A_TIME];
        guint end = MIN(start + AT_A_TIME, pieces->len);
        for (guint i = start; i < end; i++) {
            Piece *piece = &g_array_index(pieces, Piece, i);
            struct iovec iov = {piece->data, piece->bytes};
            io_batch_init(&batches[i - start], self);
            if (!piece->has_failed)
                file_write_start(p->parts->file, piece->off, &iov, 1, &batches[i - start]);
        }
        for (guint i = start; i < end; i++) {
            Piece *piece = &g_array_index(pieces, Piece, i);
            int r = io_batch_wait(self, &batches[i - start]);
            piece->has_failed |= r < 0;
            if (r == -EIO && piece->slice)
                piece->slice->is_unwritable = true;
            if (r < 0 && !p->error)
                p->error = r;
        }
    }
}

// A failed piece is marked. <0: the sync after them failed.
static int write_pieces(Fiber *self, WritebackPass *p, GArray *pieces)
{
    g_array_sort(pieces, compare_pieces);
    if (write_together(self, p, pieces) < 0)
        write_apart(self, p, pieces);
    if ((pieces == p->early && MUTANT("sync-of-early-group")) ||
        (pieces == p->entries && MUTANT("sync-of-entries")) ||
        (pieces == p->late && MUTANT("sync-of-late-group")))
        return 0;
    return file_flush(self, p->parts->file);
}

// --- what depends on a piece that failed ---------------------------------------------------------

static int compare_ranges(const void *a, const void *b)
{
    const ClusterRange *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

// All have been added: sorts and merges them, for look-ups.
static void sort_uncounted(WritebackPass *p)
{
    GArray *ranges = p->uncounted;
    guint n = 0;
    g_array_sort(ranges, compare_ranges);
    for (guint i = 0; i < ranges->len; i++) {
        ClusterRange next = g_array_index(ranges, ClusterRange, i);
        ClusterRange *last = n ? &g_array_index(ranges, ClusterRange, n - 1) : NULL;
        if (last && next.first <= last->first + last->n)
            last->n = MAX(last->n, next.first + next.n - last->first);
        else
            g_array_index(ranges, ClusterRange, n++) = next;
    }
    g_array_set_size(ranges, n);
}

// With bsearch(): `key` may overlap one of the ranges, which do not overlap each other.
static int compare_overlap(const void *key, const void *range)
{
    const ClusterRange *x = key, *y = range;
    return cluster_range_overlaps(*x, *y) ? 0 : compare_ranges(x, y);
}

static bool is_uncounted(const WritebackPass *p, ClusterRange range)
{
    const GArray *ranges = p->uncounted;
    return ranges->len && !MUTANT("uncounted-holds-back-entry") &&
           bsearch(&range, ranges->data, ranges->len, sizeof(ClusterRange), compare_overlap);
}

static bool names_uncounted(const WritebackPass *p, const Piece *piece)
{
    const Qcow2Geometry *g = p->parts->geometry;
    for (uint32_t i = 0; i < g->slice_entries; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, piece->data, i);
        ClusterRange range;
        if (cluster_range_of_entry(g, &e, &range) && is_uncounted(p, range))
            return true;
    }
    return false;
}

static void fail_entry(Entries *e, ChangedEntry change)
{
    for (guint i = 0; i < e->failed->len; i++)
        if (g_array_index(e->failed, ChangedEntry, i).index == change.index)
            return;
    g_array_append_val(e->failed, change);
}

// The entry keeps what the disk says, in the sector of `pieces` that holds it.
static void keep_old_entry(Entries *e, ChangedEntry change, GArray *pieces)
{
    HostOff place = entry_table_place(e->table, change.index);
    for (guint i = 0; i < pieces->len; i++) {
        Piece *piece = &g_array_index(pieces, Piece, i);
        if (place.v >= piece->off.v && place.v < piece->off.v + piece->bytes)
            memcpy(piece->data + (place.v - piece->off.v), &change.on_disk, sizeof(Be64));
    }
    fail_entry(e, change);
}

static void add_uncounted(WritebackPass *p, uint64_t first, uint64_t n)
{
    ClusterRange range = {first, n};
    g_array_append_val(p->uncounted, range);
}

// The first of `pieces`, which are sorted, at `off` or behind it.
static guint find_piece(const GArray *pieces, HostOff off)
{
    guint low = 0, high = pieces->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(pieces, Piece, middle).off.v < off.v)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool has_failed_piece_in(const GArray *pieces, HostOff off, uint64_t bytes)
{
    for (guint i = find_piece(pieces, off); i < pieces->len; i++) {
        const Piece *piece = &g_array_index(pieces, Piece, i);
        if (piece->off.v >= off.v + bytes)
            break;
        if (piece->has_failed)
            return true;
    }
    return false;
}

// Refcounts that could not be written, after `early`: which clusters they count, and which new
// blocks must not be entered in the table.
static void judge_blocks(WritebackPass *p)
{
    const Qcow2Geometry *g = p->parts->geometry;
    const EntryTable *table = p->parts->refcount_table;
    uint64_t per_slice = (uint64_t)g->slice_bytes * 8 >> g->refcount_order;
    for (uint64_t k = 0; k < table->n; k++) {
        uint64_t block = be64_get(table->entries[k]);
        for (guint i = find_piece(p->early, host_off(block)); block && i < p->early->len; i++) {
            const Piece *piece = &g_array_index(p->early, Piece, i);
            if (piece->off.v >= block + g->cluster_bytes)
                break;
            if (piece->has_failed && piece->slice->kind == TABLE_SLICE_REFCOUNT)
                add_uncounted(p,
                              (k << g->refcounts_per_block_bits) +
                                  (piece->off.v - block) / g->slice_bytes * per_slice,
                              per_slice);
        }
    }
    for (guint i = 0; i < p->refcount_table.changed->len; i++) {
        ChangedEntry change = g_array_index(p->refcount_table.changed, ChangedEntry, i);
        HostOff block = host_off(be64_get(table->entries[change.index]));
        if (!has_failed_piece_in(p->early, block, g->cluster_bytes) ||
            MUTANT("failed-block-holds-back-entry"))
            continue;
        keep_old_entry(&p->refcount_table, change, p->entries);
        add_uncounted(p, change.index << g->refcounts_per_block_bits,
                      UINT64_C(1) << g->refcounts_per_block_bits);
    }
    sort_uncounted(p);
}

// Entries whose sector could not be written.
static void judge_sectors(Entries *e, const GArray *pieces)
{
    for (guint i = 0; i < e->changed->len; i++) {
        ChangedEntry change = g_array_index(e->changed, ChangedEntry, i);
        uint64_t first = change.index - change.index % SECTOR_ENTRIES;
        if (has_failed_piece_in(pieces, entry_table_place(e->table, first), 1))
            fail_entry(e, change);
    }
}

static void judge_refcount_table(WritebackPass *p)
{
    uint32_t bits = p->parts->geometry->refcounts_per_block_bits;
    judge_sectors(&p->refcount_table, p->entries);
    for (guint i = 0; i < p->refcount_table.failed->len; i++)
        add_uncounted(p, g_array_index(p->refcount_table.failed, ChangedEntry, i).index << bits,
                      UINT64_C(1) << bits);
    sort_uncounted(p);
}

// A new table is fit for its L1 entry once all of it, and what it names, is on disk. A slice that
// waits stays dirty, so that the next pass looks again.
static bool is_fit(WritebackPass *p, uint64_t cluster)
{
    bool is_fit = !is_uncounted(p, (ClusterRange){cluster, 1});
    for (guint i = 0; i < p->early->len; i++) {
        Piece *piece = &g_array_index(p->early, Piece, i);
        if (cluster_of(p, piece->off) != cluster)
            continue;
        piece->has_failed |= names_uncounted(p, piece);
        is_fit &= !piece->has_failed;
    }
    return is_fit;
}

// §6: what is written is durable. Whatever becomes of the L1 write, it may reach the disk, so from
// now on slices of these tables are those of linked tables.
static void link_new_tables(WritebackPass *p)
{
    ClusterSet *set = &p->parts->metadata->new_tables;
    for (uint64_t i = 0; i < p->n_new_tables; i++)
        if (!p->error || is_fit(p, p->new_tables[i]) || MUTANT("failed-table-holds-back-l1"))
            cluster_set_remove(set, p->new_tables[i]);
}

// What must not be on disk yet because of what failed before.
static void hold_back(WritebackPass *p)
{
    for (guint i = 0; i < p->late->len; i++) {
        Piece *piece = &g_array_index(p->late, Piece, i);
        piece->has_failed |= piece->slice && names_uncounted(p, piece);
    }
    for (guint i = 0; i < p->l1.changed->len; i++) {
        ChangedEntry change = g_array_index(p->l1.changed, ChangedEntry, i);
        Qcow2L1Entry e = qcow2_l1_entry_decode(p->l1.table->entries[change.index]);
        if (cluster_set_contains(&p->parts->metadata->new_tables, cluster_of(p, e.l2)))
            keep_old_entry(&p->l1, change, p->late);
    }
}

int writeback_pass_write(Fiber *self, WritebackPass *p)
{
    // §2: data and copied edges were complete when their L2 entries were made, so this sync covers
    // them; in a file of its own they have a sync of their own, before anything is written (§1).
    int r = 0;
    if (p->parts->data_file && !MUTANT("sync-of-data-file"))
        r = file_flush(self, p->parts->data_file);
    if (r < 0)
        return r;
    r = write_pieces(self, p, p->early);
    if (r == 0 && p->error)
        judge_blocks(p);
    // §3: a table entry only after the block it names.
    if (r == 0 && p->entries->len) {
        r = write_pieces(self, p, p->entries);
        if (r == 0 && p->error)
            judge_refcount_table(p);
    }
    if (r < 0)
        return r;
    link_new_tables(p);
    if (p->error)
        hold_back(p);
    if (p->late->len)
        r = write_pieces(self, p, p->late);
    if (r == 0 && p->error)
        judge_sectors(&p->l1, p->late);
    return r;
}

// --- the end -------------------------------------------------------------------------------------

static void end_pieces(WritebackPass *p, GArray *pieces, WritebackRest *rest)
{
    for (guint i = 0; i < pieces->len; i++) {
        Piece *piece = &g_array_index(pieces, Piece, i);
        if (!piece->slice)
            continue;
        bool is_durable = rest->result == 0 && !piece->has_failed;
        table_slice_end_write(piece->slice, &p->parts->dirty, is_durable);
        if (!is_durable && piece->slice->kind == TABLE_SLICE_L2)
            g_array_append_val(rest->places, piece->off.v);
    }
    g_array_unref(pieces);
}

// The entry, and its table, of which the disk names no slice: what these freed, the disk may still
// name in the table that it had before.
static void fail_l1_entry(const WritebackPass *p, HostOff place, Be64 entry, GArray *places)
{
    HostOff table = qcow2_l1_entry_decode(entry).l2;
    g_array_append_val(places, place.v);
    for (uint64_t o = 0; o < p->parts->geometry->cluster_bytes;
         o += p->parts->geometry->slice_bytes) {
        uint64_t slice = table.v + o;
        g_array_append_val(places, slice);
    }
}

static void end_entries(WritebackPass *p, Entries *e, WritebackRest *rest)
{
    const GArray *lost = rest->result < 0 ? e->changed : e->failed;
    for (guint i = 0; i < lost->len; i++) {
        ChangedEntry change = g_array_index(lost, ChangedEntry, i);
        HostOff place = entry_table_place(e->table, change.index);
        entry_table_put_back(e->table, change);
        if (e == &p->l1)
            fail_l1_entry(p, place, e->table->entries[change.index], rest->places);
    }
    g_array_unref(e->changed);
    g_array_unref(e->failed);
    g_free(e->sectors);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

bool writeback_rest_has(const WritebackRest *rest, HostOff place)
{
    const GArray *places = rest->places;
    return places->len &&
           bsearch(&place.v, places->data, places->len, sizeof(uint64_t), compare_u64);
}

void writeback_pass_end(WritebackPass *p, int result, WritebackRest *rest)
{
    g_array_set_size(rest->places, 0);
    rest->result = result;
    rest->error = p->error;
    rest->has_refcounts = result < 0 || p->uncounted->len;
    end_pieces(p, p->early, rest);
    end_pieces(p, p->entries, rest);
    end_pieces(p, p->late, rest);
    end_entries(p, &p->refcount_table, rest);
    end_entries(p, &p->l1, rest);
    g_array_sort(rest->places, compare_u64);
    for (guint i = 0; i < p->freed->len; i++) {
        FreedRange freed = g_array_index(p->freed, FreedRange, i);
        if ((result < 0 || writeback_rest_has(rest, freed.by)) &&
            !MUTANT("failed-piece-holds-back-freed"))
            freed_add(p->parts->freed, freed.range, freed.by);
        else
            freed_add_durable(p->parts->freed, freed.range);
    }
    g_free(p->new_tables);
    g_array_unref(p->freed);
    g_array_unref(p->uncounted);
    g_free(p->slices);
    g_free(p);
}
