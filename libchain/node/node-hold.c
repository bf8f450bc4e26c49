// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of uses is nowhere written down but for the holds: who uses a node is found by looking
// at its parents and ports each time it is asked. Merged maps and filters are looked through: whom
// they serve is the user. On the nodes' loop; nothing here suspends but the end of a hold.
#include "chain-core/node-hold.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/port.h"

typedef struct Held {
    NodeHold *hold;
    NodeNeed need;
} Held;

struct NodeHold {
    char *owner;
    unsigned n;
    Held held[];
};

// Somebody asks, for one of what he needs at a time.
typedef struct Question {
    const char *owner;
    const NodeNeed *needs;
    unsigned n_needs;
    const NodeHold *own; // or NULL
    const NodeNeed *need;
    GError **error;
} Question;

static bool is_own(const Question *q, const Node *node)
{
    for (unsigned i = 0; i < q->n_needs; i++)
        if (q->needs[i].node == node)
            return true;
    return false;
}

// `who` is the user: "its overlay 'top'".
static int check(const Question *q, NodePerms user, const char *who)
{
    const NodeNeed *need = q->need;
    unsigned needed = node_perms_conflict(need->perms, user);
    unsigned refused = node_perms_conflict(user, need->perms);
    g_autofree char *text = node_perms_text(needed ?: refused);
    if (needed)
        return error_set(q->error, -EBUSY,
                         "%s cannot be used by %s, which needs its %s: %s does not allow that; end "
                         "that use first",
                         need->node->name, q->owner, text, who);
    if (refused)
        return error_set(q->error, -EBUSY,
                         "%s cannot be used by %s, which leaves nobody else its %s: %s has that; "
                         "end that use first",
                         need->node->name, q->owner, text, who);
    return 0;
}

static int check_named(const Question *q, NodePerms user, const char *what, const Node *who)
{
    g_autofree char *text = g_strdup_printf("%s '%s'", what, who->name);
    return is_own(q, who) ? 0 : check(q, user, text);
}

static int check_users(const Question *q, const Node *node);

// Those of an edge from `parent` as its backing child.
static int check_backing_edge(const Question *q, const Node *parent)
{
    NodePerms overlay = node_perms_of(NODE_USER_BACKING, false);
    int r = 0;
    if (parent->ops->covers_below) {
        for (guint i = 0; r == 0 && i < parent->parents->len; i++)
            r = check_named(q, overlay, "its overlay", parent->parents->pdata[i]);
        return r;
    }
    if (!parent->ops->is_filter)
        return check_named(q, overlay, "its overlay", parent);
    if (is_own(q, parent))
        return 0;
    if (parent->ops->reads_write)
        r = check_named(q, (NodePerms){NODE_PERM_WRITE_UNCHANGED, NODE_PERM_ALL}, "the filter",
                        parent);
    return r == 0 ? check_users(q, parent) : r;
}

static int check_other_edge(const Question *q, const Node *parent)
{
    if (parent->ops->is_view)
        return 0;
    if (parent->ops->is_filter)
        return check_named(q, node_perms_of(NODE_USER_OUTSIDE, true), "the filter", parent);
    return check_named(q, node_perms_of(NODE_USER_FORMAT, !parent->read_only), "the image in it",
                       parent);
}

// Against each user of `node`, which is the one that is needed, or a filter over it.
static int check_users(const Question *q, const Node *node)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < node->parents->len; i++) {
        const Node *parent = node->parents->pdata[i];
        r = parent->backing == node ? check_backing_edge(q, parent) : check_other_edge(q, parent);
    }
    for (guint i = 0; r == 0 && i < node->ports->len; i++) {
        const Port *port = node->ports->pdata[i];
        r = check(q, port->perms, port->owner);
    }
    for (guint i = 0; r == 0 && node->holds && i < node->holds->len; i++) {
        const Held *held = node->holds->pdata[i];
        if (held->hold != q->own)
            r = check(q, held->need.perms, held->hold->owner);
    }
    return r;
}

static int ask(Question *q)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < q->n_needs; i++) {
        q->need = &q->needs[i];
        r = check_users(q, q->need->node);
    }
    return r;
}

int node_check_need(const char *owner, const NodeNeed *need, const NodeHold *own, GError **error)
{
    Question q = {.owner = owner, .needs = need, .n_needs = 1, .own = own, .error = error};
    return ask(&q);
}

int node_hold_new(const char *owner, const NodeNeed *needs, unsigned n_needs, NodeHold **ret_hold,
                  GError **error)
{
    Question q = {.owner = owner, .needs = needs, .n_needs = n_needs, .error = error};
    int r = ask(&q);
    if (r < 0)
        return r;
    NodeHold *hold = g_malloc0(sizeof(NodeHold) + n_needs * sizeof(Held));
    hold->owner = g_strdup(owner);
    hold->n = n_needs;
    for (unsigned i = 0; i < n_needs; i++) {
        Node *node = node_ref(needs[i].node);
        g_assert(node->loop == needs[0].node->loop);
        hold->held[i] = (Held){hold, needs[i]};
        if (!node->holds)
            node->holds = g_ptr_array_new();
        g_ptr_array_add(node->holds, &hold->held[i]);
    }
    *ret_hold = hold;
    return 0;
}

bool node_is_held(const Node *node, unsigned perms)
{
    for (guint i = 0; node->holds && i < node->holds->len; i++)
        if (((const Held *)node->holds->pdata[i])->need.perms.held & perms)
            return true;
    return false;
}

static void forget(Held *held)
{
    Node *node = held->need.node;
    g_ptr_array_remove_fast(node->holds, held);
    if (node->holds->len == 0)
        g_clear_pointer(&node->holds, g_ptr_array_unref);
}

void node_hold_release(Fiber *self, NodeHold *hold)
{
    if (!hold)
        return;
    for (unsigned i = 0; i < hold->n; i++) // in one step, before anything is closed
        forget(&hold->held[i]);
    for (unsigned i = 0; i < hold->n; i++)
        node_unref_close(self, hold->held[i].need.node);
    g_free(hold->owner);
    g_free(hold);
}
