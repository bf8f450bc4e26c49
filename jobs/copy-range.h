// SPDX-License-Identifier: LGPL-2.1-or-later
// What a copy of a node has to bring to its target, from metadata: data, zeros, or nothing. For
// mirror and backup. On the nodes' loop.
#pragma once

#include "copy-engine.h"

// A value.
typedef struct CopyRange {
    Node *image; // of the source, under filters; borrowed
    bool is_top; // what its topmost layer owns only
    // Where a piece of that size is work in part, it is work as a whole; 0: any piece is by itself.
    uint64_t whole_bytes;
} CopyRange;

// The first node that is no filter.
Node *copy_range_image_of(Node *node);
// A CopyFindFn with the port entered.
int copy_range_find(Fiber *self, const CopyRange *range, uint64_t off, uint64_t len,
                    CopyExtent *ret_extent);
// A backing file that is not opened now may be when the target is opened next: what it has not got
// shows zeros now only.
bool copy_range_has_hidden_backing(Node *target);
