// SPDX-License-Identifier: LGPL-2.1-or-later
// New refcount structures, when the old ones are broken or have no block where one is needed. They
// are written behind everything in use, so the old ones stay valid until the header, in one synced
// write, points at the new:
//   new blocks and table → flush → header (first sector) → flush
// In a check's fiber.

#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "qcow2/check/state.h"

typedef struct Rebuild {
    Check *c;
    uint64_t base;     // first cluster of the new structures: the table, then the blocks
    uint64_t n_table;  // clusters
    uint64_t n_blocks; // blocks that hold a refcount other than 0
    uint64_t n_table_entries;
} Rebuild;

static bool range_is_referenced(const Check *c, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t *words = check_refs_find(&c->refs, first + i);
        if (!words) {
            i |= CHECK_REFS_CHUNK - 1; // on to the next chunk
            continue;
        }
        if (*words & CHECK_REFS_MAX_COUNT)
            return true;
    }
    return false;
}

static bool block_is_needed(const Check *c, uint64_t index)
{
    uint32_t bits = c->g.refcounts_per_block_bits;
    return range_is_referenced(c, index << bits, UINT64_C(1) << bits);
}

static uint64_t n_block_ranges(const Check *c)
{
    uint32_t bits = c->g.refcounts_per_block_bits;
    return (check_refs_end(&c->refs) + (UINT64_C(1) << bits) - 1) >> bits;
}

// The structures count themselves: grow them until they suffice.
static int plan(Rebuild *p)
{
    Check *c = p->c;
    for (;;) {
        uint64_t n_blocks = 0, n_entries = 0, n_ranges = n_block_ranges(c);
        for (uint64_t i = 0; i < n_ranges; i++) {
            if (!block_is_needed(c, i))
                continue;
            n_blocks++;
            n_entries = i + 1;
        }
        uint64_t n_table = (n_entries * sizeof(Be64) + c->g.cluster_bytes - 1) >> c->g.cluster_bits;
        if (n_table << c->g.cluster_bits > QCOW2_MAX_REFCOUNT_TABLE_BYTES)
            return -EFBIG;
        if (n_blocks == p->n_blocks && n_table == p->n_table) {
            p->n_table_entries = n_entries;
            return 0;
        }
        uint64_t have = p->n_table + p->n_blocks, need = n_table + n_blocks;
        if (need > have) {
            int r = check_refs_add(&c->refs, p->base + have, need - have, 1);
            if (r < 0)
                return r;
        }
        p->n_blocks = n_blocks;
        p->n_table = n_table;
    }
}

static void fill_block(const Check *c, uint64_t index)
{
    uint64_t n = UINT64_C(1) << c->g.refcounts_per_block_bits, max = qcow2_refcount_max(&c->g);
    memset(c->buf, 0, c->g.cluster_bytes);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = check_refs_count(&c->refs, index * n + i);
        if (count)
            qcow2_refcount_set(&c->g, c->buf, i, MIN(count, max));
    }
}

// Without all references known, what was in use stays so.
static int keep_old_refcounts(Check *c, uint64_t index, void *old)
{
    uint64_t off = index < c->n_blocks ? c->blocks[index] : 0;
    if (c->may_lower || !check_block_is_usable(off))
        return 0;
    int r = check_read(c, off, old, c->g.cluster_bytes, "refcount block");
    if (r < 0)
        return r;
    uint64_t n = UINT64_C(1) << c->g.refcounts_per_block_bits;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t stored = qcow2_refcount_get(&c->g, old, i);
        if (stored > qcow2_refcount_get(&c->g, c->buf, i))
            qcow2_refcount_set(&c->g, c->buf, i, stored);
    }
    return 0;
}

static int write_blocks(Rebuild *p, Be64 *table)
{
    Check *c = p->c;
    g_autofree void *old = g_try_malloc(c->g.cluster_bytes);
    if (!old)
        return -ENOMEM;
    uint64_t next = p->base + p->n_table;
    for (uint64_t i = 0; i < p->n_table_entries; i++) {
        if (!block_is_needed(c, i))
            continue;
        HostOff off = host_off(next++ << c->g.cluster_bits);
        fill_block(c, i);
        int r = keep_old_refcounts(c, i, old);
        if (r >= 0)
            r = file_write(c->self, c->file, off, c->buf, c->g.cluster_bytes);
        if (r < 0)
            return r;
        table[i] = qcow2_refcount_table_entry_encode(off);
    }
    return 0;
}

// The old structures are no longer referenced; their clusters become free.
static void forget_old(Check *c)
{
    if (c->blocks)
        check_refs_remove(&c->refs, c->h.refcount_table.v >> c->g.cluster_bits,
                          c->h.refcount_table_clusters, 1);
    for (uint64_t i = 0; i < c->n_blocks; i++)
        if (c->blocks[i] && c->blocks[i] != CHECK_BLOCK_BROKEN)
            check_refs_remove(&c->refs, c->blocks[i] >> c->g.cluster_bits, 1,
                              1); // SHARED shifts out
}

int check_rebuild_refcounts(Check *c)
{
    uint64_t n_file =
        (c->file_bytes >> c->g.cluster_bits) + ((c->file_bytes & (c->g.cluster_bytes - 1)) != 0);
    Rebuild p = {.c = c, .base = c->n_end};
    if (c->incomplete && !file_is_block_device(c->file))
        p.base = MAX(p.base, n_file);
    forget_old(c);
    int r = plan(&p);
    if (r < 0)
        return r;
    uint64_t n_all = p.n_table + p.n_blocks;
    if (file_is_block_device(c->file) && p.base + n_all > n_file)
        return -ENOSPC;

    size_t table_bytes = p.n_table << c->g.cluster_bits;
    g_autofree Be64 *table = g_try_malloc0(table_bytes);
    if (!table)
        return -ENOMEM;
    HostOff table_off = host_off(p.base << c->g.cluster_bits);
    r = write_blocks(&p, table);
    if (r >= 0)
        r = file_write(c->self, c->file, table_off, table, table_bytes);
    if (r >= 0 && !MUTANT("sync-of-rebuilt-refcounts"))
        r = file_flush(c->self, c->file);
    if (r < 0)
        return r;
    Qcow2Header next = c->h;
    next.refcount_table = table_off;
    next.refcount_table_clusters = p.n_table;
    return check_write_header(c, &next);
}
