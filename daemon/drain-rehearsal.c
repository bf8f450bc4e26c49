// SPDX-License-Identifier: LGPL-2.1-or-later
// The drain begins while the graph lock is held, so that the node is where it is looked for; from
// then on it cannot move (a drained node does not) nor go (it is used).
#include "drain-rehearsal.h"

#include "chain-core/port.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"

typedef struct Rehearsal {
    Node *node;
    int result;
} Rehearsal;

static void start_on_loop(void *arg)
{
    node_drain_start(((Rehearsal *)arg)->node, REQUESTS_THAT_WRITE);
}

static void wait_on_loop(Fiber *self, void *arg)
{
    Rehearsal *r = arg;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS;
    r->result = node_drain_wait(self, r->node, REQUESTS_THAT_WRITE, deadline_ns);
}

static void end_on_loop(void *arg)
{
    node_drain_end(((Rehearsal *)arg)->node, REQUESTS_THAT_WRITE);
}

int drain_fail(const NamedNode *named, const char *what, GError **error)
{
    return qmp_fail(error,
                    "Node '%s': %s, since a write to it has not ended within %u s; its storage "
                    "does not answer",
                    named->name, what, (unsigned)(PORT_MAX_STALL_NS / 1000000000));
}

int drain_rehearse(Fiber *self, Nodes *nodes, const char *name, const char *what, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(nodes);
    fiber_mutex_lock(self, lock);
    NamedNode *named = name ? nodes_find(nodes, name) : NULL;
    if (!named) {
        fiber_mutex_unlock(self, lock);
        return 0;
    }
    Rehearsal r = {.node = named->node};
    Loop *loop = named_node_loop(named);
    static const NodePerms nothing = {.held = 0, .shared = NODE_PERM_ALL};
    NodeUse as = {.role = "snapshot", .user = g_strdup("a command"), .perms = &nothing};
    NodeUse *use = named_node_use(named, &as);
    remote_call_plain(self, loop, start_on_loop, &r);
    fiber_mutex_unlock(self, lock);

    remote_call_fiber_reserve(self, loop, wait_on_loop, &r); // without a stack: not rehearsed
    remote_call_plain(self, loop, end_on_loop, &r);
    int result = r.result < 0 ? drain_fail(named, what, error) : 0;
    fiber_mutex_lock(self, lock);
    nodes_end_use(self, nodes, use);
    fiber_mutex_unlock(self, lock);
    return result;
}
