// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's nodes by name: added, used by others, deleted; a node that nobody added by itself
// goes with its last user. Control loop: functions with `self` suspend while the nodes' loops work;
// those that change the table are called with the graph lock held.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/throttle-group.h"
#include "loops.h"
#include "named-node.h"

typedef struct Nodes Nodes;

// `loops` and `memory` are borrowed and outlive the table. `emit` (may be NULL) is told of events,
// on any thread.
Nodes *nodes_new(const Loops *loops, MapMemory *memory, NodeOriginEmit *emit, void *emit_arg);
// From which nodes that are made have their groups; outlives the table. Before any is made.
void nodes_set_throttle_groups(Nodes *nodes, ThrottleGroups *groups);
ThrottleGroups *nodes_throttle_groups(const Nodes *nodes);    // NULL: there are none
void nodes_set_tls_creds(Nodes *nodes, TlsCredsTable *creds); // likewise
// When every node is closed. Accepts NULL.
void nodes_free(Nodes *nodes);

// Held by whoever changes the graph, from before it looks until it is done. Queries do not take it.
FiberMutex *nodes_graph_lock(Nodes *nodes);

// Held for reading by whoever ends what uses a node on the node's loop, as long as that takes:
// nodes do not move meanwhile.
FiberRwLock *nodes_move_lock(Nodes *nodes);
// Moves a node, and all that has to be on its loop, to `loop`, one of those of nodes_new().
int nodes_move(Fiber *self, Nodes *nodes, NamedNode *named, Loop *loop, GError **error);

// What is about to be changed is there once: see node_make_single().
int nodes_make_single(Fiber *self, Nodes *nodes, NamedNode *named, GError **error);

// Opens what `config` (taken) describes, and names all its nodes; the top is added. `label` is what
// the user calls it, for the log; NULL: its node-name. On the loop of the nodes that the config
// names; without any, on the next one in turn.
int nodes_add(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label,
              NamedNode **ret_named, GError **error);
// The same, and the graph lock is given up while the nodes are opened if that needs another
// machine. What the config names stays; anything else may have changed.
int nodes_add_unlocking(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label,
                        NamedNode **ret_named, GError **error);
// Deletes a node that was added, and with it what nobody else uses, once what was written is
// flushed. QEMU's words when it cannot be deleted. The result of the flush is `*ret_flushed`.
int nodes_delete(Fiber *self, Nodes *nodes, NamedNode *named, int *ret_flushed, GError **error);
// At the daemon's end: as if it had not been added by itself. Its users keep it until they end.
int nodes_close(Fiber *self, Nodes *nodes, NamedNode *named);
// At the daemon's end: what waits for other machines fails. Returns before the loops do it.
void nodes_give_up(const Nodes *nodes);
// What waits for the machine that has this node fails, and so does what comes; what only lies below
// it, as its backing file, stays. Somebody holds it. Returns before the loop does it.
void nodes_give_up_own(const NamedNode *named);
// Likewise, what nodes_add_unlocking() is opening.
void nodes_give_up_opening(Fiber *self, Nodes *nodes);
// Copies the facts of the node, and of what its image lies in, again: who changed its size, say,
// tells control so.
void nodes_refresh(Fiber *self, NamedNode *named);

// NULL: there is none of that name.
NamedNode *nodes_find(const Nodes *nodes, const char *name);
// The same with QEMU's sentence.
NamedNode *nodes_get(const Nodes *nodes, const char *name, GError **error);
// All of them, NamedNode, in the order in which they came. Borrowed until the table changes.
const GPtrArray *nodes_all(const Nodes *nodes);
// Their names, for those who suspend between one and the next; owned.
char **nodes_names(const Nodes *nodes);

// That somebody outside of the graph uses `named`, and perhaps writes to it; `user` (copied) is for
// messages. Owned. Whether the other users allow that is for named_node_check_use() to say.
NodeUse *nodes_use(NamedNode *named, const char *user, bool writes);
// Ends that, and closes what nobody uses any more. The result of the flush.
int nodes_end_use(Fiber *self, Nodes *nodes, NodeUse *use);

// Has `named` on that loop, as the node itself or as an instance, for who is about to use it there:
// node_instances_get().
int nodes_bring_to(Fiber *self, Nodes *nodes, NamedNode *named, Loop *loop, GError **error);
// The node is what `config` (taken) describes from now on.
void nodes_set_config(NamedNode *named, NodeConfig *config);
// It has another child of that role, or (NULL) none; what nobody uses any more is closed.
void nodes_set_child(Fiber *self, Nodes *nodes, NamedNode *named, const char *role,
                     NamedNode *child);
