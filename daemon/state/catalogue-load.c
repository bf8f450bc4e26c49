// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads the database into memory: each row is a change that is written already.
#include <errno.h>

#include "catalogue.h"
#include "daemon/qmp/error.h"

static const char *text_of(sqlite3_stmt *row, int column)
{
    return (const char *)sqlite3_column_text(row, column);
}

static json_t *json_of(sqlite3_stmt *row, int column)
{
    json_t *value = json_loads(text_of(row, column) ?: "", 0, NULL);
    return value ?: json_object();
}

static void take_counter(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    int64_t *value = g_str_equal(text_of(row, 0), "layer") ? &c->last_layer : &c->last_job;
    *value = sqlite3_column_int64(row, 1);
}

static void take_layer(void *arg, sqlite3_stmt *row)
{
    catalogue_add_layer(arg, NULL,
                        &(DiskLayer){
                            .id = sqlite3_column_int64(row, 0),
                            .file = (char *)text_of(row, 1),
                            .format = (char *)text_of(row, 2),
                            .is_ours = sqlite3_column_int(row, 4),
                            .is_merging = sqlite3_column_int(row, 5),
                        });
}

static void take_below(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    DiskLayer *layer = catalogue_layer(c, sqlite3_column_int64(row, 0));
    disk_layer_set_below(NULL, layer, catalogue_layer(c, sqlite3_column_int64(row, 3)));
}

static void take_disk(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    catalogue_add_disk(c, NULL, text_of(row, 0), catalogue_layer(c, sqlite3_column_int64(row, 1)),
                       json_of(row, 2));
}

static void take_point(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    disk_add_point(NULL, catalogue_find_disk(c, text_of(row, 0)), text_of(row, 1),
                   catalogue_layer(c, sqlite3_column_int64(row, 2)), sqlite3_column_int64(row, 3));
}

static void take_export(void *arg, sqlite3_stmt *row)
{
    json_t *options = json_of(row, 4);
    disk_add_export(NULL, catalogue_find_disk(arg, text_of(row, 1)),
                    &(DiskExport){
                        .id = (char *)text_of(row, 0),
                        .point = (char *)text_of(row, 2),
                        .name = (char *)text_of(row, 3),
                        .options = options,
                    });
    json_decref(options);
}

static void take_checkpoint(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    disk_add_checkpoint(NULL, catalogue_find_disk(c, text_of(row, 0)),
                        &(Checkpoint){
                            .name = (char *)text_of(row, 1),
                            .layer = catalogue_layer(c, sqlite3_column_int64(row, 2)),
                            .target = (char *)text_of(row, 3),
                            .created_s = sqlite3_column_int64(row, 4),
                        });
}

static void take_intent(void *arg, sqlite3_stmt *row)
{
    Catalogue *c = arg;
    Intent *intent = g_new(Intent, 1);
    *intent = (Intent){sqlite3_column_int64(row, 0), g_strdup(text_of(row, 1)), json_of(row, 2)};
    g_ptr_array_add(c->intents, intent);
    c->last_intent = MAX(c->last_intent, intent->id);
}

static void take_history(void *arg, sqlite3_stmt *row)
{
    g_queue_push_tail(&((Catalogue *)arg)->history, json_of(row, 0));
}

Catalogue *catalogue_load(Database *database, const char *dir, GError **error)
{
    static const struct {
        const char *sql;
        DatabaseRowFn *row;
    } tables[] = {
        {"SELECT name, value FROM counters", take_counter},
        {"SELECT id, file, format, below, is_ours, is_merging FROM layers ORDER BY id", take_layer},
        {"SELECT id, file, format, below FROM layers", take_below},
        {"SELECT name, head, policy FROM disks ORDER BY name", take_disk},
        {"SELECT disk, name, layer, created FROM points ORDER BY created, rowid", take_point},
        {"SELECT id, disk, point, name, options FROM exports ORDER BY rowid", take_export},
        {"SELECT disk, name, layer, target, created FROM checkpoints ORDER BY created, rowid",
         take_checkpoint},
        {"SELECT id, kind, detail FROM intents ORDER BY id", take_intent},
        {"SELECT detail FROM history ORDER BY number DESC", take_history},
    };
    Catalogue *c = catalogue_new(database, dir);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < G_N_ELEMENTS(tables); i++)
        r = database_read(database, tables[i].sql, tables[i].row, c, error);
    if (r == 0 && g_mkdir_with_parents(c->images_dir, 0700) < 0)
        r = qmp_fail(error, "cannot make '%s': %s", c->images_dir, g_strerror(errno));
    if (r == 0)
        return c;
    catalogue_free(c);
    return NULL;
}
