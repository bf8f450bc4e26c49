// SPDX-License-Identifier: LGPL-2.1-or-later
// Control's table is asked first, for its words, then the loop, which knows the graph as it is.
// What stands in the table stands there before anybody suspends, so nobody else gets in between.
#include "named-hold.h"

#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-instances.h"

struct NamedHold {
    Loop *loop;
    char *owner;
    GPtrArray *uses;   // NodeUse, owned
    GArray *needs;     // NodeNeed, as the loop has them
    NodeHold *on_loop; // NULL: not yet, or no more
    int result;
    GError *error;
};

NodeHold *named_hold_on_loop(const NamedHold *hold)
{
    return hold->on_loop;
}

// Another instance would go on showing what there was.
static int make_single(Fiber *self, Nodes *nodes, const NamedNeed *need, GError **error)
{
    unsigned changing = NODE_PERM_ALL & ~NODE_PERM_CONSISTENT_READ;
    return need->perms.held & changing ? nodes_make_single(self, nodes, need->named, error) : 0;
}

static int check(const char *owner, const NamedNeed *needs, unsigned n_needs, GError **error)
{
    g_autoptr(GPtrArray) range = g_ptr_array_new();
    int r = 0;
    for (unsigned i = 0; i < n_needs; i++)
        g_ptr_array_add(range, needs[i].named);
    for (unsigned i = 0; r == 0 && i < n_needs; i++) {
        NodeUse use = {
            .role = needs[i].role,
            .user = (char *)owner,
            .perms = &needs[i].perms,
        };
        r = named_node_check_use_in(needs[i].named, &use, range, error);
    }
    return r;
}

static void hold_on_loop(Fiber *self, void *arg)
{
    NamedHold *hold = arg;
    for (guint i = 0; hold->result == 0 && i < hold->needs->len; i++)
        hold->result =
            node_check_unchanged(self, g_array_index(hold->needs, NodeNeed, i).node, &hold->error);
    if (hold->result < 0)
        return;
    hold->result = node_hold_new(hold->owner, (const NodeNeed *)hold->needs->data, hold->needs->len,
                                 &hold->on_loop, &hold->error);
}

static void release_on_loop(Fiber *self, void *arg)
{
    NamedHold *hold = arg;
    node_hold_release(self, g_steal_pointer(&hold->on_loop));
}

static void add(NamedHold *hold, const NamedNeed *need)
{
    NodeUse use = {
        .role = need->role,
        .writes = need->perms.held & NODE_PERM_WRITE,
        .user = g_strdup(hold->owner),
        .perms = &need->perms,
    };
    NodeNeed on_loop = {node_instances_get(need->named, hold->loop), need->perms};
    g_ptr_array_add(hold->uses, named_node_use(need->named, &use));
    g_array_append_val(hold->needs, on_loop);
}

static void hold_free(NamedHold *hold)
{
    g_ptr_array_unref(hold->uses);
    g_array_unref(hold->needs);
    g_free(hold->owner);
    g_free(hold);
}

int named_hold_new(Fiber *self, Nodes *nodes, const char *owner, const NamedNeed *needs,
                   unsigned n_needs, NamedHold **ret_hold, GError **error)
{
    int r = check(owner, needs, n_needs, error);
    for (unsigned i = 0; r == 0 && i < n_needs; i++)
        r = make_single(self, nodes, &needs[i], error);
    Loop *loop = named_node_loop(needs[0].named);
    for (unsigned i = 0; r == 0 && i < n_needs; i++)
        if (!node_instances_get(needs[i].named, loop))
            r = qmp_fail(error, "Node '%s' lives on another loop than node '%s'",
                         needs[i].named->name, needs[0].named->name);
    if (r < 0)
        return r;
    NamedHold *hold = g_new0(NamedHold, 1);
    hold->loop = loop;
    hold->owner = g_strdup(owner);
    hold->uses = g_ptr_array_new();
    hold->needs = g_array_new(FALSE, FALSE, sizeof(NodeNeed));
    for (unsigned i = 0; i < n_needs; i++)
        add(hold, &needs[i]);
    if (remote_call_fiber_reserve(self, loop, hold_on_loop, hold) < 0)
        hold->result = qmp_fail(&hold->error, "no memory for a fiber's stack");
    if (hold->result == 0) {
        *ret_hold = hold;
        return 0;
    }
    r = hold->result;
    g_propagate_error(error, hold->error);
    for (guint i = 0; i < hold->uses->len; i++) // of nodes that somebody added, or others use
        named_node_end_use(hold->uses->pdata[i]);
    hold_free(hold);
    return r;
}

int named_hold_release(Fiber *self, Nodes *nodes, NamedHold *hold)
{
    int result = 0;
    remote_call_fiber_reserve(self, hold->loop, release_on_loop, hold);
    for (guint i = 0; i < hold->uses->len; i++) {
        int r = nodes_end_use(self, nodes, hold->uses->pdata[i]);
        result = result ? result : r;
    }
    hold_free(hold);
    return result;
}
