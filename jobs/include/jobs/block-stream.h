// SPDX-License-Identifier: LGPL-2.1-or-later
// Stream: an image comes to own what it shows of layers below it, which then leave the chain. It
// may be the head, or a layer in the middle. Everything here is on the image's loop.
//
//     block_stream_new → block_stream_run → block_stream_switch → block_stream_free
//
// Write order (docs/ordering.md §17): what was filled is durable → the header names the new backing
// file → the old layers are closed.
#pragma once

#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "jobs/job-control.h"

typedef struct BlockStream BlockStream;

// Takes references on the nodes: `image` (no filter; writable as long as this is there), and
// `bottom`, the lowest of those below it that are to leave: a layer, or a filter over what stays.
// NULL: none is. Stays the same: nodes between them, and whether `image` has internal snapshots,
// which there must be none of. `owner` is for messages. The image stays on its loop.
BlockStream *block_stream_new(Node *image, Node *bottom, MapMemory *memory, const char *owner);
// Closes what nobody else uses any more.
void block_stream_free(Fiber *self, BlockStream *stream); // accepts NULL

// The work of a job: JobKind.run. 0, -ECANCELED or an error, and some of it may be filled.
int block_stream_run(Fiber *self, BlockStream *stream, JobControl *control, JobOnError on_error,
                     GError **error);

// How the image's header is to name what lies below `bottom`; both NULL where nothing does.
typedef struct BlockStreamBacking {
    const char *name, *format;
} BlockStreamBacking;
// After block_stream_run(): what lies below `bottom` lies below the image from here on. Guests wait
// for requests in flight only. On failure nothing has changed, but what is filled.
int block_stream_switch(Fiber *self, BlockStream *stream, const BlockStreamBacking *backing,
                        GError **error);
