// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening a chain: from a file name to the top node of its graph, with every layer below opened,
// locked and joined by the merged map. On the calling fiber's loop.
#pragma once

#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "chain-core/qcow2.h"

typedef struct ChainOpenOptions {
    const char
        *format; // "qcow2", "raw" or NULL: only the qcow2 magic is accepted, never on a device
    const char
        *snapshot; // internal snapshot of the top image, by id or name; read-only. NULL: head
    bool read_only;
    bool direct;
    bool force_share; // take no locks that exclude others; implies read_only
    // For images that nobody vouches for: backing and data files only below these folders
    // (NULL-terminated), with no links out of them; NULL: anywhere. And no data files at all.
    const char *const *allowed_dirs;
    bool no_data_files;
    MapMemory *memory;         // borrowed, outlives the chain
    const Qcow2Events *events; // borrowed, outlives the chain; NULL: nobody is told
    // Hears of the host's failures with each file, as file_set_event_fn() has it; may be NULL.
    FileEventFn *file_event;
    void *file_event_arg;
} ChainOpenOptions;

typedef struct ChainInfo {
    unsigned n_layers;      // 1 = no backing
    const char *top_format; // literal
    char **notices; // sentences to log once (bitmaps dropped, repaired, …), NULL-terminated
} ChainInfo;
void chain_info_clear(ChainInfo *info);

// Opens `path` (or a json: name) and all below. Returns a node with one reference. The error is
// one sentence: file, offset where it applies, reason, remedy. Bound: CHAIN_MAX_LAYERS.
enum { CHAIN_MAX_LAYERS = 1000 };
int chain_open(Fiber *self, const char *path, const ChainOpenOptions *options, Node **ret_node,
               ChainInfo *ret_info, GError **error);

// Makes `below` (NULL: nothing) the backing layer of `overlay`, with a merged map between them that
// answers for all that lies below. Takes new references. Drained, if requests can reach `overlay`.
void chain_set_backing(Fiber *self, Node *overlay, Node *below, MapMemory *memory);
// The next layer or filter below `node`, merged maps skipped; NULL at the base. Borrowed.
Node *chain_backing(const Node *node);
