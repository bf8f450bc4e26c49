// SPDX-License-Identifier: LGPL-2.1-or-later
// What nodes that were opened together have in common: the description they were made of, and where
// their events go: to the log, and to monitors. The counting is control's; events come on the
// nodes' loop.
#pragma once

#include "chain-core/node-config.h"
#include "file-log.h"

typedef struct NodeOrigin NodeOrigin;

// Tells all monitors; any thread. Takes `data`.
typedef void NodeOriginEmit(void *arg, const char *event, json_t *data);

struct NodeOrigin {
    NodeEvents events; // first
    unsigned n_refs;
    char *label;            // what the user calls it, for the log
    char *name;             // of the top node, for events
    NodeConfig *config;     // owned
    GPtrArray *own_configs; // NodeConfig that headers gave, owned
    FileLog file_log;
    bool is_corrupt; // an image turned out to be; set on its loop
    gint64 quiet_until_us;
    NodeOriginEmit *emit;
    void *emit_arg;
};

// Takes `config`. `emit` may be NULL.
NodeOrigin *node_origin_new(const char *label, NodeConfig *config, NodeOriginEmit *emit,
                            void *emit_arg);
NodeOrigin *node_origin_ref(NodeOrigin *origin);
void node_origin_unref(NodeOrigin *origin); // accepts NULL

// A FileEventFn; `origin` is a NodeOrigin.
void node_origin_file_event(File *file, const FileEvent *event, void *origin);
