// SPDX-License-Identifier: LGPL-2.1-or-later
// External snapshots, as steps of a Switch. In a fiber on the nodes' loop.
//
// Write order (docs/ordering.md §14): the overlay's file is durable before the switch; a flush of
// the overlay succeeds only when what was written to the old head is durable, too.
#include "chain-core/external-snapshot.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/chain.h"
#include "chain-core/driver.h"
#include "chain-core/node-hold.h"

static int check_overlay(const Node *head, const Node *overlay, GError **error)
{
    const Driver *driver = driver_find(overlay->ops->driver);
    if (!driver || !driver_option_find(driver->options, "backing", strlen("backing")))
        return error_set(error, -EINVAL,
                         "%s cannot lie over %s: images of its format have no backing file; make "
                         "a qcow2 image",
                         overlay->name, head->name);
    if (overlay->backing)
        return error_set(error, -EINVAL,
                         "%s cannot lie over %s: it has a backing layer already; open it with "
                         "\"backing\": null",
                         overlay->name, head->name);
    if (overlay->ports->len || overlay->parents->len)
        return error_set(error, -EBUSY,
                         "%s cannot lie over %s: somebody uses it already; end that use first",
                         overlay->name, head->name);
    if (overlay->read_only && !head->read_only)
        return error_set(error, -EROFS, "%s cannot lie over %s: it is read-only", overlay->name,
                         head->name);
    if (overlay->size_bytes < head->size_bytes)
        return error_set(error, -EINVAL,
                         "%s cannot lie over %s: it is %" G_GUINT64_FORMAT
                         " bytes smaller, and would hide the end of the disk; create it as large",
                         overlay->name, head->name, head->size_bytes - overlay->size_bytes);
    return 0;
}

static unsigned count_layers(const Node *node)
{
    unsigned n = 0;
    for (; node; node = chain_backing(node))
        n++;
    return n;
}

static int check_head(const Node *head, GError **error)
{
    if (count_layers(head) >= CHAIN_MAX_LAYERS)
        return error_set(error, -E2BIG,
                         "%s has %u layers below it already, and a longer chain could not be "
                         "opened again; make it shorter with qemu-img commit or rebase",
                         head->name, CHAIN_MAX_LAYERS - 1);
    for (guint i = 0; i < head->parents->len; i++) {
        const Node *parent = head->parents->pdata[i];
        if (!parent->ops->is_filter)
            return error_set(error, -EBUSY,
                             "%s cannot get another overlay as its head: it is the backing layer "
                             "of %s; take the snapshot of that",
                             head->name,
                             parent->parents->len ? ((Node *)parent->parents->pdata[0])->name
                                                  : parent->name);
    }
    return 0;
}

static int check_place(Node *head, GError **error)
{
    NodeNeed need = {head, {.held = NODE_PERM_PLACE, .shared = NODE_PERM_ALL}};
    return node_check_need("a snapshot", &need, NULL, error);
}

static void stop_writes(void *arg)
{
    node_stop_writes(arg);
}

int external_snapshot_prepare(Fiber *self, Node *head, Node *overlay, MapMemory *memory,
                              Switch **ret_switch, GError **error)
{
    g_assert(head->loop == overlay->loop);
    int r = check_overlay(head, overlay, error);
    if (r == 0)
        r = check_head(head, error);
    if (r == 0)
        r = check_place(head, error);
    if (r == 0)
        r = chain_check_unchanged(self, head, error);
    if (r < 0)
        return r;
    r = node_flush(self, head);
    if (r < 0)
        return error_set(error, r,
                         "%s cannot be snapshotted: what was written to it does not become "
                         "durable: %s",
                         head->name, g_strerror(-r));
    Switch *s = switch_new(REQUESTS_THAT_WRITE);
    Node *below = chain_below_new(self, head, memory);
    switch_set_backing(s, overlay, below);
    switch_move_users(s, head, overlay);
    switch_call(s, stop_writes, head);
    node_unref_close(self, below);
    *ret_switch = s;
    return 0;
}

int external_snapshot_finish(Fiber *self, Node *old_head, GError **error)
{
    int r = node_flush(self, old_head);
    if (r < 0)
        return error_set(error, r, "%s: what was written to it did not become durable: %s",
                         old_head->name, g_strerror(-r));
    return node_set_writable(self, old_head, false, error);
}
