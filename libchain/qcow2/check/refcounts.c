// SPDX-License-Identifier: LGPL-2.1-or-later
// Refcounts as they are on disk beside the references that the scan counted: the comparison, and
// raising or lowering them in place. COPIED flags are judged here too, against the refcount that
// will stand when this run is over. In a check's fiber.

#include <errno.h>
#include <inttypes.h>

#include "chain-core/zeros.h"
#include "qcow2/check/state.h"

// --- The structures themselves

static int fault_of_structure(Check *c, const char *what, uint64_t off)
{
    c->result->n_corruptions++;
    c->n_structure++;
    c->rebuild = true;
    check_message(c, "the %s at offset %#" PRIx64 " is not usable", what, off);
    return 0;
}

static int take_block(Check *c, uint64_t index, Be64 raw)
{
    HostOff block;
    c->n_blocks = index + 1;
    if (qcow2_refcount_table_entry_decode(&c->g, raw, &block) &&
        check_in_file(c, block.v, c->g.cluster_bytes)) {
        c->blocks[index] = block.v;
        return check_add(c, block.v, c->g.cluster_bytes, 1);
    }
    c->blocks[index] = CHECK_BLOCK_BROKEN;
    return fault_of_structure(c, "refcount block", be64_get(raw));
}

int check_scan_refcount_structures(Check *c)
{
    uint64_t len = (uint64_t)c->h.refcount_table_clusters << c->g.cluster_bits;
    if (!check_in_file(c, c->h.refcount_table.v, len))
        return fault_of_structure(c, "refcount table", c->h.refcount_table.v);
    c->blocks = g_try_new0(uint64_t, len / sizeof(Be64));
    if (!c->blocks)
        return -ENOMEM;
    int r = check_add(c, c->h.refcount_table.v, len, 1);
    for (uint64_t pos = 0; pos < len && r >= 0; pos += c->buf_bytes) {
        size_t n = MIN(len - pos, c->buf_bytes);
        if (check_read(c, c->h.refcount_table.v + pos, c->buf, n, "refcount table") < 0)
            continue;
        const Be64 *entries = (const Be64 *)c->buf;
        for (size_t i = 0; i < n / sizeof(Be64) && r >= 0; i++)
            if (entries[i].raw)
                r = take_block(c, pos / sizeof(Be64) + i, entries[i]);
    }
    return r;
}

// A table or block that something else points at as well cannot be trusted, nor written.
static void check_structures_are_alone(Check *c)
{
    for (uint32_t i = 0; c->blocks && i < c->h.refcount_table_clusters; i++) {
        uint64_t off = c->h.refcount_table.v + ((uint64_t)i << c->g.cluster_bits);
        if (check_refs_count(&c->refs, off >> c->g.cluster_bits) != 1)
            fault_of_structure(c, "refcount table, which is in other use too,", off);
    }
    for (uint64_t i = 0; i < c->n_blocks; i++) {
        uint64_t off = c->blocks[i];
        if (!check_block_is_usable(off) ||
            check_refs_count(&c->refs, off >> c->g.cluster_bits) == 1)
            continue;
        fault_of_structure(c, "refcount block, which is in other use too,", off);
        c->blocks[i] = off | CHECK_BLOCK_SHARED;
    }
}

// --- Walking over refcounts

// Called for each run of clusters that share one chunk of counters. `words` is NULL when none of
// them is referenced; `block` holds their refcounts from index `in_block`, NULL: they are all 0.
// Returns true when it changed the block.
typedef bool VisitFn(Check *c, uint64_t first, uint64_t n, uint32_t *words, void *block,
                     uint64_t in_block);

static bool visit_block(Check *c, uint64_t index, void *block, VisitFn *visit)
{
    uint64_t per_block = UINT64_C(1) << c->g.refcounts_per_block_bits;
    uint64_t n = MIN(per_block, CHECK_REFS_CHUNK);
    size_t piece_bytes = n << c->g.refcount_order >> 3;
    bool changed = false;
    for (uint64_t i = 0; i < per_block; i += n) {
        uint64_t first = index * per_block + i;
        uint32_t *words = check_refs_find(&c->refs, first);
        if (!words &&
            (!block || bytes_are_zero((uint8_t *)block + i / n * piece_bytes, piece_bytes)))
            continue;
        changed |= visit(c, first, n, words, block, i);
    }
    return changed;
}

static int walk(Check *c, VisitFn *visit)
{
    uint32_t bits = c->g.refcounts_per_block_bits;
    uint64_t n_referenced = (check_refs_end(&c->refs) + (UINT64_C(1) << bits) - 1) >> bits;
    uint64_t n = MAX(c->n_blocks, n_referenced);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t off = i < c->n_blocks ? c->blocks[i] : 0;
        bool usable = check_block_is_usable(off) &&
                      check_read(c, off, c->buf, c->g.cluster_bytes, "refcount block") >= 0;
        if (!visit_block(c, i, usable ? c->buf : NULL, visit) || !usable)
            continue;
        int r = file_write(c->self, c->file, host_off(off), c->buf, c->g.cluster_bytes);
        if (r < 0)
            return r;
    }
    return 0;
}

