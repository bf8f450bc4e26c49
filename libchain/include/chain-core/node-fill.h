// SPDX-License-Identifier: LGPL-2.1-or-later
// Filling: a node comes to own what it shows in a range, where it does not own it yet, so that what
// lies below may change or go. Nobody sees a difference, before, meanwhile or after, so what is
// known of the range (maps, dirty bitmaps) stays right.
//
//     read from below → take clusters → write → under the lock: link what is still not the node's
//
// A guest's write, zero or discard that comes meanwhile wins, and waits for no read of a fill; for
// one write of it at most, where data has no other place than the one it is to have (external data
// files, subclusters of a cluster that is there). What was filled is durable after a flush of the
// node (docs/ordering.md §16). The caller has a port to the node entered, for writing: the graph
// stays, and so does what lies below. On the node's loop.
#pragma once

#include "chain-core/node.h"

typedef enum NodeFillFlags {
    // Nothing will lie below the node afterwards: what reads as zeros need not become its own.
    NODE_FILL_ZEROS_STAY = 1 << 0,
} NodeFillFlags;

// What became of it, in bytes. What a guest was faster with counts, too.
typedef struct NodeFillResult {
    uint64_t copied_bytes, shared_bytes; // moved; lying in both files now (file_copy())
    uint64_t zero_bytes;                 // zeros, of which metadata tells
    bool failed_reading;                 // what failed was no write
} NodeFillResult;

// Ranges are rounded out to multiples of this (and cut at the node's end): clusters or subclusters.
uint64_t node_fill_granularity(Node *node);

// Who fills much holds the loop's buffers (io-buffers.h) meanwhile.

// Fills [off, off+len), data in pieces of at most 1 MiB, or a cluster. In memory others get their
// turn in between. `result` is added to, also on failure. 0 or -errno: part of it may be the node's
// then, and all can be tried again. -ENOTSUP: nodes of this kind cannot.
int node_fill(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeFillFlags flags,
              NodeFillResult *result);

// The same with bytes that the caller has already: `data` is what the node shows in [off, off+len),
// which begins and ends at multiples of the granularity, or at the node's end.
int node_fill_from(Fiber *self, Node *node, GuestOff off, const void *data, size_t len);

// The reverse: where the layer below shows the same, durably, the node need not own it. Its whole
// clusters of [off, off+len) are unlinked, and their space is given back once that is durable
// (docs/ordering.md §4). Dirty bitmaps stay as they are. Nobody writes the range meanwhile, and
// what else is known of the node's own clusters (maps of overlays) is the caller's matter.
// -ENOTSUP: nodes of this kind cannot, which an empty range tells, too. Port and loop as for a
// fill.
int node_unfill(Fiber *self, Node *node, GuestOff off, uint64_t len);

// --- for drivers

// Where bytes of [off, off+len) can be written before they are the node's.
typedef struct NodeFillPlace {
    GuestOff off;
    uint64_t len;
    enum {
        NODE_FILL_OWNED,    // nothing to do: they are the node's
        NODE_FILL_TAKEN,    // at `host` of `file`; link() has to follow
        NODE_FILL_IN_PLACE, // only through write()
    } kind;
    File *file;
    HostOff host;
} NodeFillPlace;

// Ranges are of whole granules, or end at the node's end.
struct NodeFillOps {
    uint64_t (*granularity)(Node *node);
    // What is to be done at `off`, for so much as is to be done alike. Takes space; no lock is
    // held.
    int (*take)(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeFillPlace *ret_place);
    // Makes the node own what was written to `place`, where it does not yet. Gives back the rest,
    // also on failure; not `is_written`: all. 1: part of it is still not the node's.
    int (*link)(Fiber *self, Node *node, const NodeFillPlace *place, bool is_written);
    // Writes what the node does not own yet, and makes it own it.
    int (*write)(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len);
    // Where it does not own the range yet, it comes to own zeros. -ENOTSUP: they must be written.
    int (*zero)(Fiber *self, Node *node, GuestOff off, uint64_t len);
};
