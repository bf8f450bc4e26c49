// SPDX-License-Identifier: LGPL-2.1-or-later
// Changes to a graph under load, several in one step that no request sees half of. On the nodes'
// loop; for nodes of several loops there is a Switch for each, and the caller takes them through
// the stages together: all prepared, all drained, all committed, all resumed.
//
//     switch_new → record steps → switch_drain → switch_commit → switch_resume → switch_end
//                  (may do I/O)   (may fail)     (memory only)                   (may do I/O)
//
// At any stage before the commit switch_end() is the abort: nothing has changed then. Nothing is
// closed while requests are kept out: what the steps mention, and the references they drop, are
// kept until switch_end().
#pragma once

#include "chain-core/port.h"

typedef struct Switch Switch;

// `kinds` are drained for the step. REQUESTS_THAT_WRITE is enough where content reads the same
// before and after, and all that requests in flight may use still lies below (a filter or an
// overlay put on top); where the steps find drivers that must be told of changes below them,
// everything is drained.
Switch *switch_new(RequestMask kinds);

// Steps, committed in the order in which they were recorded. Nodes are of this loop.
void switch_set_backing(Switch *s, Node *node, Node *backing);
// All parents and ports of `from` become those of `to`, except parents that lie below `to` then,
// and views (NodeOps.is_view).
void switch_move_users(Switch *s, Node *from, Node *to);
void switch_move_port(Switch *s, Port *port, Node *to);
// `filter` (whose backing child is NULL) goes between `node` and all its parents and ports, except
// those that lie below it then. Sets at once what it has of the node: its mode, and good sizes.
void switch_insert_filter(Switch *s, Node *node, Node *filter);
// `fn` changes memory only: it does not suspend, and cannot fail.
typedef void SwitchFn(void *arg);
void switch_call(Switch *s, SwitchFn *fn, void *arg);

// Keeps requests out, at all places at once, and waits for those in flight: 0, -ECANCELED when the
// fiber is cancelled, -ETIMEDOUT once loop_now_ns() has reached `deadline_ns` (UINT64_MAX: no
// limit). After a failure everything goes on as before.
int switch_drain(Fiber *self, Switch *s, uint64_t deadline_ns);
// The same, in tries: each keeps requests out for a limited time, 10 ms at first, and then lets
// them in for as long. So where requests end within 10 ms, now or a little later, nobody was kept
// out for longer. Later tries take twice as long as the one before, up to the deadline.
int switch_drain_in_tries(Fiber *self, Switch *s, uint64_t deadline_ns);
// The same as switch_drain() for as long as it takes.
void switch_drain_always(Fiber *self, Switch *s);
void switch_commit(Switch *s);
// Lets requests in again: after the commit, or to give up what was drained.
void switch_resume(Switch *s);
// Resumes what is drained still, then closes and frees. Accepts NULL.
void switch_end(Fiber *self, Switch *s);

// Each of these is a whole Switch. `filter` (whose backing child must be NULL) goes between `node`
// and all its parents and ports; the removal is the reverse.
void node_insert_filter(Fiber *self, Node *node, Node *filter);
void node_remove_filter(Fiber *self, Node *filter);
// Moves one port to `node`.
void port_replace(Fiber *self, Port *port, Node *node);
