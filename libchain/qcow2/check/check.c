// SPDX-License-Identifier: LGPL-2.1-or-later
// The check as a whole: scan, compare, repair, and what the caller hears. In a fiber; nobody else
// may write the image meanwhile.
//
// A repair writes in this order, with a flush after each step, so that a crash in between leaves
// nothing worse than it was: refcounts up (or new refcount structures) → entries → header →
// refcounts down. Then everything is checked again, and only a clean result clears the dirty and
// the corrupt bit.

#include "chain-core/qcow2-check.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "qcow2/check/state.h"

enum { PROBE_BYTES = 65536, BUF_BYTES = 1 << 20 };

void qcow2_check_result_clear(Qcow2CheckResult *result)
{
    if (result->messages)
        g_ptr_array_unref(result->messages);
    *result = (Qcow2CheckResult){0};
}

// --- Beginning

static int load_header(Check *c, GError **error)
{
    c->file_bytes = file_size(c->file);
    size_t len = MIN(c->file_bytes, PROBE_BYTES);
    g_autofree uint8_t *buf = g_try_malloc0(PROBE_BYTES);
    int r = buf ? file_read(c->self, c->file, host_off(0), buf, len) : -ENOMEM;
    if (r >= 0 && qcow2_header_needed_bytes(buf, len) > len && c->file_bytes > len) {
        len = MIN(qcow2_header_needed_bytes(buf, len), c->file_bytes);
        g_free(buf);
        buf = g_try_malloc0(len);
        r = buf ? file_read(c->self, c->file, host_off(0), buf, len) : -ENOMEM;
    }
    if (r < 0)
        return error_set(error, r, "cannot read the header: %s", g_strerror(-r));
    // Positions outside the file are findings, not the end of the check, except for the L1 table.
    r = qcow2_header_decode(buf, len, INT64_MAX, &c->h, error);
    if (r < 0)
        return r;
    qcow2_geometry_init(&c->g, c->h.cluster_bits, c->h.refcount_order,
                        c->h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2,
                        c->h.incompatible & QCOW2_INCOMPAT_DATA_FILE, c->h.size_bytes);
    uint64_t l1_bytes = (uint64_t)c->h.l1_entries * sizeof(Be64);
    if (!check_in_file(c, c->h.l1.v, l1_bytes))
        return error_set(error, -EINVAL,
                         "the L1 table at offset %#" PRIx64
                         " does not lie inside the file: " QCOW2_CUT_OFF,
                         c->h.l1.v, qcow2_missing_bytes(c->file_bytes, c->h.l1.v, l1_bytes));
    c->buf_bytes = MAX(MIN(c->file_bytes, BUF_BYTES) >> c->g.cluster_bits, 1) << c->g.cluster_bits;
    c->buf = g_try_malloc(c->buf_bytes);
    return c->buf ? 0 : error_set(error, -ENOMEM, "no memory for a check");
}

static void check_done(Check *c)
{
    qcow2_header_clear(&c->h);
    check_refs_done(&c->refs);
    g_clear_pointer(&c->l1s, g_array_unref);
    g_clear_pointer(&c->l2s, g_array_unref);
    g_clear_pointer(&c->rejected, g_hash_table_unref);
    g_free(c->blocks);
    g_free(c->buf);
}

static int scan_and_compare(Check *c)
{
    c->file_bytes = file_size(c->file);
    int r = check_scan(c);
    return r < 0 ? r : check_compare_refcounts(c);
}

// --- Repair

// Without bitmaps the flag says, and the header forgets, that there were any.
static int drop_bitmaps(Check *c)
{
    Qcow2Header next = c->h;
    next.autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    c->drop_bitmaps = false;
    return check_write_header(c, &next);
}

static int repair_errors(Check *c)
{
    int r = 0;
    if (c->rebuild) {
        r = check_rebuild_refcounts(c);
        if (r >= 0)
            r = scan_and_compare(c);
        // What could not be read this time must not decide about entries.
        if (r < 0 || c->result->n_check_errors)
            return r;
    } else if (c->n_low) {
        r = check_raise_refcounts(c);
        if (r >= 0 && !MUTANT("sync-of-raised-refcounts"))
            r = file_flush(c->self, c->file);
    }
    if (r >= 0 && (c->n_fixable || c->n_copied)) {
        r = check_mend_entries(c);
        if (r >= 0 && !MUTANT("sync-of-mended-entries"))
            r = file_flush(c->self, c->file);
    }
    if (r >= 0 && c->drop_bitmaps)
        r = drop_bitmaps(c);
    return r;
}

