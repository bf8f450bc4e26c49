// SPDX-License-Identifier: LGPL-2.1-or-later
// Compressed clusters as they are: NodeCompressedOps. A stream's entry says in which sector it
// ends, not at which byte. Where another stream begins in that sector this one has ended before,
// for streams of an image do not overlap; so clusters that were written one behind the other are as
// short as they were, and others have up to a sector of what happens to follow them.
//
// Nothing names the bytes where streams are written to, so that needs no lock. What they replace is
// looked at under the lock of the guest clusters, in one step with the change of the entries: a
// write replaces whatever is there by then, a fill only what is still unallocated.
//
//     take space → write → begin the change → set entries → end → give back what was not linked
//
// Write order (docs/ordering.md §1, §2, §16): as for other writes. In fibers on the image's loop.
#include "chain-core/node-compressed.h"

#include <assert.h>
#include <errno.h>

#include "chain-core/io-buffers.h"
#include "chain-core/mutant.h"
#include "format/qcow2-compression.h"
#include "qcow2/open.h"
#include "qcow2/packed.h"
#include "qcow2/view.h"

static NodeCompression view_compression(Node *node)
{
    const Qcow2Image *image = view_of(node)->image;
    if (image->geometry.external_data)
        return (NodeCompression){0};
    return (NodeCompression){
        .cluster_bytes = image->geometry.cluster_bytes,
        .method = image->header.compression == QCOW2_COMPRESSION_ZSTD ? NODE_COMPRESSION_ZSTD
                                                                      : NODE_COMPRESSION_DEFLATE,
    };
}

// -- reading --------------------------------------------------------------------------------------

typedef struct Stream {
    HostOff host;
    uint32_t bytes; // at most
} Stream;

// Of the clusters from `off` on, `max` of them at most.
static int find_streams(Fiber *self, Qcow2View *view, GuestOff off, uint32_t max, Stream *streams,
                        uint32_t *ret_n)
{
    uint64_t cluster = view->image->geometry.cluster_bytes;
    *ret_n = 0;
    for (uint32_t i = 0; i < max; i++) {
        MappingRun run;
        int r = mapping_find(self, view, guest_off(off.v + i * cluster), cluster, &run);
        if (r < 0 || run.kind != QCOW2_CLUSTER_COMPRESSED)
            return i ? 0 : r;
        streams[i] = (Stream){run.host, run.compressed_bytes};
        *ret_n = i + 1;
    }
    return 0;
}

// Those that can be taken as they are, from the first on. One whose last sector reaches past the
// file's end may lack its own end, which only who inflates it can tell.
static uint32_t trim_streams(const Qcow2Image *image, Stream *streams, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        Stream *s = &streams[i];
        if (i + 1 < n && streams[i + 1].host.v - s->host.v - 1 < s->bytes)
            s->bytes = streams[i + 1].host.v - s->host.v;
        if (s->bytes > image->geometry.cluster_bytes ||
            s->host.v + s->bytes > file_size(image->file))
            return i;
    }
    return n;
}

// Streams that lie one behind the other come with one read.
static int read_streams(Fiber *self, Qcow2Image *image, const Stream *streams,
                        CompressedClusters *c)
{
    IoBatch batch;
    io_batch_init(&batch, self);
    for (uint32_t i = 0, next; i < c->n; i = next) {
        uint64_t bytes = c->lens[i];
        for (next = i + 1; next < c->n && streams[next].host.v == streams[i].host.v + bytes; next++)
            bytes += c->lens[next];
        file_debug_event(image->file, DEBUG_READ_COMPRESSED);
        file_read_start(image->file, streams[i].host, c->data + c->n_bytes, bytes, &batch);
        c->n_bytes += bytes;
    }
    return io_batch_wait(self, &batch);
}

static int view_read_compressed(Fiber *self, Node *node, GuestOff off, uint64_t len,
                                CompressedClusters *c)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    Stream streams[COMPRESSED_CLUSTERS_MAX + 1];
    uint64_t left = (node->size_bytes - off.v) >> image->geometry.cluster_bits;
    uint32_t n, max = MIN(len >> image->geometry.cluster_bits, COMPRESSED_CLUSTERS_MAX);
    if (image->is_shared) // its program may write them now
        return 0;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(image);
    int r = find_streams(self, view, off, MIN(max + 1, left), streams, &n);
    if (r == 0)
        n = MIN(trim_streams(image, streams, n), max);
    if (r < 0 || !n)
        return r;
    r = compressed_clusters_reserve(c, image->loop, n);
    if (r < 0)
        return r;
    c->n = n;
    for (uint32_t i = 0; i < n; i++)
        c->lens[i] = streams[i].bytes;
    return read_streams(self, image, streams, c);
}

// -- writing --------------------------------------------------------------------------------------

// Some of `c`, from number `first` on, which lie at `place`.
typedef struct Packed {
    const CompressedClusters *c;
    uint32_t first;
    PackedPlace place;
    bool only_missing; // what is not unallocated any more stays
    bool linked[COMPRESSED_CLUSTERS_MAX];
} Packed;

static int write_streams(Fiber *self, Qcow2Image *image, const PackedPlace *place,
                         const uint8_t *data)
{
    uint64_t turn = file_is_in_memory(image->file) ? IO_TURN_BYTES : place->bytes;
    int r = 0;
    file_debug_event(image->file, DEBUG_WRITE_COMPRESSED);
    for (uint64_t done = 0; r == 0 && done < place->bytes; done += turn) {
        if (done)
            fiber_sleep(self, 0);
        r = file_write(self, image->file, host_off(place->host.v + done), data + done,
                       MIN(turn, place->bytes - done));
    }
    return r;
}

