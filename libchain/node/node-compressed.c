// SPDX-License-Identifier: LGPL-2.1-or-later
// Finding compressed clusters in a chain, and asking their node for them. What is found may have
// become something else when its node is asked: then there are none, and the caller goes on as with
// other data.
#include "chain-core/node-compressed.h"

#include <errno.h>
#include <string.h>

#include "chain-core/io-buffers.h"
#include "chain-core/zeros.h"

int compressed_clusters_reserve(CompressedClusters *c, Loop *loop, uint32_t n)
{
    g_assert(!c->data && n <= COMPRESSED_CLUSTERS_MAX);
    c->capacity = (uint64_t)n * c->how.cluster_bytes;
    c->data = io_buffer_take(loop, c->capacity);
    return c->data ? 0 : -ENOMEM;
}

void compressed_clusters_done(CompressedClusters *c, Loop *loop)
{
    io_buffer_put(loop, c->data, c->capacity);
    *c = (CompressedClusters){0};
}

static bool is_alike(NodeCompression a, NodeCompression b)
{
    return a.cluster_bytes && a.cluster_bytes == b.cluster_bytes && a.method == b.method;
}

static NodeCompression own_compression(Node *node)
{
    const NodeCompressedOps *ops = node->ops->compressed;
    return ops && ops->compression ? ops->compression(node) : (NodeCompression){0};
}

// Who gets what is written compressed to `node`, where nobody between must see it as it was before.
static Node *find_writer(Node *node, bool *ret_detects_zeroes)
{
    *ret_detects_zeroes = node->zero_detection;
    while (node->ops->is_filter && node->backing && (!node->ops->write || node->ops->compressed)) {
        node = node->backing;
        *ret_detects_zeroes |= node->zero_detection;
    }
    return node;
}

NodeCompression node_compression(Node *node)
{
    bool detects_zeroes;
    node = find_writer(node, &detects_zeroes);
    return node->read_only || detects_zeroes ? (NodeCompression){0} : own_compression(node);
}

bool node_can_compress(Node *node)
{
    bool detects_zeroes;
    return own_compression(find_writer(node, &detects_zeroes)).cluster_bytes;
}

// Who may have compressed clusters at `off`, and how far; NULL: nobody. A filter that is to see
// each read shows none.
static int find_owner(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeCompression how,
                      Node **ret_owner, uint64_t *ret_len)
{
    NodeExtent e;
    IoBatch pins;
    io_batch_init(&pins, self);
    int r = node_status_pinned(self, node, off, len, &pins, &e);
    io_batch_wait(self, &pins);
    if (r < 0)
        return r;
    bool is_owner = e.kind == NODE_EXTENT_OPAQUE && is_alike(own_compression(e.node), how);
    *ret_owner = is_owner ? e.node : NULL;
    *ret_len = e.len;
    return 0;
}

// How far from `off`, the start of a cluster, no whole cluster may be compressed.
static int find_next(Fiber *self, Node *node, uint64_t off, uint64_t end, NodeCompression how,
                     uint64_t *ret_off)
{
    uint64_t cluster = how.cluster_bytes;
    while (off + cluster <= end) {
        Node *owner;
        uint64_t len;
        int r = find_owner(self, node, guest_off(off), end - off, how, &owner, &len);
        if (r < 0)
            return r;
        if (owner && len >= cluster)
            break;
        off = MAX(off + cluster, (off + len) / cluster * cluster);
    }
    *ret_off = off + cluster <= end ? off : end;
    return 0;
}

static int read_at(Fiber *self, Node *node, GuestOff off, uint64_t len, CompressedClusters *c)
{
    Node *owner;
    uint64_t n = 0;
    int r = find_owner(self, node, off, len, c->how, &owner, &n);
    n -= n % c->how.cluster_bytes;
    if (r < 0 || !owner || !n)
        return r;
    c->off = off;
    return owner->ops->compressed->read(self, owner, off, n, c);
}

int node_find_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeCompression how,
                         bool *ret_is, uint64_t *ret_len)
{
    uint64_t cluster = how.cluster_bytes, next = off.v + len, n = 0;
    Node *owner = NULL;
    int r = 0;
    if (cluster && off.v % cluster == 0 && len >= cluster)
        r = find_owner(self, node, off, len, how, &owner, &n);
    *ret_is = owner && n >= cluster;
    if (r == 0 && cluster && !*ret_is)
        r = find_next(self, node, (off.v / cluster + 1) * cluster, off.v + len, how, &next);
    *ret_len = *ret_is ? n - n % cluster : next - off.v;
    return r;
}

int node_read_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len, CompressedClusters *c,
                         uint64_t *ret_len)
{
    uint64_t cluster = c->how.cluster_bytes, next = off.v + len;
    int r = 0;
    *ret_len = len;
    if (!cluster)
        return 0;
    if (off.v % cluster == 0 && len >= cluster)
        r = read_at(self, node, off, len, c);
    if (r == 0 && !c->n)
        r = find_next(self, node, (off.v / cluster + 1) * cluster, off.v + len, c->how, &next);
    *ret_len = c->n ? compressed_clusters_len(c) : next - off.v;
    return r;
}

// Of whole clusters, those before one of zeros.
static uint32_t count_until_zeros(const uint8_t *buf, uint32_t n, uint64_t cluster)
{
    uint32_t i = 0;
    while (i < n && !bytes_are_zero(buf + i * cluster, cluster))
        i++;
    return i;
}

// A last cluster that the disk ends in, with zeros behind its end.
static int compress_last(Fiber *self, Node *node, const uint8_t *buf, size_t len,
                         CompressedClusters *c)
{
    g_autofree uint8_t *whole = g_try_malloc0(c->how.cluster_bytes);
    if (!whole)
        return -ENOMEM;
    memcpy(whole, buf, len);
    return node->ops->compressed->compress(self, node, whole, 1, c);
}

int node_compress(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                  CompressedClusters *c, uint64_t *ret_len)
{
    bool detects_zeroes, is_last = off.v + len == node->size_bytes;
    node = find_writer(node, &detects_zeroes);
    *c = (CompressedClusters){.how = own_compression(node), .off = off};
    uint64_t cluster = c->how.cluster_bytes, in_cluster = off.v % cluster;
    *ret_len = MIN(cluster - in_cluster, len);
    if (in_cluster || (detects_zeroes && bytes_are_zero(buf, *ret_len)))
        return 0;
    uint32_t n = MIN(len / cluster, COMPRESSED_CLUSTERS_MAX);
    int r = 0;
    if (detects_zeroes)
        n = count_until_zeros(buf, n, cluster);
    if (n)
        r = node->ops->compressed->compress(self, node, buf, n, c);
    else if (is_last)
        r = compress_last(self, node, buf, len, c);
    if (c->n)
        *ret_len = MIN(compressed_clusters_len(c), len);
    return r;
}
