// SPDX-License-Identifier: LGPL-2.1-or-later
// Making the table, and looking names up in it. A look-up compares lengths first: thousands of
// exports cost some microseconds.
#include "export-table.h"

#include <string.h>

#include "wire.h"

static uint8_t *append(GByteArray *out, uint32_t n)
{
    g_byte_array_set_size(out, out->len + n);
    return out->data + out->len - n;
}

static void append_server(GByteArray *out, const NbdsExportInfo *export)
{
    uint32_t name_len = strlen(export->name), description_len = strlen(export->description);
    nbds_wire_put_option_reply_head(append(out, NBDS_OPTION_REPLY_HEAD_BYTES), NBDS_OPT_LIST,
                                    NBDS_REP_SERVER, 4 + name_len + description_len);
    nbds_wire_put_u32(append(out, 4), name_len);
    g_byte_array_append(out, (const uint8_t *)export->name, name_len);
    g_byte_array_append(out, (const uint8_t *)export->description, description_len);
}

NbdsExportTable *nbds_export_table_new(NbdsExportInfo *exports, unsigned n_exports,
                                       GPtrArray *owners)
{
    NbdsExportTable *table = g_new(NbdsExportTable, 1);
    *table = (NbdsExportTable){
        .exports = exports,
        .n_exports = n_exports,
        .owners = owners,
        .list = g_byte_array_new(),
    };
    g_atomic_ref_count_init(&table->refs);
    for (unsigned i = 0; i < n_exports; i++)
        append_server(table->list, &exports[i]);
    nbds_wire_put_option_reply_head(append(table->list, NBDS_OPTION_REPLY_HEAD_BYTES),
                                    NBDS_OPT_LIST, NBDS_REP_ACK, 0);
    return table;
}

NbdsExportTable *nbds_export_table_ref(NbdsExportTable *table)
{
    g_atomic_ref_count_inc(&table->refs);
    return table;
}

void nbds_export_table_unref(NbdsExportTable *table)
{
    if (!table || !g_atomic_ref_count_dec(&table->refs))
        return;
    g_byte_array_unref(table->list);
    g_free((NbdsExportInfo *)table->exports);
    g_clear_pointer(&table->owners, g_ptr_array_unref);
    g_free(table);
}

const NbdsExportInfo *nbds_export_table_find(const NbdsExportTable *table, const uint8_t *name,
                                             size_t len)
{
    for (unsigned i = 0; i < table->n_exports; i++) {
        const char *candidate = table->exports[i].name;
        if (strlen(candidate) == len && (!len || !memcmp(candidate, name, len)))
            return &table->exports[i];
    }
    return !len && table->n_exports == 1 ? &table->exports[0] : NULL;
}
