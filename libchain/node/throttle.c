// SPDX-License-Identifier: LGPL-2.1-or-later
// throttle: a filter whose requests wait as the limits of its group say. Zeroes and discards count
// by their bytes, like QEMU's; flushes do not wait. While somebody waits for its requests to end (a
// drain, the end of the program) they go on without waiting. On the node's loop, in fibers.
#include "chain-core/component.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node-drivers.h"
#include "chain-core/throttle-group.h"

#include <errno.h>

#include "base/error.h"

typedef struct ThrottleNode {
    Node node;
    ThrottleMember member;
    bool is_given_up;
} ThrottleNode;

static ThrottleMember *member_of(Node *node)
{
    return &((ThrottleNode *)node)->member;
}

static int throttle_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                               IoBatch *batch)
{
    throttle_member_wait(self, member_of(node), false, len);
    return node_read_start(self, node->backing, off, buf, len, batch);
}

static int throttle_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                          NodeIoFlags flags)
{
    throttle_member_wait(self, member_of(node), true, len);
    return node_write(self, node->backing, off, buf, len, flags);
}

// Counts like any other write.
static int throttle_write_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    throttle_member_wait(self, member_of(node), true, compressed_clusters_len(c));
    return node_write_compressed(self, node->backing, c);
}

static int throttle_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    throttle_member_wait(self, member_of(node), true, len);
    return node_zero(self, node->backing, off, len, flags);
}

static int throttle_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    throttle_member_wait(self, member_of(node), true, len);
    return node_discard(self, node->backing, off, len, flags);
}

// Drained: nothing waits.
static void throttle_detach(Fiber *self, Node *node)
{
    ThrottleGroup *group = throttle_group_ref(member_of(node)->group);
    throttle_member_done(self, member_of(node));
    member_of(node)->group = group;
}

static void throttle_attach(Node *node)
{
    throttle_member_init(member_of(node), member_of(node)->group, node->loop);
}

static void throttle_drained(Node *node, bool is_drained)
{
    throttle_member_set_unlimited(member_of(node),
                                  is_drained || ((ThrottleNode *)node)->is_given_up);
}

static void throttle_give_up(Node *node)
{
    ((ThrottleNode *)node)->is_given_up = true;
    throttle_member_set_unlimited(member_of(node), true);
}

static void throttle_close(Fiber *self, Node *node)
{
    throttle_member_done(self, member_of(node));
}

static const NodeCompressedOps throttle_compressed_ops = {.write = throttle_write_compressed};

static const NodeOps throttle_ops = {
    .driver = "throttle",
    .is_filter = true,
    .read_start = throttle_read_start,
    .write = throttle_write,
    .zero = throttle_zero,
    .discard = throttle_discard,
    .compressed = &throttle_compressed_ops,
    .detach = throttle_detach,
    .attach = throttle_attach,
    .drained = throttle_drained,
    .give_up = throttle_give_up,
    .close = throttle_close,
};

static int throttle_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                         GError **error)
{
    const char *name = driver_value_str(options->values, "throttle-group", NULL);
    ThrottleGroup *group = throttle_groups_find(options->throttle_groups, name);
    if (!group)
        return error_set(error, -ENOENT, "Throttle group '%s' does not exist", name);
    ThrottleNode *t = g_new0(ThrottleNode, 1);
    node_init(&t->node, &throttle_ops, child->loop, options->name, child->size_bytes);
    t->node.read_only = !options->is_writable || child->read_only;
    t->node.preferred_bytes = child->preferred_bytes;
    throttle_member_init(&t->member, group, child->loop);
    node_set_backing(self, &t->node, child);
    *ret_node = &t->node;
    return 0;
}

typedef struct ThrottleChange {
    DriverChange head; // first
    ThrottleNode *node;
    const Node *below;    // borrowed
    ThrottleGroup *group; // a reference: the new one, and then the old one
} ThrottleChange;

// Detached: it is a member of no group. What lies below may have grown since it was prepared.
static void change_commit(DriverChange *change)
{
    ThrottleChange *c = (ThrottleChange *)change;
    ThrottleGroup *old = c->node->member.group;
    c->node->member.group = c->group;
    c->group = old;
    c->node->node.size_bytes = c->below->size_bytes;
}

static void change_drop(Fiber *self, DriverChange *change)
{
    throttle_group_unref(((ThrottleChange *)change)->group);
    g_free(change);
}

static int throttle_reopen(Fiber *self, Node *node, const DriverReopen *wanted,
                           DriverChange **ret_change, GError **error)
{
    const char *name = driver_value_str(wanted->values, "throttle-group", NULL);
    ThrottleGroup *group = throttle_groups_find(wanted->throttle_groups, name);
    if (!group)
        return error_set(error, -ENOENT, "Throttle group '%s' does not exist", name);
    ThrottleChange *change = g_new(ThrottleChange, 1);
    *change = (ThrottleChange){
        .head = {wanted->below->size_bytes, change_commit, change_drop},
        .node = (ThrottleNode *)node,
        .below = wanted->below,
        .group = group,
    };
    *ret_change = &change->head;
    return 0;
}

static const DriverOption throttle_options[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The node to limit: its name, or what to make one of."},
    {.name = "throttle-group",
     .type = DRIVER_OPTION_STR,
     .is_required = true,
     .change = DRIVER_OPTION_CHANGES,
     .doc = "The group whose limits hold: the id of an object throttle-group."},
    {0},
};

const Driver throttle_driver = {
    .name = "throttle",
    .options = throttle_options,
    .make = throttle_make,
    .reopen = throttle_reopen,
};
