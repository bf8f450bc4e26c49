// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: a layer that is described by a table of granules instead of an image, whose map()
// gives way to other fibers now and then, answers in pieces, and fails where told. Several nodes
// may show one table.
#pragma once

#include <errno.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/node.h"

typedef struct FakeGranule {
    uint8_t kind; // NodeExtentKind
    uint64_t host;
} FakeGranule;

typedef struct FakeTable {
    uint64_t size_bytes, granule_bytes;
    FakeGranule *granules;
    unsigned number; // part of what OPAQUE granules show
    bool tells_may_have;
} FakeTable;

typedef struct FakeLayer {
    Node node;
    const FakeTable *table;
    File *file;  // owned; DATA granules lie in it
    GRand *rand; // borrowed; NULL: never gives way
    unsigned n_maps, n_reads;
    unsigned *n_mapping; // layers that are inside map() now, and the most there were; may be NULL
    unsigned fail_every; // n-th map fails; 0: none
} FakeLayer;

static inline const FakeGranule *fake_granule(const FakeTable *t, uint64_t off)
{
    return &t->granules[off / t->granule_bytes];
}

static inline uint8_t fake_opaque_byte(const FakeTable *t, uint64_t off)
{
    return (uint8_t)(off / t->granule_bytes * 7 + t->number * 31 + 1);
}

// As a driver does that knows nothing of merged maps: what it has not got comes from its backing.
static inline int fake_read_below(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                                  IoBatch *batch)
{
    Node *below = node->backing;
    size_t inside = 0;
    if (below && off.v < below->size_bytes)
        inside = MIN(len, below->size_bytes - off.v);
    memset((uint8_t *)buf + inside, 0, len - inside);
    return inside ? node_read_start(self, below, off, buf, inside, batch) : 0;
}

static inline int fake_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                                  IoBatch *batch)
{
    FakeLayer *fake = (FakeLayer *)node;
    const FakeTable *t = fake->table;
    fake->n_reads++;
    while (len) {
        const FakeGranule *g = fake_granule(t, off.v);
        uint64_t at = off.v % t->granule_bytes;
        size_t n = MIN(len, t->granule_bytes - at);
        int r = 0;
        if (g->kind == NODE_EXTENT_DATA)
            file_read_start(fake->file, host_off(g->host + at), buf, n, batch);
        else if (g->kind == NODE_EXTENT_OPAQUE)
            memset(buf, fake_opaque_byte(t, off.v), n);
        else if (g->kind == NODE_EXTENT_BELOW)
            r = fake_read_below(self, node, off, buf, n, batch);
        else
            memset(buf, 0, n);
        if (r < 0)
            return r;
        off.v += n;
        buf = (uint8_t *)buf + n;
        len -= n;
    }
    return 0;
}

static inline int fake_map(Fiber *self, Node *node, GuestOff off, uint64_t len,
                           NodeExtent *ret_extent)
{
    FakeLayer *fake = (FakeLayer *)node;
    const FakeTable *t = fake->table;
    fake->n_maps++;
    if (fake->fail_every && fake->n_maps % fake->fail_every == 0)
        return -EIO;
    if (fake->n_mapping) {
        fake->n_mapping[0]++;
        fake->n_mapping[1] = MAX(fake->n_mapping[1], fake->n_mapping[0]);
        fiber_yield(self);
        fiber_yield(self);
        fake->n_mapping[0]--;
    }
    if (fake->rand) {
        for (int turns = g_rand_int_range(fake->rand, -3, 4); turns > 0; turns--)
            fiber_yield(self);
    }
    const FakeGranule *g = fake_granule(t, off.v);
    uint64_t at = off.v % t->granule_bytes;
    uint64_t n = t->granule_bytes - at;
    // Granules of a kind that continue are one extent, up to a chance limit.
    unsigned most = fake->rand ? (unsigned)g_rand_int_range(fake->rand, 1, 40) : 1000000;
    for (const FakeGranule *next = g + 1; n < len && next - g < (ptrdiff_t)most; next++) {
        if (next->kind != g->kind)
            break;
        if (g->kind == NODE_EXTENT_DATA &&
            next->host != g->host + (uint64_t)(next - g) * t->granule_bytes)
            break;
        n += t->granule_bytes;
    }
    *ret_extent = (NodeExtent){.len = MIN(n, len), .kind = g->kind};
    if (g->kind == NODE_EXTENT_DATA) {
        ret_extent->file = fake->file;
        ret_extent->host = host_off(g->host + at);
    } else if (g->kind == NODE_EXTENT_OPAQUE) {
        ret_extent->node = node;
    }
    return 0;
}

static inline File *fake_file(Node *node)
{
    return ((FakeLayer *)node)->file;
}

static inline bool fake_may_have(Node *node, GuestOff off, uint64_t len)
{
    const FakeTable *t = ((FakeLayer *)node)->table;
    if (!t->tells_may_have)
        return true;
    for (uint64_t at = off.v; at < off.v + len; at = (at / t->granule_bytes + 1) * t->granule_bytes)
        if (fake_granule(t, at)->kind != NODE_EXTENT_BELOW)
            return true;
    return false;
}

static inline void fake_close(Fiber *self, Node *node)
{
    file_close(self, ((FakeLayer *)node)->file);
}

static const NodeOps fake_ops = {
    .driver = "fake",
    .read_start = fake_read_start,
    .map = fake_map,
    .file = fake_file,
    .may_have = fake_may_have,
    .close = fake_close,
};

// Opens `path` for the DATA of the layer.
static inline FakeLayer *fake_layer_new(Fiber *self, const FakeTable *table, const char *path)
{
    FakeLayer *fake = g_new0(FakeLayer, 1);
    node_init(&fake->node, &fake_ops, fiber_loop(self), "fake", table->size_bytes);
    fake->node.read_only = true;
    fake->table = table;
    g_autoptr(GError) error = NULL;
    if (file_open(self, path, 0, &fake->file, &error) < 0)
        g_error("%s", error->message);
    return fake;
}
