// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's exports by id: nodes that clients of the NBD server see under a name. Control loop;
// the work is done on each node's loop. With the graph lock held, unless said otherwise.
#pragma once

#include "nbd-server.h"
#include "nodes.h"

typedef struct Exports Exports;

typedef struct Export {
    char *id, *name;
    NodeUse *use;     // of the node that it has now: snapshots put others in
    NbdsExport *nbds; // NULL: still being added; freed on its loop while it is shutting down
    NbdServer *server;
    ThrottleGroup *throttle; // whose limits hold, as its user; NULL: there are none
    bool has_own_throttle;   // that were asked for; else the configuration says which
    bool is_shutting_down;
} Export;

static inline NamedNode *export_node(const Export *export)
{
    return export->use->used;
}

typedef struct ExportThrottle {
    const char *group;
    ThrottleLimits limits; // of a group that is made for it; one that is there keeps its own
} ExportThrottle;

// Strings are borrowed for the call.
typedef struct ExportSpec {
    const char *id;
    const char *name;        // what clients call it; "" is the default export
    const char *description; // NULL: none
    bool is_writable;
    bool allows_inactive; // is added to, and stays on, a node that is inactive
    Loop *loop;           // where its node is moved to; NULL: it stays where it is
    // The node is on that loop, or nothing is exported, and stays there; else it is moved if that
    // can be.
    bool is_fixed;
    bool is_writethrough;           // each write is durable before its reply
    const json_t *bitmaps;          // BlockDirtyBitmapOrStr, for clients; NULL: none
    bool has_allocation_depth;      // clients may ask for it
    const ExportThrottle *throttle; // NULL: none of its own
} ExportSpec;

// `removed` (may be NULL) is told when an export is gone.
typedef void ExportRemovedFn(void *arg, const char *id);
Exports *exports_new(Nodes *nodes, NbdServer *server, ExportRemovedFn *removed, void *removed_arg);
// `changed` is told when there is one more, or one less. Once.
void exports_watch(Exports *exports, void (*changed)(void *arg), void *arg);
// The throttle group that the configuration has for the exports of that name; NULL: none. Borrowed.
typedef const char *ExportGroupFn(void *arg, const char *name);
// Holds for exports without limits of their own; NULL (the default): there are no others. Once.
void exports_set_groups(Exports *exports, ExportGroupFn *group_of, void *arg);
// `group_of` answers differently now. Without the lock.
void exports_refresh_groups(Fiber *self, Exports *exports);
// Empty. Accepts NULL.
void exports_free(Exports *exports);

// QEMU's words when it cannot be.
int exports_add(Fiber *self, Exports *exports, NamedNode *named, const ExportSpec *spec,
                Export **ret_export, GError **error);
// Ends the export: its requests end, its clients are disconnected, and its node is closed if nobody
// else uses it. Suspends until then; the lock is not needed. The result of the node's flush.
int exports_remove(Fiber *self, Exports *exports, Export *export);

// What holds for the clients of the export of that id from now on, also for those that it has.
// `throttle` NULL: none of its own. Without the lock. False: there is no such export, or not for
// long.
bool exports_set_throttle(Fiber *self, Exports *exports, const char *id,
                          const ExportThrottle *throttle);

// Returns when all additions, or removals, that have begun are over. Without the lock.
void exports_wait_added(Fiber *self, Exports *exports);
void exports_wait_removed(Fiber *self, Exports *exports);

// What its clients did, and how many there are. False: it is being added or removed. Without the
// lock; never waits.
bool exports_get_stats(const Export *export, NbdsExportStats *ret_stats);

// Has the export of that id, if there is one, clients? One that has closed its connection may not
// be gone yet: it is given a moment. Without the lock; others may remove the export meanwhile.
bool exports_have_clients(Fiber *self, const Exports *exports, const char *id);

// NULL: there is none. Without the lock, too: one that is still being added is not there yet.
Export *exports_find(const Exports *exports, const char *id);
// All of them, Export, in the order in which they came; without the lock, one may still be being
// added. Borrowed until one comes or goes.
const GPtrArray *exports_all(const Exports *exports);
