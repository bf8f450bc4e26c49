// SPDX-License-Identifier: LGPL-2.1-or-later
// A table of 8-byte entries that is kept whole in memory, big-endian: the refcount table, or an L1
// table. Of each entry that changed it knows what the disk still says, so that an entry whose turn
// has not come can be written back unchanged with its sector. On the image's loop.
#pragma once

#include <glib.h>

#include "base/endian.h"
#include "chain-core/file.h"
#include "chain-core/units.h"

typedef struct EntryTable {
    HostOff off; // in the image's file
    Be64 *entries;
    uint64_t n;
    size_t mapped_bytes; // of `entries`; 0: from the heap
    GArray *changed;     // ChangedEntry; NULL: none so far
} EntryTable;

typedef struct ChangedEntry {
    uint64_t index;
    Be64 on_disk;
} ChangedEntry;

// Reads `n` entries at `off`. The table must be empty (zeroed, or done). 0, -ENOMEM, -errno.
int entry_table_load(Fiber *self, EntryTable *table, File *file, HostOff off, uint64_t n);
void entry_table_done(EntryTable *table); // forgets changes; zeroes

void entry_table_set(EntryTable *table, uint64_t index, Be64 entry);
// The changes made so far, sorted by index (owned), which the table then no longer remembers.
GArray *entry_table_take_changes(EntryTable *table);
// A change taken before did not reach the disk.
void entry_table_put_back(EntryTable *table, ChangedEntry change);

static inline HostOff entry_table_place(const EntryTable *table, uint64_t index)
{
    return host_off(table->off.v + index * sizeof(Be64));
}
