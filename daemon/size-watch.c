// SPDX-License-Identifier: LGPL-2.1-or-later
// One fiber that sleeps, looks at all files, and ends with the last node. On the loop.
#include "size-watch.h"

#include "chain-core/loop.h"

// Often enough to tell a user what went wrong, and rare enough to cost nothing.
static const uint64_t INTERVAL_NS = UINT64_C(5000000000);

struct SizeWatch {
    GPtrArray *nodes; // Node, borrowed
    Fiber *fiber;     // NULL: nothing to watch, or it is on its way out
};

SizeWatch *size_watch_new(void)
{
    SizeWatch *watch = g_new0(SizeWatch, 1);
    watch->nodes = g_ptr_array_new();
    return watch;
}

void size_watch_free(SizeWatch *watch)
{
    g_assert(watch->nodes->len == 0);
    g_ptr_array_unref(watch->nodes);
    g_free(watch);
}

// The node may be closed whenever this waits.
static void check_sizes(Fiber *self, Node *node)
{
    node_ref(node);
    File *files[] = {node_file(node), node_metadata_file(node)};
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        if (files[i])
            file_check_size(self, files[i]); // what fails here fails for clients, too
    node_unref_close(self, node);
}

static void watch_sizes(Fiber *self, void *arg)
{
    SizeWatch *watch = arg;
    while (fiber_sleep(self, INTERVAL_NS) == 0)
        for (guint i = 0; i < watch->nodes->len; i++)
            check_sizes(self, watch->nodes->pdata[i]);
}

void size_watch_add(SizeWatch *watch, Node *node)
{
    g_ptr_array_add(watch->nodes, node);
    // Without memory for a fiber the disk is served all the same.
    if (!watch->fiber &&
        fiber_spawn(node->loop, "sizes of files", watch_sizes, watch, &watch->fiber) < 0)
        watch->fiber = NULL;
}

void size_watch_remove(SizeWatch *watch, Node *node)
{
    g_ptr_array_remove(watch->nodes, node);
    if (watch->nodes->len == 0 && watch->fiber)
        fiber_cancel(g_steal_pointer(&watch->fiber));
}
