// SPDX-License-Identifier: LGPL-2.1-or-later
// The steps from a file's name to a node of a chain, one image at a time: open and lock the file,
// see what lies below, load. chain_open() makes whole chains of them; who has the nodes below
// already (blockdev-add) takes the steps by itself:
//
//     layer_open_config() → layer_load() → node; chain_set_backing(node, below)
//
// On the calling fiber's loop.
#pragma once

#include "chain-core/node-config.h"

typedef struct Layer Layer;

typedef struct LayerOptions {
    const char *format;   // a driver's name; NULL: as the name or the file itself says
    const char *snapshot; // internal snapshot, by id or name; read-only then. NULL: the head
    bool read_only;
    bool direct;
    bool auto_read_only; // what cannot be written is opened for reading
    bool force_share;    // take no locks that exclude others; implies read_only
    bool is_inactive;    // the nodes are, as node_set_active() has it; read_only, too
    // For images that nobody vouches for: backing and data files only below these folders
    // (NULL-terminated), with no links out of them; NULL: anywhere. And no data files at all.
    const char *const *allowed_dirs;
    bool no_data_files;
    // What an image's header names on another machine is not opened: -EREMOTE.
    bool refuses_remote;
    // Finds the nodes that a config names, which live on this loop; borrowed, NULL: there is none
    // of that name. May be NULL.
    Node *(*find_node)(void *arg, const char *name);
    void *find_arg;
    MapMemory *memory;               // borrowed, outlives the node
    ThrottleGroups *throttle_groups; // borrowed; NULL: there are none
    TlsCredsTable *tls_creds;        // likewise
    const NodeEvents *events;        // borrowed, outlives the node; NULL: nobody is told
    // Hears of the host's failures with each file, as file_set_event_fn() has it; may be NULL.
    FileEventFn *file_event;
    void *file_event_arg;
} LayerOptions;

// Opens and locks the file of `name` (a path or a json: name) and reads its header; nothing is
// written. `options` is borrowed until layer_drop(). The error is one sentence: file, offset where
// it applies, reason, remedy. Returned owned: layer_drop().
int layer_open(Fiber *self, const char *name, const LayerOptions *options, Layer **ret_layer,
               GError **error);
// The same for a format in a file, as `config` (borrowed until layer_drop()) describes it. What
// `options` say holds for what it leaves open; its `format` is not looked at.
int layer_open_config(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                      Layer **ret_layer, GError **error);
// The same for the image that lies below `above`, with its options but read-only: as the config's
// "backing" says, or as its header records it. 0 and NULL when there is none, or it is a node that
// there is. Once for each layer, before it is loaded; `above` outlives the new one.
int layer_open_next(Fiber *self, Layer *above, Layer **ret_layer, GError **error);
// The same for what a config says somewhere between them and not right below `above`.
int layer_open_described(Fiber *self, Layer *above, const NodeConfig *config, Layer **ret_layer,
                         GError **error);
// A file by itself, as `config` (of a file's driver) describes it. Nobody is kept out of it before
// a format lies in it.
int layer_open_file(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                    Node **ret_node, GError **error);
// Keeps other programs out of a file that is used without a format in it, itself or through
// filters: as a format would, beside what is locked already. A format has locked its own.
int layer_lock_node(Fiber *self, Node *node, bool is_writable, GError **error);
// Ends that, once nobody uses the file any more in any way, or the filters over it; or what only
// writing needs of it, once nobody writes. Each of those nodes has the one reference of whoever can
// find it.
void layer_unlock_node(Fiber *self, Node *node);
// Makes the node; once. Layers that are not writable may be loaded side by side.
int layer_load(Fiber *self, Layer *layer, Node **ret_node, GError **error);
// Frees the layer, and closes what was not loaded. Accepts NULL.
void layer_drop(Fiber *self, Layer *layer);

const char *layer_format(const Layer *layer); // the driver's name
const char *layer_path(const Layer *layer);
bool layer_is_writable(const Layer *layer);
const NodeConfig *layer_config(const Layer *layer);
// The config, where it was made up from a name: owned. NULL: it was given.
NodeConfig *layer_take_config(Layer *layer);

// A node that was made for what an image lies in.
typedef struct LayerNode {
    Node *node;
    const NodeConfig *config; // NULL: only an image's header speaks of it
    int above;                // whose child it is, by number; -1: the image's
    const char *role;         // as which child
} LayerNode;
// Of the image's "file", or its "data-file": LayerNode, borrowed until layer_drop(), parents first;
// NULL: none was made. The first is a child of `node`, which was loaded.
const GArray *layer_nodes(Layer *layer, const char *role, Node *node);
