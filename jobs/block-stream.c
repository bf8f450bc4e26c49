// SPDX-License-Identifier: LGPL-2.1-or-later
// What is to be filled is what a layer between the image and what stays below owns; where nothing
// stays below, what reads as zeros stays as it is. On the image's loop.
//
// Reads of metadata and each chunk enter through a port, so whoever drains the chain waits for one
// of them and not for the job, which then waits like a guest.
#include "jobs/block-stream.h"

#include <errno.h>

#include "chain-core/chain-range.h"
#include "chain-core/chain.h"
#include "chain-core/loop.h"
#include "chain-core/mutant.h"
#include "chain-core/node-fill.h"
#include "chain-core/qcow2.h"
#include "chain-core/switch.h"
#include "job-copy.h"
#include "job-space.h"

struct BlockStream {
    JobCopy copy; // first
    Port port;    // of the image
    Node *bottom; // a reference; NULL: nothing leaves
    MapMemory *memory;
};

BlockStream *block_stream_new(Node *image, Node *bottom, MapMemory *memory, const char *owner)
{
    BlockStream *stream = g_new0(BlockStream, 1);
    port_init(&stream->port, image, owner);
    stream->port.is_background = true;
    stream->port.perms = (NodePerms){.held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED,
                                     .shared = NODE_PERM_ALL};
    stream->bottom = bottom ? node_ref(bottom) : NULL;
    stream->memory = memory;
    return stream;
}

void block_stream_free(Fiber *self, BlockStream *stream)
{
    if (!stream)
        return;
    node_unref_close(self, stream->bottom);
    port_done(self, &stream->port);
    g_free(stream);
}

// -- the copy -------------------------------------------------------------------------------------

static int find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    BlockStream *stream = arg;
    Node *image = port_enter(self, &stream->port, REQUEST_READ);
    ChainLayers layers = {
        .above = image,
        .top = chain_backing(image),
        .base = chain_backing(stream->bottom),
    };
    ChainRange range;
    int r = chain_range_find(self, &layers, guest_off(off), len, &range);
    port_leave(&stream->port, REQUEST_READ);
    if (r < 0)
        return r;
    *ret_extent = (CopyExtent){
        .len = range.len,
        .is_work = range.is_owned && !(range.is_zero && !layers.base),
        .kind = range.is_zero ? WORK_METADATA : WORK_DATA,
    };
    return 0;
}

static int copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    BlockStream *stream = arg;
    NodeFillResult result = {0};
    Node *image = port_enter(self, &stream->port, REQUEST_WRITE);
    NodeFillFlags flags = chain_backing(stream->bottom) ? 0 : NODE_FILL_ZEROS_STAY;
    int r = node_fill(self, image, guest_off(chunk->off), chunk->len, flags, &result);
    port_leave(&stream->port, REQUEST_WRITE);
    chunk->copied_bytes = result.copied_bytes;
    chunk->shared_bytes = result.shared_bytes;
    chunk->failed_reading = result.failed_reading;
    return r;
}

static const CopyEngineOps ops = {.find = find, .copy = copy, JOB_COPY_OPS};

static CopyEngineConfig engine_config(BlockStream *stream)
{
    Node *image = stream->port.node;
    CopyEngineConfig config = {
        .size_bytes = image->size_bytes,
        .guests = image,
        .ops = &ops,
        .arg = stream,
    };
    job_copy_choose_sizes(&config, image);
    return config;
}

static int flush(Fiber *self, BlockStream *stream, GError **error)
{
    Node *image = port_enter(self, &stream->port, REQUEST_FLUSH);
    int r = MUTANT("stream-flush") ? 0 : node_flush(self, image);
    port_leave(&stream->port, REQUEST_FLUSH);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "%s: what was copied into it does not become durable: %s", image->name,
                    g_strerror(-r));
    return r;
}

int block_stream_run(Fiber *self, BlockStream *stream, JobControl *control, JobOnError on_error,
                     GError **error)
{
    if (!stream->bottom)
        return 0;
    CopyEngineConfig config = engine_config(stream);
    JobSpace space = {&config, &stream->port, chain_backing(stream->port.node), stream->port.node};
    int r = job_space_check(self, &space, control, on_error, error);
    if (r < 0)
        return r;
    stream->copy = (JobCopy){.control = control,
                             .on_read_error = on_error,
                             .on_write_error = on_error,
                             .counts_all = true,
                             .source = space.source,
                             .target = space.target};
    job_copy_begin(&stream->copy, fiber_loop(self), &config);
    r = job_copy_run(self, &stream->copy);
    job_copy_explain(&stream->copy, r, error);
    job_copy_end(&stream->copy);
    return r < 0 ? r : flush(self, stream, error);
}

// -- the switch -----------------------------------------------------------------------------------

static int switch_graph(Fiber *self, BlockStream *stream, GError **error)
{
    Node *image = stream->port.node, *base = chain_backing(stream->bottom);
    Node *below = base ? chain_below_new(self, base, stream->memory) : NULL;
    Switch *s = switch_new(REQUESTS_ALL);
    switch_set_backing(s, image, below);
    int r = switch_drain_in_tries(self, s, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
    if (r == 0) {
        switch_commit(s);
        switch_resume(s);
    } else {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "%s keeps its backing file, since a request to it has not ended within %u s; "
                    "its storage does not answer",
                    image->name, (unsigned)(PORT_MAX_STALL_NS / 1000000000));
    }
    switch_end(self, s);
    node_unref_close(self, below);
    return r;
}

static int set_backing(Fiber *self, Node *image, const BlockStreamBacking *backing, GError **error)
{
    return qcow2_set_backing_name(self, image, backing->name, backing->format, error);
}

// What was filled is durable since the run's end (docs/ordering.md §17). Now it is named, then
// joined; whoever closes what left does so after it.
int block_stream_switch(Fiber *self, BlockStream *stream, const BlockStreamBacking *backing,
                        GError **error)
{
    if (!stream->bottom)
        return 0;
    Node *image = stream->port.node;
    const Qcow2Image *old = qcow2_node_image(image); // no other driver has a backing child
    g_autofree char *name = g_strdup(qcow2_image_backing_name(old));
    g_autofree char *format = g_strdup(qcow2_image_backing_format(old));
    int r = set_backing(self, image, backing, error);
    if (r < 0)
        return r;
    r = switch_graph(self, stream, error);
    if (r < 0) // what it names is open still, and shows the same
        set_backing(self, image, &(BlockStreamBacking){name, format}, NULL);
    return r;
}
