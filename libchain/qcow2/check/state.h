// SPDX-License-Identifier: LGPL-2.1-or-later
// What the parts of a check share. A check is a scan (scan.c: who references what), a
// comparison with the refcounts (refcounts.c), and on demand repairs there and in
// entries.c; check.c puts them in order.
#pragma once

#include "chain-core/file.h"
#include "chain-core/qcow2-check.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"
#include "qcow2/check/refs.h"

// One L1 table: the active one, or one or more snapshots'.
typedef struct CheckL1 {
    uint64_t off;
    uint32_t n_entries;
    uint32_t weight; // how many use it
    bool active;
    uint64_t n_faults; // entries to be mended
} CheckL1;

// One L2 table, however many L1 entries point at it. It is read once.
typedef struct CheckL2 {
    uint64_t off;
    uint64_t l1_index; // of one entry that points at it
    uint32_t weight;
    bool active;
    uint64_t n_faults;
} CheckL2;

// Refcount blocks that must not be used: at an impossible offset, or (bit 0) in other use too.
#define CHECK_BLOCK_BROKEN UINT64_MAX
#define CHECK_BLOCK_SHARED UINT64_C(1)
static inline bool check_block_is_usable(uint64_t block)
{
    return block && !(block & CHECK_BLOCK_SHARED);
}

enum { CHECK_MAX_MESSAGES = 100, CHECK_SECTOR_BYTES = 512 };

typedef struct Check {
    Fiber *self;
    File *file;
    unsigned fix;
    uint64_t file_bytes;
    Qcow2Header h;
    Qcow2Geometry g;
    uint8_t *buf;     // one transfer at a time
    size_t buf_bytes; // at least a cluster
    Qcow2CheckResult *result;
    uint64_t n_messages;

    // The scan's.
    CheckRefs refs;
    GArray *l1s;            // of CheckL1
    GArray *l2s;            // of CheckL2, by offset
    GHashTable *rejected;   // offsets of L2 tables that turned out to be something else
    bool bitmaps_lost;      // a fault in their directory or tables
    bool drop_bitmaps;      // the bitmap directory is broken, and repair forgets it
    bool incomplete;        // some references could not be found: what looks unused may be in use
    uint64_t missing_bytes; // at the end of the file, at least: references name places there
    uint64_t n_fixable;     // faults of entries that a repair mends or clears
    uint64_t n_lasting;     // faults that no repair here cures
    uint64_t *blocks;       // refcount blocks: offset, 0 none, or not usable
    uint64_t n_blocks;      // entries up to the last that is not 0

    // The comparison's.
    bool may_lower;       // leaks will be given back
    bool rebuild;         // the refcount structures themselves are at fault
    uint64_t n_structure; // faults of the refcount structures
    uint64_t n_low, n_copied;
    uint64_t n_end; // one past the last cluster in use, by references or refcounts
} Check;

// One finding, counted by the caller. Keeps the first messages.
void check_message(Check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);
// A fault that a repair of errors mends, or that stays.
#define check_fault(c, fixable, ...)                                                               \
    ((c)->result->n_corruptions++, *((fixable) ? &(c)->n_fixable : &(c)->n_lasting) += 1,          \
     check_message(c, __VA_ARGS__))

// Reads into a buffer; a failure is noted as a check error with what `what` says.
int check_read(Check *c, uint64_t off, void *buf, size_t len, const char *what);
// Does the file, the tail of its last cluster included, hold the range? (As views and qemu-img see
// it: a table or cluster that starts at the very end is outside.) Notes how much is missing at
// least.
bool check_in_file(Check *c, uint64_t off, uint64_t len);
// Counts `weight` references to each cluster of the range.
int check_add(Check *c, uint64_t off, uint64_t len, uint32_t weight);
// Makes `next`, a copy of the header in which fields changed, durable, and the header.
int check_write_header(Check *c, const Qcow2Header *next);

// scan.c
int check_scan(Check *c);
// entries.c: what entry `index` of a table should be, COPIED apart. `words` is changed
// to it. Returns what is wrong with it, or NULL. *ret_mendable is false when it must stay as it is.
const char *check_l1_entry(Check *c, Be64 *entry);
const char *check_l2_entry(Check *c, const CheckL2 *table, void *words, uint32_t index,
                           Qcow2L2Entry *ret_entry, bool *ret_mendable);
// Mends all entries that the scan found faulty, and COPIED flags.
int check_mend_entries(Check *c);
// directories.c
int check_scan_snapshots(Check *c);
int check_scan_bitmaps(Check *c);
// refcounts.c
int check_scan_refcount_structures(Check *c);
int check_compare_refcounts(Check *c);
int check_raise_refcounts(Check *c);
int check_lower_refcounts(Check *c);
// rebuild.c
int check_rebuild_refcounts(Check *c);
