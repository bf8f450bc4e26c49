// SPDX-License-Identifier: LGPL-2.1-or-later
// There are few changes at a time: one for each new L2 table or refcount block.

#include "qcow2/entry-table.h"

#include <errno.h>

int entry_table_load(Fiber *self, EntryTable *table, File *file, HostOff off, uint64_t n)
{
    *table = (EntryTable){.off = off, .n = n};
    table->entries = g_try_malloc0(MAX(n, 1) * sizeof(Be64));
    return table->entries ? file_read(self, file, off, table->entries, n * sizeof(Be64)) : -ENOMEM;
}

void entry_table_done(EntryTable *table)
{
    if (table->changed)
        g_array_unref(table->changed);
    g_free(table->entries);
    *table = (EntryTable){0};
}

void entry_table_put_back(EntryTable *table, ChangedEntry change)
{
    if (!table->changed)
        table->changed = g_array_new(false, false, sizeof(ChangedEntry));
    g_array_append_val(table->changed, change);
}

void entry_table_set(EntryTable *table, uint64_t index, Be64 entry)
{
    entry_table_put_back(table, (ChangedEntry){index, table->entries[index]});
    table->entries[index] = entry;
}

static int compare_changes(const void *a, const void *b)
{
    const ChangedEntry *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

GArray *entry_table_take_changes(EntryTable *table)
{
    GArray *changed = table->changed;
    table->changed = NULL;
    if (!changed)
        return g_array_new(false, false, sizeof(ChangedEntry));
    g_array_sort(changed, compare_changes);
    return changed;
}