static uint64_t get_stored(const Check *c, const void *block, uint64_t index)
{
    return block ? qcow2_refcount_get(&c->g, block, index) : 0;
}

// --- Comparison

static void note_low(Check *c, uint64_t cluster, uint64_t stored, uint32_t count, bool has_block)
{
    bool fits = count <= qcow2_refcount_max(&c->g) && count < CHECK_REFS_MAX_COUNT;
    c->result->n_corruptions++;
    if (fits)
        c->n_low++;
    else
        c->n_lasting++;
    if (!has_block)
        c->rebuild = true;
    check_message(c,
                  "the cluster at offset %#" PRIx64 " has refcount %" PRIu64 ", but %" PRIu32
                  " references%s",
                  cluster << c->g.cluster_bits, stored, count,
                  fits ? "" : ", more than refcounts of this width can hold");
}

static void note_leak(Check *c, uint64_t cluster, uint64_t stored, uint32_t count)
{
    c->result->n_leaks++;
    check_message(c,
                  "the cluster at offset %#" PRIx64 " is leaked: refcount %" PRIu64 ", but "
                  "%" PRIu32 " references",
                  cluster << c->g.cluster_bits, stored, count);
}

// The refcount that this run leaves behind.
static uint64_t final_refcount(const Check *c, uint64_t stored, uint32_t count)
{
    if (stored < count && (c->fix & QCOW2_CHECK_FIX_ERRORS))
        return MIN(count, qcow2_refcount_max(&c->g));
    return stored > count && c->may_lower ? count : stored;
}

// Judges what active entries say, then makes the mark what they should say.
static void compare_copied(Check *c, uint64_t cluster, uint32_t *word, uint64_t refcount)
{
    uint32_t marks = *word & ~CHECK_REFS_MAX_COUNT;
    bool should = refcount == 1 && (*word & CHECK_REFS_MAX_COUNT) == 1;
    // With a refcount that stays too low nothing sensible can be said about flags.
    bool low = refcount < (*word & CHECK_REFS_MAX_COUNT);
    if ((marks & (should ? CHECK_REFS_NOT_COPIED : CHECK_REFS_COPIED)) && !low) {
        c->result->n_corruptions++;
        c->n_copied++;
        check_message(c,
                      "the cluster at offset %#" PRIx64 " has refcount %" PRIu64 ", but its "
                      "entry says that it is %s",
                      cluster << c->g.cluster_bits, refcount, should ? "shared" : "unshared");
    }
    *word = (*word & CHECK_REFS_MAX_COUNT) | (should ? CHECK_REFS_COPIED : 0);
}

static bool compare(Check *c, uint64_t first, uint64_t n, uint32_t *words, void *block,
                    uint64_t in_block)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t count = words ? words[i] & CHECK_REFS_MAX_COUNT : 0;
        uint64_t stored = get_stored(c, block, in_block + i);
        if (!stored && !count)
            continue;
        c->n_end = MAX(c->n_end, first + i + 1);
        if (stored < count)
            note_low(c, first + i, stored, count, block);
        else if (stored > count)
            note_leak(c, first + i, stored, count);
        if (words && (words[i] & ~CHECK_REFS_MAX_COUNT))
            compare_copied(c, first + i, &words[i], final_refcount(c, stored, count));
    }
    return false;
}

int check_compare_refcounts(Check *c)
{
    c->n_low = c->n_copied = c->n_end = 0;
    check_structures_are_alone(c);
    // Where references are missing, or will stay unreadable, leaks may be lost data.
    c->may_lower = (c->fix & QCOW2_CHECK_FIX_LEAKS) && !c->incomplete &&
                   !c->result->n_check_errors && !c->n_lasting &&
                   (!c->n_fixable || (c->fix & QCOW2_CHECK_FIX_ERRORS));
    int r = walk(c, compare);
    c->result->image_end_offset = c->n_end << c->g.cluster_bits;
    return r;
}

// --- Repair in place

static bool raise_run(Check *c, uint64_t first, uint64_t n, uint32_t *words, void *block,
                      uint64_t in_block)
{
    bool changed = false;
    for (uint64_t i = 0; words && block && i < n; i++) {
        uint64_t count = MIN(words[i] & CHECK_REFS_MAX_COUNT, qcow2_refcount_max(&c->g));
        if (qcow2_refcount_get(&c->g, block, in_block + i) >= count)
            continue;
        qcow2_refcount_set(&c->g, block, in_block + i, count);
        changed = true;
    }
    return changed;
}

static bool lower_run(Check *c, uint64_t first, uint64_t n, uint32_t *words, void *block,
                      uint64_t in_block)
{
    bool changed = false;
    for (uint64_t i = 0; block && i < n; i++) {
        uint64_t count = words ? words[i] & CHECK_REFS_MAX_COUNT : 0;
        if (qcow2_refcount_get(&c->g, block, in_block + i) <= count)
            continue;
        qcow2_refcount_set(&c->g, block, in_block + i, count);
        changed = true;
    }
    return changed;
}

int check_raise_refcounts(Check *c)
{
    return walk(c, raise_run);
}

int check_lower_refcounts(Check *c)
{
    return walk(c, lower_run);
}
