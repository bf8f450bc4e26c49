// SPDX-License-Identifier: LGPL-2.1-or-later
// Consistency check and repair of a qcow2 image. In a fiber.
#pragma once

#include <glib.h>

#include "chain-core/file.h"

typedef enum Qcow2CheckFix {
    QCOW2_CHECK_FIX_LEAKS = 1 << 0,
    QCOW2_CHECK_FIX_ERRORS =
        1 << 1, // refcounts too low, bad entries, COPIED flags, dirty/corrupt bit
    // Where entries name places that could be the image's but lie past the end of the file, repairs
    // nothing: the repair would make zeros of what a copy may still have. Then qcow2_check() fails
    // with -EUCLEAN.
    QCOW2_CHECK_REFUSE_CUT_OFF = 1 << 2,
} Qcow2CheckFix;

// Counts as in `qemu-img check`: what is left when the check ends, and beside it what it cured.
typedef struct Qcow2CheckResult {
    uint64_t n_corruptions, n_leaks, n_check_errors;
    uint64_t n_corruptions_fixed, n_leaks_fixed;
    uint64_t n_allocated_clusters, n_total_clusters, n_compressed_clusters, n_fragmented_clusters;
    uint64_t image_end_offset;
    GPtrArray *messages; // char *, one sentence per finding, at most 100, then "… and N more"
} Qcow2CheckResult;
void qcow2_check_result_clear(Qcow2CheckResult *result);

// Checks the image in `file` (borrowed; nobody else may write it meanwhile). Returns 0 when the
// check could run (whatever it found; see the counts), or -errno. Memory is bounded by the number
// of clusters of the file (2 to 8 bytes each). Leaves no dirty or corrupt bit when `fix` cured all.
int qcow2_check(Fiber *self, File *file, unsigned fix, Qcow2CheckResult *ret_result,
                GError **error);
