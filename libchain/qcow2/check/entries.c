// SPDX-License-Identifier: LGPL-2.1-or-later
// What an L1 or L2 entry should be, and putting it there. An entry loses what the specification
// forbids; one of which nothing can be saved becomes "reads as zeros" (not "unallocated", which
// would let a backing file's old data show through), as far as the version has a word for it.
// In a check's fiber.

#include <string.h>

#include "qcow2/check/state.h"

const char *check_l1_entry(Check *c, Be64 *entry)
{
    Qcow2L1Entry e = qcow2_l1_entry_decode(*entry);
    if (!e.reserved_set && !e.copied && !e.l2.v)
        return NULL;
    const char *lost = NULL;
    if (e.l2.v & (c->g.cluster_bytes - 1))
        lost = "points at an unaligned offset";
    else if (e.l2.v && !check_in_file(c, e.l2.v, c->g.cluster_bytes))
        lost = "points past the end of the file";
    else if (g_hash_table_size(c->rejected) && g_hash_table_contains(c->rejected, &e.l2.v))
        lost = "points at a cluster that is something else";
    else if (!e.l2.v)
        lost = "has flags, but no table"; // which some programs follow to offset 0
    if (lost) {
        *entry = qcow2_l1_entry_encode(host_off(0), false);
        return lost;
    }
    if (!e.reserved_set)
        return NULL;
    *entry = qcow2_l1_entry_encode(e.l2, e.copied);
    return "has reserved bits set";
}

static const char *lose(const Check *c, void *words, uint32_t index, Qcow2L2Entry *ret_entry,
                        const char *fault)
{
    Qcow2L2Entry e = {.kind = QCOW2_CLUSTER_UNALLOCATED};
    if (c->g.extended_l2)
        e.zero_bitmap = UINT32_MAX;
    else if (c->h.version >= 3)
        e.kind = QCOW2_CLUSTER_ZERO;
    qcow2_l2_entry_encode(&c->g, words, index, &e);
    *ret_entry = e;
    return fault;
}

// Version 2 has no zero flag.
static bool has_forbidden_zero(const Check *c, const Qcow2L2Entry *e)
{
    return c->h.version < 3 &&
           (e->kind == QCOW2_CLUSTER_ZERO || e->kind == QCOW2_CLUSTER_ZERO_ALLOCATED);
}

static bool has_cluster(const Qcow2L2Entry *e)
{
    return e->kind == QCOW2_CLUSTER_DATA || e->kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
}

const char *check_l2_entry(Check *c, const CheckL2 *table, void *words, uint32_t index,
                           Qcow2L2Entry *ret_entry, bool *ret_mendable)
{
    *ret_mendable = true;
    *ret_entry = qcow2_l2_entry_decode(&c->g, words, index);
    const char *fault = NULL;
    bool copied_compressed = ret_entry->kind == QCOW2_CLUSTER_COMPRESSED && ret_entry->copied;
    if (ret_entry->kind == QCOW2_CLUSTER_BAD || copied_compressed ||
        has_forbidden_zero(c, ret_entry)) {
        fault = copied_compressed ? "says that a compressed cluster is unshared"
                                  : "has reserved bits set or contradicts itself";
        Qcow2L2Entry e = qcow2_l2_entry_decode_mended(&c->g, words, index);
        if (e.kind == QCOW2_CLUSTER_BAD)
            return lose(c, words, index, ret_entry,
                        "points at an impossible offset or contradicts itself");
        if (has_forbidden_zero(c, &e))
            e.kind = e.kind == QCOW2_CLUSTER_ZERO ? QCOW2_CLUSTER_UNALLOCATED : QCOW2_CLUSTER_DATA;
        qcow2_l2_entry_encode(&c->g, words, index, &e);
        *ret_entry = e;
    }
    if (c->g.external_data) {
        uint64_t guest = (table->l1_index << c->g.l2_bits | index) << c->g.cluster_bits;
        if (!has_cluster(ret_entry) || ret_entry->host.v == guest)
            return fault;
        *ret_mendable = false;
        return "names another offset of the data file than its own";
    }
    bool compressed = ret_entry->kind == QCOW2_CLUSTER_COMPRESSED;
    uint64_t len = compressed ? ret_entry->compressed_bytes : c->g.cluster_bytes;
    if ((compressed || has_cluster(ret_entry)) && !check_in_file(c, ret_entry->host.v, len))
        return lose(c, words, index, ret_entry, "points past the end of the file");
    return fault;
}