// May entry `i` of the change become that of a stream? 1, 0, or what is wrong with it.
static int may_link(const MappingChange *change, uint32_t i, bool only_missing)
{
    Qcow2L2Entry old = mapping_get(change, i);
    if (old.kind == QCOW2_CLUSTER_BAD)
        return image_mark_corrupt(
            change->view->image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged",
            cluster_span_cluster(&change->view->image->geometry, &change->span, i).v);
    if (only_missing && !MUTANT("fill-links-only-missing-compressed"))
        return old.kind == QCOW2_CLUSTER_UNALLOCATED && !old.zero_bitmap;
    int r = mapping_check(change, i);
    return r < 0 ? r : 1;
}

// Is something of an entry that stays still not the node's?
static bool lacks_more(const MappingChange *change, uint32_t i)
{
    Qcow2L2Entry e = mapping_get(change, i);
    return change->view->image->geometry.extended_l2 && e.kind != QCOW2_CLUSTER_COMPRESSED &&
           ~(e.alloc_bitmap | e.zero_bitmap);
}

// Stream `i` of `p` and those behind it that `span` has a place for: *host moves on.
static int link_span(Fiber *self, Qcow2View *view, const ClusterSpan *span, Packed *p, uint32_t i,
                     HostOff *host)
{
    MappingChange change;
    bool is_missing = false;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    int r = mapping_begin(self, view, span, &change);
    if (r < 0)
        return r;
    file_debug_event(view->image->file, DEBUG_L2_UPDATE_COMPRESSED);
    for (uint32_t at = 0; r >= 0 && at < span->n; at++, i++) {
        uint32_t len = p->c->lens[p->first + i];
        Qcow2L2Entry e = {QCOW2_CLUSTER_COMPRESSED, .host = *host, .compressed_bytes = len};
        r = may_link(&change, at, p->only_missing);
        if (r > 0)
            mapping_set(&change, at, &e);
        else if (r == 0)
            is_missing |= lacks_more(&change, at);
        p->linked[i] = r > 0;
        host->v += len;
    }
    mapping_end(&change);
    return r < 0 ? r : is_missing;
}

// 1: part of a cluster is still missing.
static int link_streams(Fiber *self, Qcow2View *view, Packed *p)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    HostOff host = p->place.host;
    bool is_missing = false;
    int r = 0;
    for (uint32_t i = 0; r >= 0 && i < p->place.n;) {
        uint64_t n_released = image->freed.n_released;
        GuestOff off = guest_off(p->c->off.v + ((uint64_t)(p->first + i) << g->cluster_bits));
        ClusterSpan span = cluster_span_make(g, off, (uint64_t)(p->place.n - i) << g->cluster_bits);
        r = link_span(self, view, &span, p, i, &host);
        if (r >= 0) {
            is_missing |= r;
            i += span.n;
        } else if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released)) {
            r = 0; // a table found no room: again
        }
    }
    return r < 0 ? r : is_missing;
}

static void release_others(Fiber *self, Qcow2Image *image, const Packed *p)
{
    HostOff host = p->place.host;
    for (uint32_t i = 0; i < p->place.n; i++) {
        uint32_t len = p->c->lens[p->first + i];
        if (!p->linked[i])
            packed_release(self, image, host, len);
        host.v += len;
    }
}

// So many of them as find a place at once: p->place. 1: part of one is still missing.
static int put_some(Fiber *self, Qcow2View *view, Packed *p, const uint8_t *data)
{
    Qcow2Image *image = view->image;
    const CompressedClusters *c = p->c;
    int r = packed_take(self, image, c->lens + p->first, c->n - p->first, &p->place);
    if (r < 0)
        return r;
    r = MUTANT("packed-written-before-linked") ? 0 : write_streams(self, image, &p->place, data);
    if (r == 0)
        r = link_streams(self, view, p);
    if (MUTANT("packed-written-before-linked"))
        write_streams(self, image, &p->place, data);
    release_others(self, image, p);
    return r;
}

static int put(Fiber *self, Node *node, const CompressedClusters *c, bool only_missing)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    const uint8_t *data = c->data;
    bool is_missing = false;
    int r = image_begin_change(self, image);
    for (uint32_t first = 0; r >= 0 && first < c->n;) {
        uint64_t n_released = image->freed.n_released;
        Packed p = {.c = c, .first = first, .only_missing = only_missing};
        r = put_some(self, view, &p, data);
        if (r >= 0) {
            is_missing |= r;
            first += p.place.n;
            data += p.place.bytes;
        } else if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released)) {
            r = 0;
        }
    }
    return r < 0 ? r : is_missing;
}

static int view_write_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    return put(self, node, c, false);
}

static int view_fill_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    return put(self, node, c, true);
}

// -- compressing ----------------------------------------------------------------------------------

static int deflate_work(void *arg)
{
    return qcow2_deflate(arg);
}

static int view_compress(Fiber *self, Node *node, const void *buf, uint32_t n,
                         CompressedClusters *c)
{
    const Qcow2Image *image = view_of(node)->image;
    int r = compressed_clusters_reserve(c, image->loop, n);
    if (r < 0)
        return r;
    Qcow2DeflateRun run = {
        .type = image->header.compression,
        .in = buf,
        .n = n,
        .cluster_bytes = image->geometry.cluster_bytes,
        .out = c->data,
        .lens = c->lens,
    };
    r = loop_work(self, deflate_work, &run);
    if (r < 0)
        return r;
    c->n = r;
    for (uint32_t i = 0; i < c->n; i++)
        c->n_bytes += c->lens[i];
    return 0;
}

const NodeCompressedOps view_compressed_ops = {
    .compression = view_compression,
    .read = view_read_compressed,
    .write = view_write_compressed,
    .compress = view_compress,
    .fill = view_fill_compressed,
};
