// SPDX-License-Identifier: LGPL-2.1-or-later
// qcow2 images for crash tests: made once by qemu-img, kept in memory, put into each simulation;
// opened with their backing chain; checked by chaind's own checker. Test code only.
#pragma once

#include "crash-harness.h"

typedef struct CrashQcow2 {
    // Shell commands that make "top" (and "base", "base-format" raw or qcow2; "middle", between
    // them, for cases that open the chain by themselves; and "data", its data file) from "content",
    // a raw file with the initial content. In a directory of their own. $SIZE is the disk's size.
    const char *commands;
    const char *base_format;   // of "base"; NULL: there is none
    uint64_t base_bytes;       // size of the content; 0: the disk's
    bool is_empty;             // the disk starts with zeros, not with "content"
    uint64_t map_memory_bytes; // 0: plenty
    // The image was not closed cleanly: until an open repaired it, its refcounts may be too low.
    bool is_dirty;
    bool changes_mode; // opened read-only, then made writable; and the reverse before it is closed
    // It has persistent bitmaps or autoclear bits: while a cut left one as if nobody had written,
    // nobody has.
    bool has_marks;
} CrashQcow2;

// Members of a CrashCase whose `data` is a CrashQcow2.
void crash_qcow2_prepare(const CrashCase *c, Sim *sim, ShadowModel *model);
int crash_qcow2_open(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error);
void crash_qcow2_close(Fiber *self, const CrashCase *c, CrashImage *image);
char *crash_qcow2_check(Fiber *self, const CrashCase *c);
// Are the marks of a writable open (docs/ordering.md §7) on disk before anything else? Part of the
// check. NULL, or what is wrong (owned). `data`: the whole image; `before`: as it was made.
char *crash_qcow2_check_marks(const uint8_t *data, gsize bytes, const uint8_t *before,
                              gsize before_bytes);
