// SPDX-License-Identifier: LGPL-2.1-or-later
// The scan: who references which cluster. All L1 tables are read first and give the set of L2
// tables, each with the number of entries that point at it; then each L2 table is read once, in
// the order of the file, whatever number of snapshots share it. So the time depends on the tables
// that exist, also when a hostile image names one table a million times.
//
// A corrupt L1 entry may point at any cluster: data, or another table. An L2 table that is used
// otherwise too, and does not look like one, is rejected, and the scan starts again without it.
// In a check's fiber; reads only.

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "qcow2/check/state.h"

enum { MAX_ROUNDS = 8, MERGE_SLACK = 65536 };
// Snapshots' L1 tables in all; beyond it a check would take hours.
#define MAX_L1_ENTRIES_IN_ALL (UINT64_C(1) << 30)

static int compare_l1(const void *a, const void *b)
{
    const CheckL1 *x = a, *y = b;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    return x->n_entries < y->n_entries ? -1 : x->n_entries > y->n_entries;
}

static int compare_l2(const void *a, const void *b)
{
    const CheckL2 *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static uint32_t saturating_add(uint32_t a, uint32_t b)
{
    return MIN((uint64_t)a + b, CHECK_REFS_MAX_COUNT);
}

// The active table stays apart, first: its entries are checked for COPIED.
static void merge_l1s(GArray *l1s)
{
    CheckL1 *t = (CheckL1 *)l1s->data;
    if (l1s->len < 3)
        return;
    qsort(t + 1, l1s->len - 1, sizeof(*t), compare_l1);
    guint n = 2;
    for (guint i = 2; i < l1s->len; i++) {
        if (compare_l1(&t[n - 1], &t[i]) == 0)
            t[n - 1].weight = saturating_add(t[n - 1].weight, t[i].weight);
        else
            t[n++] = t[i];
    }
    g_array_set_size(l1s, n);
}

static void merge_l2s(GArray *l2s)
{
    CheckL2 *t = (CheckL2 *)l2s->data;
    if (l2s->len < 2)
        return;
    qsort(t, l2s->len, sizeof(*t), compare_l2);
    guint n = 1;
    for (guint i = 1; i < l2s->len; i++) {
        CheckL2 *last = &t[n - 1];
        if (last->off != t[i].off) {
            t[n++] = t[i];
            continue;
        }
        last->weight = saturating_add(last->weight, t[i].weight);
        if (t[i].active && !last->active)
            last->l1_index = t[i].l1_index;
        last->active = last->active || t[i].active;
    }
    g_array_set_size(l2s, n);
}

// Notes what an active entry says about sharing.
static void mark_copied(const Check *c, uint64_t host, bool copied)
{
    uint32_t *word = check_refs_find(&c->refs, host >> c->g.cluster_bits);
    if (word)
        *word |= copied ? CHECK_REFS_COPIED : CHECK_REFS_NOT_COPIED;
}

// --- L1

static void scan_l1_entries(Check *c, CheckL1 *table, uint64_t first, Be64 *entries, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!entries[i].raw)
            continue;
        const char *fault = check_l1_entry(c, &entries[i]);
        if (fault) {
            table->n_faults++;
            check_fault(c, true, "entry %" PRIu64 " of the L1 table at offset %#" PRIx64 " %s",
                        first + i, table->off, fault);
        }
        Qcow2L1Entry e = qcow2_l1_entry_decode(entries[i]);
        if (!e.l2.v)
            continue;
        CheckL2 l2 = {
            .off = e.l2.v, .l1_index = first + i, .weight = table->weight, .active = table->active};
        g_array_append_val(c->l2s, l2);
    }
}

static int scan_l1(Check *c, CheckL1 *table)
{
    uint64_t len = (uint64_t)table->n_entries * sizeof(Be64);
    int r = check_add(c, table->off, len, table->weight);
    for (uint64_t pos = 0; pos < len && r >= 0; pos += c->buf_bytes) {
        size_t n = MIN(len - pos, c->buf_bytes);
        if (check_read(c, table->off + pos, c->buf, n, "L1 table") >= 0)
            scan_l1_entries(c, table, pos / sizeof(Be64), (Be64 *)c->buf, n / sizeof(Be64));
    }
    return r;
}

