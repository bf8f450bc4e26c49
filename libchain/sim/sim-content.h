// SPDX-License-Identifier: LGPL-2.1-or-later
// The bytes of one simulated file: sparse, of any size up to 2^48, and cheap to copy. A copy shares
// all pages with its original; a write copies the touched page and the path to it. One thread.
//
//     SimContent ─ root ─┬─ node ─┬─ … ─┬─ page (4 KiB, counted)
//                        │        │     └─ NULL = hole
//                        └─ NULL  └─ node, possibly shared with other contents
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SIM_PAGE_BYTES = 4096 };
#define SIM_CONTENT_MAX_BYTES (UINT64_C(1) << 48)

typedef struct SimContentNode SimContentNode;

// All zero is an empty file.
typedef struct SimContent {
    SimContentNode *root;
    uint64_t size;
    uint64_t n_pages; // that are no holes
} SimContent;

SimContent sim_content_copy(const SimContent *c); // returns owned; O(1)
void sim_content_clear(SimContent *c);

// Past the end of the file reads zeros.
void sim_content_read(const SimContent *c, uint64_t off, void *buf, size_t len);
// Grows the file as needed; zeros between the old end and `off`.
void sim_content_write(SimContent *c, uint64_t off, const void *buf, size_t len);
// Makes zeros of the holes in the range; grows the file as needed.
void sim_content_allocate(SimContent *c, uint64_t off, uint64_t len);
// Pages of the range that are holes, or lie past the end of the file.
uint64_t sim_content_n_holes(const SimContent *c, uint64_t off, uint64_t len);
// Zeros the range and makes holes of its whole pages; the size stays.
void sim_content_punch(SimContent *c, uint64_t off, uint64_t len);
void sim_content_truncate(SimContent *c, uint64_t size);
// What is at `off` (inside the file): data or hole, and for how many bytes, at most `len`.
bool sim_content_find(const SimContent *c, uint64_t off, uint64_t len, uint64_t *ret_len);
