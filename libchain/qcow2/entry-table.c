// SPDX-License-Identifier: LGPL-2.1-or-later
// There are few changes at a time: one for each new L2 table or refcount block.

#include "qcow2/entry-table.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "chain-core/zeros.h"

enum { MAPPED_BYTES = 16 << 10, CHUNK_BYTES = 1 << 20, PAGE_BYTES = 4096 };

// The largest part of most tables is empty (a refcount table of one cluster counts terabytes), and
// there may be a thousand: pages without an entry take no memory.
static int load_mapped(Fiber *self, EntryTable *table, File *file)
{
    size_t bytes = table->n * sizeof(Be64);
    g_autofree uint8_t *chunk = g_try_malloc(MIN(bytes, CHUNK_BYTES));
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || !chunk) {
        if (mapped != MAP_FAILED)
            munmap(mapped, bytes);
        return -ENOMEM;
    }
    table->entries = mapped;
    table->mapped_bytes = bytes;
    int r = 0;
    for (size_t at = 0; r == 0 && at < bytes; at += CHUNK_BYTES) {
        size_t len = MIN(bytes - at, CHUNK_BYTES);
        r = file_read(self, file, host_off(table->off.v + at), chunk, len);
        for (size_t page = 0; r == 0 && page < len; page += PAGE_BYTES)
            if (!bytes_are_zero(chunk + page, MIN(len - page, PAGE_BYTES)))
                memcpy((uint8_t *)mapped + at + page, chunk + page, MIN(len - page, PAGE_BYTES));
    }
    return r;
}

int entry_table_load(Fiber *self, EntryTable *table, File *file, HostOff off, uint64_t n)
{
    *table = (EntryTable){.off = off, .n = n};
    if (n * sizeof(Be64) >= MAPPED_BYTES)
        return load_mapped(self, table, file);
    table->entries = g_try_malloc0(MAX(n, 1) * sizeof(Be64));
    return table->entries ? file_read(self, file, off, table->entries, n * sizeof(Be64)) : -ENOMEM;
}

void entry_table_done(EntryTable *table)
{
    if (table->changed)
        g_array_unref(table->changed);
    if (table->mapped_bytes)
        munmap(table->entries, table->mapped_bytes);
    else
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
