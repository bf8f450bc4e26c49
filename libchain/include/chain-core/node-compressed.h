// SPDX-License-Identifier: LGPL-2.1-or-later
// Compressed clusters as they are: from a node to another that compresses alike, without inflating
// them. What they show is the same at both places, so it is no matter to anybody above.
//
//     node_read_compressed() → CompressedClusters → node_write_compressed(), or a fill
//
// What is inside is not looked at: a stream that was damaged in the source is so in the target, and
// whoever reads it there gets -EIO, as he did before. On the nodes' loop, in a fiber.
#pragma once

#include "chain-core/node.h"

// How a node compresses: cluster by cluster, each a stream of its own.
typedef struct NodeCompression {
    uint32_t cluster_bytes; // 0: it does not
    enum {
        NODE_COMPRESSION_DEFLATE, // raw, with a window of 4 KiB
        NODE_COMPRESSION_ZSTD,
    } method;
} NodeCompression;

enum { COMPRESSED_CLUSTERS_MAX = 64 }; // at a time; of large clusters less

// Some of one node, side by side for the guest. A value; compressed_clusters_done().
typedef struct CompressedClusters {
    NodeCompression how;
    GuestOff off; // of the first
    uint32_t n;
    uint32_t lens[COMPRESSED_CLUSTERS_MAX]; // of the streams, 1 to cluster_bytes
    uint64_t n_bytes;                       // of all of them
    uint8_t *data;                          // one behind the other; owned
    uint64_t capacity;                      // of `data`
} CompressedClusters;

// Of the guest's bytes.
static inline uint64_t compressed_clusters_len(const CompressedClusters *c)
{
    return (uint64_t)c->n * c->how.cluster_bytes;
}
// Makes room for `n` of them, ≤ COMPRESSED_CLUSTERS_MAX, of `how`. -ENOMEM.
int compressed_clusters_reserve(CompressedClusters *c, Loop *loop, uint32_t n);
void compressed_clusters_done(CompressedClusters *c, Loop *loop); // accepts what is all zero

// What can be written to `node` so; .cluster_bytes 0: nothing. Who wants zeros detected wants none.
NodeCompression node_compression(Node *node);

// What `node`, or a layer below it, has in [off, off+len). Where that begins with whole clusters
// compressed as `c->how` says (the caller sets it, the rest is zero), some of them: `*ret_len`
// bytes. Otherwise none, and *ret_len says how far it is worth to look for none: to where such
// clusters may begin, or `len`. 0 or -errno.
int node_read_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len, CompressedClusters *c,
                         uint64_t *ret_len);

// Does [off, off+len) begin with such clusters, as far as metadata tells, and how far is that so?
int node_find_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeCompression how,
                         bool *ret_is, uint64_t *ret_len);

// A write of what they show; they are compressed as node_compression() says. The last one may reach
// past the node's end.
int node_write_compressed(Fiber *self, Node *node, const CompressedClusters *c);

// Can what is written to `node` be compressed first?
bool node_can_compress(Node *node);
// The clusters of [off, off+len), whose content is `buf`, as node_write_compressed() takes them:
// those that become smaller, up to one that does not; or none, and *ret_len says how far that is at
// least. On a worker. A last cluster that the disk ends in counts as a whole one. `c` is set.
int node_compress(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                  CompressedClusters *c, uint64_t *ret_len);

// --- for drivers

// A filter that passes them on has `write` alone.
struct NodeCompressedOps {
    // 0 bytes: none.
    NodeCompression (*compression)(Node *node);
    // The first of [off, off+len), whole clusters inside the node, as far as they are compressed
    // and can be told apart; perhaps none.
    int (*read)(Fiber *self, Node *node, GuestOff off, uint64_t len, CompressedClusters *c);
    int (*write)(Fiber *self, Node *node, const CompressedClusters *c);
    // `n` whole clusters at `buf`, ≤ COMPRESSED_CLUSTERS_MAX: the first ones that become smaller.
    int (*compress)(Fiber *self, Node *node, const void *buf, uint32_t n, CompressedClusters *c);
    // Where the node does not own a cluster yet (node-fill.h): it comes to own this one. 1: part of
    // a cluster is still not the node's.
    int (*fill)(Fiber *self, Node *node, const CompressedClusters *c);
};
