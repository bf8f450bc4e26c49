// SPDX-License-Identifier: LGPL-2.1-or-later
#include "node-facts.h"

#include "chain-core/dirty-bitmap.h"

void node_facts_clear(NodeFacts *facts)
{
    json_decref(facts->info);
    g_clear_pointer(&facts->bitmaps, g_ptr_array_unref);
}

void node_facts_take(const Driver *driver, Node *node, NodeFacts *ret_facts)
{
    *ret_facts = (NodeFacts){
        .size_bytes = node->ops->is_file ? file_size(node_file(node)) : node->size_bytes,
        .read_only = node->read_only,
        .info = driver->info ? driver->info(node) : NULL,
    };
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    if (bitmaps)
        ret_facts->bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)dirty_bitmap_unref);
    for (guint i = 0; bitmaps && i < bitmaps->len; i++)
        g_ptr_array_add(ret_facts->bitmaps, dirty_bitmap_ref(bitmaps->pdata[i]));
}

void node_refresh_init(NodeRefresh *r)
{
    *r = (NodeRefresh){g_ptr_array_new(), g_array_new(FALSE, FALSE, sizeof(NodeFacts))};
}

void node_refresh_add(NodeRefresh *refresh, NamedNode *named)
{
    g_ptr_array_add(refresh->nodes, named);
    for (guint i = 0; i < named->children->len; i++) {
        const NodeUse *use = named->children->pdata[i];
        if (!g_str_equal(use->role, "backing") && !g_str_equal(use->role, "snapshot"))
            node_refresh_add(refresh, use->used);
    }
}

void node_refresh_take(Fiber *self, void *arg)
{
    NodeRefresh *r = arg;
    for (guint i = 0; i < r->nodes->len; i++) {
        const NamedNode *named = r->nodes->pdata[i];
        NodeFacts facts;
        node_facts_take(named->driver, named->node, &facts);
        g_array_append_val(r->facts, facts);
    }
}

void node_refresh_end(NodeRefresh *r)
{
    for (guint i = 0; i < r->facts->len; i++) {
        NamedNode *named = r->nodes->pdata[i];
        node_facts_clear(&named->facts);
        named->facts = g_array_index(r->facts, NodeFacts, i);
        named_node_mode_changed(named);
    }
    g_ptr_array_unref(r->nodes);
    g_array_unref(r->facts);
}