static int scan_l1s(Check *c)
{
    merge_l1s(c->l1s);
    uint64_t n_in_all = 0, n_merged = 0;
    for (guint i = 0; i < c->l1s->len; i++) {
        CheckL1 *table = &g_array_index(c->l1s, CheckL1, i);
        n_in_all += table->n_entries;
        if (n_in_all > MAX_L1_ENTRIES_IN_ALL)
            return -EFBIG;
        int r = scan_l1(c, table);
        if (r < 0)
            return r;
        if (c->l2s->len > 2 * n_merged + MERGE_SLACK) {
            merge_l2s(c->l2s);
            n_merged = c->l2s->len;
        }
    }
    merge_l2s(c->l2s);
    return 0;
}

// COPIED of active L1 entries. After the L2 tables are counted, because a mark needs a counter.
static void mark_l1_copied(Check *c, const CheckL1 *table)
{
    uint64_t len = (uint64_t)table->n_entries * sizeof(Be64);
    for (uint64_t pos = 0; pos < len; pos += c->buf_bytes) {
        size_t n = MIN(len - pos, c->buf_bytes);
        if (check_read(c, table->off + pos, c->buf, n, "L1 table") < 0)
            continue;
        Be64 *entries = (Be64 *)c->buf;
        for (uint32_t i = 0; i < n / sizeof(Be64); i++) {
            check_l1_entry(c, &entries[i]);
            Qcow2L1Entry e = qcow2_l1_entry_decode(entries[i]);
            if (e.l2.v)
                mark_copied(c, e.l2.v, e.copied);
        }
    }
}

// --- L2

// What `qemu-img check` tells about the layout of the active disk, within one table.
static void count_fragments(Check *c, const Qcow2L2Entry *e, uint64_t *next_host)
{
    Qcow2CheckResult *result = c->result;
    result->n_allocated_clusters++;
    if (e->kind == QCOW2_CLUSTER_COMPRESSED) {
        result->n_compressed_clusters++;
        result->n_fragmented_clusters++;
        return;
    }
    if (*next_host && e->host.v != *next_host)
        result->n_fragmented_clusters++;
    *next_host = e->host.v + c->g.cluster_bytes;
}

static int scan_l2_entry(Check *c, CheckL2 *table, void *words, uint32_t index, uint64_t *next_host)
{
    Qcow2L2Entry e;
    bool mendable;
    const char *fault = check_l2_entry(c, table, words, index, &e, &mendable);
    if (fault) {
        table->n_faults += mendable;
        check_fault(c, mendable, "entry %" PRIu32 " of the L2 table at offset %#" PRIx64 " %s",
                    index, table->off, fault);
    }
    if (e.kind == QCOW2_CLUSTER_UNALLOCATED || e.kind == QCOW2_CLUSTER_ZERO)
        return 0;
    if (table->active)
        count_fragments(c, &e, next_host);
    if (c->g.external_data)
        return 0;
    if (e.kind == QCOW2_CLUSTER_COMPRESSED) {
        // Sectors are what its descriptor covers, from the start of the first.
        uint64_t start = e.host.v & ~UINT64_C(511);
        return check_add(c, start, e.host.v - start + e.compressed_bytes, table->weight);
    }
    int r = check_refs_add(&c->refs, e.host.v >> c->g.cluster_bits, 1, table->weight);
    if (table->active)
        mark_copied(c, e.host.v, e.copied);
    return r;
}

static int scan_l2_entries(Check *c, CheckL2 *table, void *words)
{
    const Be64 *entries = words;
    uint32_t step = c->g.l2_entry_bytes / sizeof(Be64);
    uint64_t next_host = 0;
    for (uint32_t i = 0; i < c->g.l2_entries; i++) {
        if (!entries[i * step].raw && (step == 1 || !entries[i * step + 1].raw))
            continue;
        int r = scan_l2_entry(c, table, words, i, &next_host);
        if (r < 0)
            return r;
    }
    return 0;
}

// How many tables from `first` on lie one behind the other and fit the buffer together.
static guint adjacent_l2s(const Check *c, guint first)
{
    const CheckL2 *t = (const CheckL2 *)c->l2s->data;
    guint n = 1, max = c->buf_bytes >> c->g.cluster_bits;
    while (n < max && first + n < c->l2s->len &&
           t[first + n].off == t[first + n - 1].off + c->g.cluster_bytes)
        n++;
    return n;
}