static int repair(Check *c)
{
    int r = 0;
    bool has_errors = c->n_fixable || c->n_low || c->n_copied || c->rebuild;
    if ((c->fix & QCOW2_CHECK_FIX_ERRORS) && has_errors && !c->result->n_check_errors)
        r = repair_errors(c);
    if (r >= 0 && c->may_lower && c->result->n_leaks) {
        r = check_lower_refcounts(c);
        if (r >= 0)
            r = file_flush(c->self, c->file);
    }
    return r;
}

// Dirty and corrupt say that the image needs a check: this was one.
static int clear_marks(Check *c)
{
    uint64_t marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    if (!(c->h.incompatible & marks))
        return 0;
    Qcow2Header next = c->h;
    next.incompatible &= ~marks;
    return check_write_header(c, &next);
}

static uint64_t difference(uint64_t before, uint64_t after)
{
    return before > after ? before - after : 0;
}

// Repairs, and replaces the counts by those of a second check.
static int repair_and_check_again(Check *c, const Qcow2CheckResult *first)
{
    int r = repair(c);
    if (r < 0)
        return r;
    c->fix = 0;
    r = scan_and_compare(c);
    if (r < 0)
        return r;
    Qcow2CheckResult *result = c->result;
    result->n_corruptions_fixed = difference(first->n_corruptions, result->n_corruptions);
    result->n_leaks_fixed = difference(first->n_leaks, result->n_leaks);
    return 0;
}

static int check_and_repair(Check *c)
{
    int r = scan_and_compare(c);
    if (r < 0 || !c->fix)
        return r;
    if ((c->fix & QCOW2_CHECK_REFUSE_CUT_OFF) && c->missing_bytes)
        return -EUCLEAN;
    Qcow2CheckResult *result = c->result;
    if (result->n_corruptions || result->n_leaks) {
        // What the caller reads is what was found, beside the counts of what is left.
        Qcow2CheckResult first = *result;
        uint64_t n_messages = c->n_messages;
        result->messages = g_ptr_array_new_with_free_func(g_free);
        r = repair_and_check_again(c, &first);
        g_ptr_array_unref(result->messages);
        result->messages = first.messages;
        c->n_messages = n_messages;
    }
    if (r >= 0 && !result->n_corruptions && !result->n_check_errors)
        r = clear_marks(c);
    return r;
}

int qcow2_check(Fiber *self, File *file, unsigned fix, Qcow2CheckResult *ret_result, GError **error)
{
    *ret_result = (Qcow2CheckResult){.messages = g_ptr_array_new_with_free_func(g_free)};
    Check c = {
        .self = self,
        .file = file,
        .fix = fix,
        .result = ret_result,
        .l1s = g_array_new(FALSE, FALSE, sizeof(CheckL1)),
        .l2s = g_array_new(FALSE, FALSE, sizeof(CheckL2)),
        .rejected = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
    };
    int r = load_header(&c, error);
    if (r >= 0) {
        r = check_and_repair(&c);
        if (r == -EFBIG)
            error_set(error, r,
                      "its tables refer to more of the file than a check can hold; the image is "
                      "broken, restore it from a copy");
        else if (r == -EUCLEAN)
            error_set(error, r, QCOW2_CUT_OFF, c.missing_bytes);
        else if (r < 0)
            error_set(error, r, "the check failed: %s", g_strerror(-r));
    }
    if (r >= 0 && c.n_messages > CHECK_MAX_MESSAGES)
        g_ptr_array_add(ret_result->messages, g_strdup_printf("… and %" PRIu64 " more",
                                                              c.n_messages - CHECK_MAX_MESSAGES));
    if (r < 0)
        qcow2_check_result_clear(ret_result);
    check_done(&c);
    return r;
}
