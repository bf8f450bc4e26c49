// SPDX-License-Identifier: LGPL-2.1-or-later
// Contexts and arrays of them.
#include "context.h"

#include <string.h>

void nbds_context_init(NbdsContext *context, const NbdsContextKind *kind, const char *name,
                       GPtrArray *contexts)
{
    context->kind = kind;
    g_atomic_ref_count_init(&context->refs);
    context->name = g_strdup(name);
    context->name_len = strlen(name);
    g_ptr_array_add(contexts, context);
    context->id = contexts->len;
}

NbdsContext *nbds_context_ref(NbdsContext *context)
{
    g_atomic_ref_count_inc(&context->refs);
    return context;
}

void nbds_context_unref(NbdsContext *context)
{
    if (!context || !g_atomic_ref_count_dec(&context->refs))
        return;
    g_free(context->name);
    g_free(context);
}

GPtrArray *nbds_context_array_new(void)
{
    return g_ptr_array_new_with_free_func((GDestroyNotify)nbds_context_unref);
}

static bool is_match(const NbdsContext *context, const uint8_t *query, size_t len, bool is_wildcard)
{
    bool fits = is_wildcard ? context->name_len >= len : context->name_len == len;
    return fits && !memcmp(context->name, query, len);
}

void nbds_context_match(const GPtrArray *contexts, const uint8_t *query, size_t len, bool wildcards,
                        bool *marks)
{
    if (!len)
        return;
    bool is_wildcard = wildcards && query[len - 1] == ':';
    for (unsigned i = 0; i < contexts->len; i++)
        marks[i] = marks[i] || is_match(contexts->pdata[i], query, len, is_wildcard);
}

GPtrArray *nbds_context_select(const GPtrArray *contexts, const bool *marks)
{
    GPtrArray *selected = nbds_context_array_new();
    for (unsigned i = 0; i < contexts->len; i++) {
        if (marks[i])
            g_ptr_array_add(selected, nbds_context_ref(contexts->pdata[i]));
    }
    return selected;
}
