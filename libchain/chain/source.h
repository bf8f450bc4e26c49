// SPDX-License-Identifier: LGPL-2.1-or-later
// What an image lies in: a file of the host, opened and locked as its layer wants it, or a node
// that there is already, or one that is made as a description says, with all that lies below it. On
// the layer's loop.
#pragma once

#include "chain-core/layer.h"

// How a layer's files are opened.
typedef struct SourceMode {
    bool is_writable, is_direct;
    bool is_shared;     // other programs may write it
    bool is_locked;     // and are kept out
    bool is_inactive;   // but not as long as it is that
    bool may_fall_back; // to read-only, when it cannot be written
    bool follows;       // read-only where what it lies in is
} SourceMode;

typedef struct Source {
    File *file;               // a reference; NULL: there is none
    Node *node;               // that holds it, a reference; NULL: not made yet
    const NodeConfig *config; // of a file; NULL: only a name says it
    GArray *made;             // LayerNode; NULL: not made yet
} Source;

// The file that was opened is what `config` (borrowed, for as long as it is open) describes: of the
// kind that its driver wants. On failure it is closed.
int source_take_config(Fiber *self, const NodeConfig *config, Source *source, GError **error);
// Opens the file at `path`. `mode->is_writable` is cleared where it falls back.
int source_open(Fiber *self, const char *path, const LayerOptions *options, SourceMode *mode,
                Source *ret_source, GError **error);
// The same for one that an image names: only where the options allow it.
int source_open_confined(Fiber *self, const char *path, const LayerOptions *options,
                         SourceMode *mode, Source *ret_source, GError **error);
// What `child`, not a file that is described, names or describes.
int source_take(Fiber *self, const NodeConfigChild *child, const LayerOptions *options,
                SourceMode *mode, Source *ret_source, GError **error);
// The node of a file, by itself, as `config` describes it. Not locked.
int source_make_file(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     SourceMode mode, Node **ret_node, GError **error);
// What options of a description change for what it describes.
SourceMode source_mode_of(const NodeConfig *config, SourceMode above);
// Keeps other programs out as `mode` says, and looks how the file is now.
int source_lock(Fiber *self, const Source *source, const SourceMode *mode, GError **error);
// The node that holds the file; made at the first call. Borrowed; NULL: there is no file.
Node *source_node(Source *source);
// All nodes that were made for it, the first of them that one; none, where it was there already.
const GArray *source_nodes(Source *source);
void source_close(Fiber *self, Source *source);

// `node`, which was there before, as the file of what lies in it. A new reference.
int source_file_of(Node *node, bool is_writable, File **ret_file, GError **error);
// Keeps other programs out of it as a format does that is opened there.
int source_lock_also(Fiber *self, File *file, bool is_writable, GError **error);

// Adds what to do to the sentence of an error; `error` may be NULL.
void source_add_remedy(GError **error, const char *remedy);
