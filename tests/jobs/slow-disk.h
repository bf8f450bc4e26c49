// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: a disk in memory whose requests take time, may be seen half done, fail, or hang.
#pragma once

#include "../node/on-sim.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node.h"
#include "chain-core/port.h"

enum {
    SECTOR = 512,
    N_SECTORS = 512,
    SIZE = N_SECTORS * SECTOR,
    GRANULE = 4096,
};

typedef struct Disk {
    Node node;
    GRand *rand;
    uint8_t data[SIZE];
    unsigned fail_percent;
    bool discards_nothing, has_slow_zeros;
    bool is_compressed; // granule by granule, into streams that are what they show
    unsigned n_writes, n_flushes, n_compressed_writes;
    int write_error, flush_error;
    bool hangs; // writes wait
    bool next_read_hangs, next_discard_hangs;
    FiberQueue hanging;
    void (*about_to_change)(void *arg, uint64_t off, uint64_t len); // NULL: nobody looks
    void *arg;
} Disk;

static Disk *disk_of(Node *node)
{
    return (Disk *)node;
}

static void take_time(Fiber *self, GRand *rand)
{
    fiber_sleep(self, (uint64_t)g_rand_int_range(rand, 0, 20000));
}

static void tell_change(const Disk *d, GuestOff off, uint64_t len)
{
    if (d->about_to_change)
        d->about_to_change(d->arg, off.v, len);
}

static bool fails(Disk *d)
{
    return (unsigned)g_rand_int_range(d->rand, 0, 100) < d->fail_percent;
}

static int disk_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                           IoBatch *batch)
{
    size_t half = len / 2;
    memcpy(buf, disk_of(node)->data + off.v, half);
    if (disk_of(node)->next_read_hangs) {
        disk_of(node)->next_read_hangs = false;
        fiber_queue_wait(self, &disk_of(node)->hanging, false, "test: a read that hangs");
    }
    take_time(self, disk_of(node)->rand);
    memcpy((uint8_t *)buf + half, disk_of(node)->data + off.v + half, len - half);
    return 0;
}

static int disk_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    Disk *d = disk_of(node);
    size_t half = len / 2;
    d->n_writes++;
    while (d->hangs)
        fiber_queue_wait(self, &d->hanging, false, "test: a disk that hangs");
    if (d->write_error)
        return d->write_error;
    tell_change(d, off, len);
    memcpy(d->data + off.v, buf, half);
    take_time(self, d->rand);
    if (fails(d))
        return -EIO;
    memcpy(d->data + off.v + half, (const uint8_t *)buf + half, len - half);
    return 0;
}

static int disk_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Disk *d = disk_of(node);
    if (d->has_slow_zeros && flags & NODE_IO_FAST_ZERO)
        return -ENOTSUP;
    take_time(self, d->rand);
    tell_change(d, off, len);
    memset(d->data + off.v, 0, len);
    return fails(d) ? -EIO : 0;
}

static int disk_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Disk *d = disk_of(node);
    take_time(self, d->rand);
    tell_change(d, off, len);
    if (d->next_discard_hangs) {
        d->next_discard_hangs = false;
        fiber_queue_wait(self, &d->hanging, false, "test: a discard that hangs");
    }
    if (!d->discards_nothing)
        memset(d->data + off.v, 0, len);
    return 0;
}

static int disk_flush(Fiber *self, Node *node)
{
    Disk *d = disk_of(node);
    take_time(self, d->rand);
    d->n_flushes++;
    return d->flush_error;
}

static bool is_zero(const Disk *d, uint64_t sector)
{
    static const uint8_t zeros[SECTOR];
    return memcmp(d->data + sector * SECTOR, zeros, SECTOR) == 0;
}

static int disk_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    Disk *d = disk_of(node);
    uint64_t first = off.v / SECTOR, end = first + 1;
    take_time(self, d->rand);
    while (end < N_SECTORS && is_zero(d, end) == is_zero(d, first))
        end++;
    *ret_extent = (NodeExtent){.len = MIN(len, end * SECTOR - off.v),
                               .kind = is_zero(d, first) ? NODE_EXTENT_ZERO : NODE_EXTENT_OPAQUE,
                               .node = node};
    return 0;
}

static NodeCompression disk_compression(Node *node)
{
    if (!disk_of(node)->is_compressed)
        return (NodeCompression){0};
    return (NodeCompression){.cluster_bytes = GRANULE, .method = NODE_COMPRESSION_DEFLATE};
}

static int disk_read_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len,
                                CompressedClusters *c)
{
    uint32_t n = (uint32_t)MIN(len / GRANULE, COMPRESSED_CLUSTERS_MAX);
    fiber_assert_equal(compressed_clusters_reserve(c, node->loop, n), 0);
    for (c->n = 0; c->n < n; c->n++) {
        memcpy(c->data + c->n * GRANULE, disk_of(node)->data + off.v + c->n * GRANULE, GRANULE);
        c->lens[c->n] = GRANULE;
        take_time(self, disk_of(node)->rand);
    }
    c->n_bytes = (uint64_t)n * GRANULE;
    return 0;
}

static int disk_write_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    disk_of(node)->n_compressed_writes++;
    return disk_write(self, node, c->off, c->data, c->n_bytes, 0);
}

static const NodeCompressedOps disk_compressed_ops = {
    .compression = disk_compression,
    .read = disk_read_compressed,
    .write = disk_write_compressed,
};

static const NodeOps disk_ops = {
    .driver = "disk",
    .read_start = disk_read_start,
    .write = disk_write,
    .zero = disk_zero,
    .discard = disk_discard,
    .flush = disk_flush,
    .map = disk_map,
    .compressed = &disk_compressed_ops,
};

static inline Disk *disk_new(Fiber *self, GRand *rand)
{
    Disk *d = g_new0(Disk, 1);
    node_init(&d->node, &disk_ops, fiber_loop(self), "disk", SIZE);
    d->rand = rand;
    for (unsigned i = 0; i < SIZE; i++)
        d->data[i] = (uint8_t)g_rand_int_range(rand, 0, 256);
    return d;
}

// A guest's write, zero or discard; what is written is chosen at random.
static inline int port_change(Fiber *self, Port *port, GRand *rand, RequestKind kind, uint64_t off,
                              uint64_t len)
{
    Node *node = port_enter(self, port, kind);
    g_autofree uint8_t *buf = g_malloc(len);
    memset(buf, g_rand_int_range(rand, 1, 256), len);
    int r = kind == REQUEST_ZERO      ? node_zero(self, node, guest_off(off), len, 0)
            : kind == REQUEST_DISCARD ? node_discard(self, node, guest_off(off), len, 0)
                                      : node_write(self, node, guest_off(off), buf, len, 0);
    port_leave(port, kind);
    return r;
}
