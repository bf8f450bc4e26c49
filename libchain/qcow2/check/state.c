// SPDX-License-Identifier: LGPL-2.1-or-later
// What the parts of a check share: findings, reads of the image, references. In a check's fiber.

#include "qcow2/check/state.h"

#include <inttypes.h>
#include <string.h>

#include "qcow2/header-write.h"

// Reads from here on are worth the question whether there is a hole.
enum { HOLE_BYTES = 256 << 10 };

void check_message(Check *c, const char *format, ...)
{
    if (++c->n_messages > CHECK_MAX_MESSAGES)
        return;
    va_list args;
    va_start(args, format);
    g_ptr_array_add(c->result->messages, g_strdup_vprintf(format, args));
    va_end(args);
}

bool check_in_file(Check *c, uint64_t off, uint64_t len)
{
    if (off > INT64_MAX || len > INT64_MAX)
        return false;
    uint64_t missing = qcow2_missing_bytes(c->file_bytes, off, len);
    if (missing < c->g.cluster_bytes) // the last cluster may have been written in part
        return true;
    if (qcow2_header_could_hold(&c->h, off))
        c->missing_bytes = MAX(c->missing_bytes, missing - c->g.cluster_bytes + 1);
    return false;
}

// Large reads of holes are not worth their copying: hostile images name terabytes of them.
static bool is_hole(Check *c, uint64_t off, size_t len)
{
    bool is_data;
    uint64_t found;
    if (len < HOLE_BYTES || off >= c->file_bytes)
        return false;
    uint64_t in_file = MIN(len, c->file_bytes - off);
    return file_find_extent(c->self, c->file, host_off(off), in_file, &is_data, &found) >= 0 &&
           !is_data && found >= in_file;
}

int check_read(Check *c, uint64_t off, void *buf, size_t len, const char *what)
{
    if (is_hole(c, off, len)) {
        memset(buf, 0, len);
        return 0;
    }
    int r = file_read(c->self, c->file, host_off(off), buf, len);
    if (r < 0) {
        c->result->n_check_errors++;
        check_message(c, "the %s at offset %#" PRIx64 " cannot be read: %s", what, off,
                      g_strerror(-r));
    }
    return r;
}

int check_add(Check *c, uint64_t off, uint64_t len, uint32_t weight)
{
    if (!len)
        return 0;
    uint64_t first = off >> c->g.cluster_bits, last = (off + len - 1) >> c->g.cluster_bits;
    return check_refs_add(&c->refs, first, last - first + 1, weight);
}

int check_write_header(Check *c, const Qcow2Header *next)
{
    bool is_unknown = false; // one of the two, and the check fails anyway
    int r = header_write(c->self, c->file, &c->h, next, &is_unknown);
    if (r == 0)
        c->h = *next;
    return r;
}
