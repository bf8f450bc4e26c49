// SPDX-License-Identifier: LGPL-2.1-or-later
// The uses that change with an overlay.
#include "node-overlay.h"

static const char role[] = "backing";

void node_overlay_begin(NamedNode *overlay, NamedNode *below)
{
    NodeUse *use = g_new(NodeUse, 1);
    *use = (NodeUse){
        .used = below,
        .by = overlay,
        .role = role,
        .user = g_strdup_printf("node '%s'", overlay->name),
    };
    g_ptr_array_add(below->users, use);
    g_ptr_array_add(overlay->children, use);
}

static NodeUse *use_below(const NamedNode *overlay)
{
    guint i = 0;
    while (!g_str_equal(((NodeUse *)overlay->children->pdata[i])->role, role))
        i++;
    return overlay->children->pdata[i];
}

void node_overlay_abort(NamedNode *overlay)
{
    NodeUse *use = use_below(overlay);
    g_ptr_array_remove(overlay->children, use);
    g_ptr_array_remove(use->used->users, use);
    g_free(use->user);
    g_free(use);
}

// Who has to do with the image's internal snapshots stays with the image, who holds a node, or
// shows what it showed once, with that node.
static bool stays_with_node(const NodeUse *use)
{
    return use->perms || use->is_moment || g_str_equal(use->role, "snapshot") ||
           (use->by && use->by->driver->is_view);
}

// As it is from now on: on another loop it is opened by what its description says.
static void describe_child(const NodeUse *use)
{
    NamedNode *parent = use->by;
    if (parent && parent->config)
        nodes_set_config(parent, node_config_new_with(parent->config, use->role, use->used->name));
}

void node_overlay_end(NamedNode *overlay, bool stays)
{
    NodeUse *own = use_below(overlay);
    GPtrArray *users = own->used->users;
    describe_child(own);
    for (guint i = users->len; i-- > 0;) {
        NodeUse *use = users->pdata[i];
        if (use == own || stays_with_node(use))
            continue;
        g_ptr_array_remove_index(users, i);
        use->used = overlay;
        g_ptr_array_insert(overlay->users, 0, use);
    }
    overlay->is_added = stays || overlay->users->len == 0;
}

void node_overlay_leave(NamedNode *top, NamedNode *below)
{
    g_autoptr(GPtrArray) users = g_ptr_array_copy(top->users, NULL, NULL);
    for (guint i = 0; i < users->len; i++) {
        NodeUse *use = users->pdata[i];
        if (stays_with_node(use))
            continue;
        g_ptr_array_remove(top->users, use);
        use->used = below;
        g_ptr_array_add(below->users, use);
        describe_child(use);
    }
}

void node_overlay_undo(NamedNode *overlay)
{
    NamedNode *below = use_below(overlay)->used;
    node_overlay_abort(overlay);
    node_overlay_leave(overlay, below);
    overlay->is_added = true;
}
