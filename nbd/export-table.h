// SPDX-License-Identifier: LGPL-2.1-or-later
// What the server offers at one moment: facts about each export, and the answer to LIST made from
// them once. Never changes after it was made; all handshakes share it until an export comes, goes
// or is resized. Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What clients may know of an export.
typedef struct NbdsExportInfo {
    uint64_t serial; // differs for every export a server ever had
    const char *name;
    const char *description; // never NULL
    uint64_t size_bytes;
    uint32_t padding_bytes;   // of the size: not for clients that honour the minimum block size
    uint32_t preferred_bytes; // power of 2, 512 … NBDS_MAX_PAYLOAD
    bool read_only;
    const GPtrArray *contexts; // context.h
} NbdsExportInfo;

typedef struct NbdsExportTable {
    gatomicrefcount refs;
    const NbdsExportInfo *exports; // owned, not what they point to
    unsigned n_exports;
    GPtrArray *owners; // whoever each row is about, in the same order
    GByteArray *list;  // every packet of the answer to LIST
} NbdsExportTable;

// Takes `exports`; what they point to is kept by `owners` (taken), or else by the caller. Returned
// owned.
NbdsExportTable *nbds_export_table_new(NbdsExportInfo *exports, unsigned n_exports,
                                       GPtrArray *owners);
NbdsExportTable *nbds_export_table_ref(NbdsExportTable *table);
void nbds_export_table_unref(NbdsExportTable *table); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdsExportTable, nbds_export_table_unref)

// The export that `name` chooses: the one of this name; for "" else the only one. NULL if none.
const NbdsExportInfo *nbds_export_table_find(const NbdsExportTable *table, const uint8_t *name,
                                             size_t len);
