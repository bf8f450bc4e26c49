// SPDX-License-Identifier: LGPL-2.1-or-later
// Names are those of control's table; on the loop there may be other instances of layers than those
// that the table knows.
#include "held-chain.h"

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"

static void collect_names(HeldChain *chain, const NamedNode *top)
{
    GPtrArray *names = g_ptr_array_new();
    for (const NamedNode *n = top; n; n = named_node_below(n))
        if (!n->node->ops->is_filter)
            g_ptr_array_insert(names, 0, g_strdup(n->name));
    chain->n = names->len;
    g_ptr_array_add(names, NULL);
    chain->names = (char **)g_ptr_array_free(names, FALSE);
    chain->nodes = g_new0(Node *, chain->n);
}

static Node *skip_filters(Node *node)
{
    while (node && node->ops->is_filter)
        node = chain_backing(node);
    return node;
}

static void take_refs(void *arg)
{
    HeldChain *chain = arg;
    Node *node = skip_filters(chain->use->used->node);
    for (unsigned i = chain->n; i-- > 0; node = skip_filters(chain_backing(node)))
        chain->nodes[i] = node_ref(node);
}

static void drop_refs(Fiber *self, void *arg)
{
    HeldChain *chain = arg;
    for (unsigned i = chain->n; i-- > 0;)
        node_unref_close(self, chain->nodes[i]);
}

int held_chain_begin(Fiber *self, Nodes *nodes, const char *device, const char *what,
                     HeldChain *ret_chain, GError **error)
{
    static const NodePerms none = {0, NODE_PERM_ALL};
    NamedNode *top = nodes_find(nodes, device);
    if (!top) {
        qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", device, device);
        return -ENODEV;
    }
    HeldChain *chain = ret_chain;
    *chain = (HeldChain){.loop = named_node_loop(top)};
    collect_names(chain, top);
    chain->use = named_node_use(
        top, &(NodeUse){.role = "root", .is_fixed = true, .user = g_strdup(what), .perms = &none});
    remote_call_plain(self, chain->loop, take_refs, chain);
    return 0;
}

void held_chain_end(Fiber *self, Nodes *nodes, HeldChain *chain)
{
    enum { AGAIN_NS = 10000000 };
    if (!chain->use)
        return;
    while (remote_call_fiber_reserve(self, chain->loop, drop_refs, chain) < 0)
        fiber_sleep(self, AGAIN_NS); // there is no stack for it just now
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    nodes_end_use(self, nodes, chain->use);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    g_strfreev(chain->names);
    g_free(chain->nodes);
}
