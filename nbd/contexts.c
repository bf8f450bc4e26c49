// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of kinds. Contexts of one kind stay together: they are walked together.
#include "contexts.h"

#include "context-bitmap.h"
#include "context-node.h"

static void (*const kinds[])(GPtrArray *contexts, const NbdsExportConfig *config) = {
    nbds_context_node_add,
    nbds_context_bitmaps_add,
};

GPtrArray *nbds_contexts_new(const NbdsExportConfig *config)
{
    GPtrArray *contexts = nbds_context_array_new();
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        kinds[i](contexts, config);
    return contexts;
}

void nbds_contexts_release(Fiber *self, const GPtrArray *contexts)
{
    for (unsigned i = 0; i < contexts->len; i++) {
        NbdsContext *context = contexts->pdata[i];
        if (context->kind->release)
            context->kind->release(self, context);
    }
}