// COPIED as the comparison decided it for the cluster at `host`.
static bool should_be_copied(const Check *c, uint64_t host)
{
    const uint32_t *word = check_refs_find(&c->refs, host >> c->g.cluster_bits);
    return word && (*word & CHECK_REFS_COPIED);
}

static void mend_l1_entries(Check *c, const CheckL1 *table, Be64 *entries, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        check_l1_entry(c, &entries[i]);
        Qcow2L1Entry e = qcow2_l1_entry_decode(entries[i]);
        if (table->active && e.l2.v)
            entries[i] = qcow2_l1_entry_encode(e.l2, should_be_copied(c, e.l2.v));
    }
}

static void mend_l2_entries(Check *c, const CheckL2 *table, void *words)
{
    for (uint32_t i = 0; i < c->g.l2_entries; i++) {
        Qcow2L2Entry e;
        bool mendable;
        check_l2_entry(c, table, words, i, &e, &mendable);
        if (!table->active || !has_cluster(&e) || c->g.external_data)
            continue;
        e.copied = should_be_copied(c, e.host.v);
        qcow2_l2_entry_encode(&c->g, words, i, &e);
    }
}

// Writes the sectors of [off, off+len) that `new` changes in `old`.
static int write_changes(Check *c, uint64_t off, const uint8_t *old, const uint8_t *new, size_t len)
{
    for (size_t i = 0; i < len; i += CHECK_SECTOR_BYTES) {
        size_t n = MIN(len - i, CHECK_SECTOR_BYTES);
        if (memcmp(old + i, new + i, n) == 0)
            continue;
        int r = file_write(c->self, c->file, host_off(off + i), new + i, n);
        if (r < 0)
            return r;
    }
    return 0;
}

static int mend_l1(Check *c, const CheckL1 *table, uint8_t *old)
{
    uint64_t len = (uint64_t)table->n_entries * sizeof(Be64);
    for (uint64_t pos = 0; pos < len; pos += c->g.cluster_bytes) {
        size_t n = MIN(len - pos, c->g.cluster_bytes);
        int r = check_read(c, table->off + pos, c->buf, n, "L1 table");
        if (r < 0)
            return r;
        memcpy(old, c->buf, n);
        mend_l1_entries(c, table, (Be64 *)c->buf, n / sizeof(Be64));
        r = write_changes(c, table->off + pos, old, c->buf, n);
        if (r < 0)
            return r;
    }
    return 0;
}

static int mend_l2(Check *c, const CheckL2 *table, uint8_t *old)
{
    int r = check_read(c, table->off, c->buf, c->g.cluster_bytes, "L2 table");
    if (r < 0)
        return r;
    memcpy(old, c->buf, c->g.cluster_bytes);
    mend_l2_entries(c, table, c->buf);
    return write_changes(c, table->off, old, c->buf, c->g.cluster_bytes);
}

int check_mend_entries(Check *c)
{
    g_autofree uint8_t *old = g_try_malloc(c->g.cluster_bytes);
    if (!old)
        return -ENOMEM;
    int r = 0;
    // L2 tables first: an L1 entry that is cleared takes its table out of sight.
    for (guint i = 0; i < c->l2s->len && r >= 0; i++) {
        const CheckL2 *table = &g_array_index(c->l2s, CheckL2, i);
        if (table->n_faults || (table->active && c->n_copied))
            r = mend_l2(c, table, old);
    }
    for (guint i = 0; i < c->l1s->len && r >= 0; i++) {
        const CheckL1 *table = &g_array_index(c->l1s, CheckL1, i);
        if (table->n_faults || (table->active && c->n_copied))
            r = mend_l1(c, table, old);
    }
    return r;
}