static int scan_l2s(Check *c)
{
    int r = 0;
    CheckL2 *t = (CheckL2 *)c->l2s->data;
    for (guint i = 0; i < c->l2s->len && r >= 0; i++)
        r = check_add(c, t[i].off, c->g.cluster_bytes, t[i].weight);
    for (guint i = 0, n; i < c->l2s->len && r >= 0; i += n) {
        n = adjacent_l2s(c, i);
        size_t len = (size_t)n << c->g.cluster_bits;
        if (check_read(c, t[i].off, c->buf, len, "L2 table") < 0)
            continue;
        for (guint k = 0; k < n && r >= 0; k++)
            r = scan_l2_entries(c, &t[i + k], c->buf + ((size_t)k << c->g.cluster_bits));
    }
    return r;
}

// --- The whole

// L2 tables with faults that are in other use too are not tables. True when the scan must be done
// again without them.
static bool reject_overlapping_l2s(Check *c)
{
    guint before = g_hash_table_size(c->rejected);
    for (guint i = 0; i < c->l2s->len; i++) {
        const CheckL2 *table = &g_array_index(c->l2s, CheckL2, i);
        if (!table->n_faults ||
            check_refs_count(&c->refs, table->off >> c->g.cluster_bits) == table->weight)
            continue;
        g_hash_table_add(c->rejected, g_memdup2(&table->off, sizeof(table->off)));
    }
    return g_hash_table_size(c->rejected) > before;
}

// The same for snapshots' L1 tables, whose fault is in the snapshot table: nothing is mended there.
static void keep_overlapping_l1s(Check *c)
{
    for (guint i = 0; i < c->l1s->len; i++) {
        CheckL1 *table = &g_array_index(c->l1s, CheckL1, i);
        uint64_t first = table->off >> c->g.cluster_bits, len = (uint64_t)table->n_entries * 8;
        bool overlaps = false;
        for (uint64_t k = 0; table->n_faults && k << c->g.cluster_bits < len; k++)
            overlaps |= check_refs_count(&c->refs, first + k) != table->weight;
        if (!overlaps)
            continue;
        c->n_fixable -= table->n_faults;
        c->n_lasting += table->n_faults;
        table->n_faults = 0;
        c->incomplete = true;
    }
}

static void reset(Check *c)
{
    check_refs_done(&c->refs);
    g_array_set_size(c->l1s, 0);
    g_array_set_size(c->l2s, 0);
    g_clear_pointer(&c->blocks, g_free);
    c->n_blocks = 0;
    c->incomplete = c->rebuild = c->bitmaps_lost = false;
    c->n_fixable = c->n_lasting = c->n_structure = c->n_messages = 0;
    GPtrArray *messages = c->result->messages;
    g_ptr_array_set_size(messages, 0);
    // Once something could not be read, this run lowers no refcount and clears no mark any more.
    *c->result =
        (Qcow2CheckResult){.messages = messages, .n_check_errors = c->result->n_check_errors};
    c->result->n_total_clusters = (c->g.size_bytes >> c->g.cluster_bits) +
                                  ((c->g.size_bytes & (c->g.cluster_bytes - 1)) != 0);
}

static int scan_once(Check *c)
{
    reset(c);
    int r = check_add(c, 0, c->g.cluster_bytes, 1);
    CheckL1 active = {.off = c->h.l1.v, .n_entries = c->h.l1_entries, .weight = 1, .active = true};
    g_array_append_val(c->l1s, active);
    if (r >= 0)
        r = check_scan_snapshots(c);
    if (r >= 0)
        r = check_scan_bitmaps(c);
    if (r >= 0)
        r = check_scan_refcount_structures(c);
    if (r >= 0)
        r = scan_l1s(c);
    if (r >= 0)
        r = scan_l2s(c);
    if (r < 0)
        return r;
    mark_l1_copied(c, &g_array_index(c->l1s, CheckL1, 0));
    return 0;
}

int check_scan(Check *c)
{
    for (unsigned round = 0;; round++) {
        bool dropped = c->drop_bitmaps;
        int r = scan_once(c);
        if (r < 0)
            return r;
        bool again = reject_overlapping_l2s(c) || c->drop_bitmaps != dropped;
        if (!again)
            break;
        // Each round leads further into garbage: leave such an image alone.
        if (round == MAX_ROUNDS) {
            c->n_lasting += c->n_fixable;
            c->n_fixable = 0;
            c->incomplete = true;
            return 0;
        }
    }
    keep_overlapping_l1s(c);
    return 0;
}
