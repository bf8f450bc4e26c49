// SPDX-License-Identifier: LGPL-2.1-or-later
// A node that blockdev-reopen changes, and what is done to several of them on their loops: all of
// it or nothing, up to the commit, which cannot fail. Control loop, with the graph lock held.
#pragma once

#include "chain-core/node-reopen.h"
#include "chain-core/switch.h"
#include "daemon/daemon.h"

// One node that is reopened. Filled by whoever checks what may change; the rest is reopening.c's.
typedef struct Reopening {
    NamedNode *named;
    NodeConfig *config; // as it is to be; owned until it is done
    bool read_only, was_read_only;
    bool changes_backing, changes_file;
    NamedNode *backing; // the new one; NULL: none
    NamedNode *file;    // the new one, where it changes
    bool needs_driver;  // an option changes that its driver sees to
    const Daemon *daemon;

    Node *below;         // `backing` on the node's loop
    GArray *directs;     // of files: page cache or not
    guint n_directs;     // that are changed
    GArray *described;   // nodes that are described within it
    Node *passes_on_to;  // of a filter, say, that did not come with it
    Node *file_below[2]; // now, and then: on the node's loop
    NodeReopen *prepared;
    int result;
    GError *error;
} Reopening;

// Everything that may fail. On failure everything is as before.
int reopenings_prepare(Fiber *self, GArray *all, GError **error);
// What was prepared takes place.
void reopening_commit(Fiber *self, Reopening *r);
// Whether it was committed or not.
void reopening_done(Reopening *r);
