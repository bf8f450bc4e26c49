// SPDX-License-Identifier: LGPL-2.1-or-later
// Each change is made in memory and, as a statement, in the change that is written next; so both
// say the same as long as what is written as done is kept until it is (database_note()).
#include "catalogue.h"

#include <errno.h>
#include <string.h>

#include "daemon/node-names.h"
#include "daemon/qmp/error.h"

enum { MAX_NAME_BYTES = 64 };

static void layer_free(gpointer p)
{
    DiskLayer *layer = p;
    g_free(layer->file);
    g_free(layer->format);
    g_free(layer);
}

static void point_free(gpointer p)
{
    g_free(((Point *)p)->name);
    g_free(p);
}

static void export_free(gpointer p)
{
    DiskExport *export = p;
    g_free(export->id);
    g_free(export->name);
    g_free(export->point);
    json_decref(export->options);
    g_free(export);
}

static void checkpoint_free(gpointer p)
{
    g_free(((Checkpoint *)p)->name);
    g_free(((Checkpoint *)p)->target);
    g_free(p);
}

static void intent_free(gpointer p)
{
    Intent *intent = p;
    g_free(intent->kind);
    json_decref(intent->detail);
    g_free(intent);
}

static void disk_free(gpointer p)
{
    Disk *disk = p;
    g_assert(disk->holds->len == 0);
    g_ptr_array_unref(disk->holds);
    g_ptr_array_unref(disk->points);
    g_ptr_array_unref(disk->exports);
    g_ptr_array_unref(disk->checkpoints);
    json_decref(disk->policy);
    g_free(disk->problem);
    g_free(disk->job);
    g_free(disk->name);
    g_free(disk);
}

Catalogue *catalogue_new(Database *database, const char *dir)
{
    Catalogue *c = g_new0(Catalogue, 1);
    c->database = database;
    g_autofree char *full = g_canonicalize_filename(dir, NULL);
    c->images_dir = g_build_filename(full, "images", NULL);
    c->layers = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, layer_free);
    c->disks = g_ptr_array_new_with_free_func(disk_free);
    c->intents = g_ptr_array_new_with_free_func(intent_free);
    g_queue_init(&c->history);
    return c;
}

void catalogue_free(Catalogue *c)
{
    if (!c)
        return;
    database_close(c->database);
    g_ptr_array_unref(c->disks);
    g_hash_table_unref(c->layers);
    g_ptr_array_unref(c->intents);
    for (json_t *entry; (entry = g_queue_pop_head(&c->history));)
        json_decref(entry);
    g_free(c->images_dir);
    g_free(c);
}

// -- finding --------------------------------------------------------------------------------------

DiskLayer *catalogue_layer(const Catalogue *c, int64_t id)
{
    return g_hash_table_lookup(c->layers, &id);
}

Disk *catalogue_find_disk(const Catalogue *c, const char *name)
{
    for (guint i = 0; i < c->disks->len; i++)
        if (g_str_equal(((Disk *)c->disks->pdata[i])->name, name))
            return c->disks->pdata[i];
    return NULL;
}

Disk *catalogue_get_disk(const Catalogue *c, const char *name, GError **error)
{
    Disk *disk = catalogue_find_disk(c, name);
    if (!disk)
        qmp_fail(error, "there is no disk '%s': query-disks lists those that there are", name);
    return disk;
}

Point *disk_find_point(const Disk *disk, const char *name)
{
    for (guint i = 0; i < disk->points->len; i++)
        if (g_str_equal(((Point *)disk->points->pdata[i])->name, name))
            return disk->points->pdata[i];
    return NULL;
}

Point *disk_get_point(const Disk *disk, const char *name, GError **error)
{
    Point *point = disk_find_point(disk, name);
    if (!point)
        qmp_fail(error, "disk '%s' has no point in time '%s': query-disks lists those that it has",
                 disk->name, name);
    return point;
}

DiskExport *catalogue_find_export(const Catalogue *c, const char *id, Disk **ret_disk)
{
    for (guint d = 0; d < c->disks->len; d++) {
        Disk *disk = c->disks->pdata[d];
        for (guint i = 0; i < disk->exports->len; i++) {
            DiskExport *export = disk->exports->pdata[i];
            if (!g_str_equal(export->id, id))
                continue;
            *ret_disk = disk;
            return export;
        }
    }
    return NULL;
}

DiskLayer *catalogue_find_file(const Catalogue *c, const char *file)
{
    GHashTableIter iter;
    gpointer layer;
    g_hash_table_iter_init(&iter, c->layers);
    while (g_hash_table_iter_next(&iter, NULL, &layer))
        if (g_str_equal(((DiskLayer *)layer)->file, file))
            return layer;
    return NULL;
}

static bool is_at_or_below(const DiskLayer *layer, const DiskLayer *top)
{
    for (const DiskLayer *l = top; l; l = l->below)
        if (l == layer)
            return true;
    return false;
}

bool disk_has_layer(const Disk *disk, const DiskLayer *layer)
{
    return is_at_or_below(layer, disk->head);
}

bool disk_needs_layer(const Disk *disk, const DiskLayer *layer)
{
    bool does = disk_has_layer(disk, layer);
    for (guint i = 0; !does && i < disk->points->len; i++)
        does = is_at_or_below(layer, ((const Point *)disk->points->pdata[i])->layer);
    return does;
}

Disk *catalogue_disk_of_head(const Catalogue *c, const DiskLayer *layer)
{
    for (guint i = 0; i < c->disks->len; i++)
        if (((Disk *)c->disks->pdata[i])->head == layer)
            return c->disks->pdata[i];
    return NULL;
}

GPtrArray *catalogue_layers_above(const Catalogue *c, const DiskLayer *layer)
{
    GPtrArray *above = g_ptr_array_new();
    GHashTableIter iter;
    gpointer other;
    g_hash_table_iter_init(&iter, c->layers);
    while (g_hash_table_iter_next(&iter, NULL, &other))
        if (((DiskLayer *)other)->below == layer)
            g_ptr_array_add(above, other);
    return above;
}

int catalogue_check_disk_name(const char *name, GError **error)
{
    if (node_names_is_id(name) && strlen(name) <= MAX_NAME_BYTES)
        return 0;
    return qmp_fail(
        error,
        "'%s' cannot be the name of a disk: a letter, then letters, digits and - . _, at "
        "most %d of them",
        name, MAX_NAME_BYTES);
}

int catalogue_check_point_name(const char *name, GError **error)
{
    size_t len = strspn(name, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._:+");
    if (len && !name[len] && g_ascii_isalnum(*name) && len <= MAX_NAME_BYTES)
        return 0;
    return qmp_fail(error,
                    "'%s' cannot be the name of a point in time: a letter or digit, then letters, "
                    "digits and - . _ : +, at most %d of them",
                    name, MAX_NAME_BYTES);
}

// -- changes --------------------------------------------------------------------------------------

// Whoever refers to a layer, or to none.
static DiskLayer *use(DiskLayer *layer)
{
    if (layer)
        layer->n_users++;
    return layer;
}

static void end_use(DiskLayer *layer)
{
    if (layer)
        layer->n_users--;
}

static char *json_text(const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
    char *owned = g_strdup(text);
    free(text);
    return owned;
}

// A number of a row, or the word for none.
static const char *id_or_null(const DiskLayer *layer, char buffer[32])
{
    if (!layer)
        return "NULL";
    g_snprintf(buffer, 32, "%" G_GINT64_FORMAT, layer->id);
    return buffer;
}

DiskLayer *catalogue_add_layer(Catalogue *c, DatabaseChange *change, const DiskLayer *as)
{
    char below[32];
    DiskLayer *layer = g_new(DiskLayer, 1);
    *layer = *as;
    layer->file = g_strdup(as->file);
    layer->format = g_strdup(as->format);
    layer->n_users = 0;
    use(layer->below);
    g_hash_table_insert(c->layers, &layer->id, layer);
    database_change_add(change, "INSERT INTO layers VALUES(%lld, %Q, %Q, %s, %d, %d)",
                        (long long)as->id, as->file, as->format, id_or_null(as->below, below),
                        as->is_ours, as->is_merging);
    return layer;
}

void catalogue_remove_layer(Catalogue *c, DatabaseChange *change, DiskLayer *layer)
{
    g_assert(layer->n_users == 0);
    for (guint d = 0; d < c->disks->len; d++) {
        Disk *disk = c->disks->pdata[d];
        for (guint i = disk->checkpoints->len; i-- > 0;) {
            Checkpoint *checkpoint = disk->checkpoints->pdata[i];
            if (checkpoint->layer == layer)
                disk_remove_checkpoint(change, disk, checkpoint);
        }
    }
    database_change_add(change, "DELETE FROM layers WHERE id = %lld", (long long)layer->id);
    end_use(layer->below);
    g_hash_table_remove(c->layers, &layer->id);
}

void disk_layer_keep(DiskLayer *layer)
{
    use(layer);
}

void disk_layer_let_go(DiskLayer *layer)
{
    end_use(layer);
}

void disk_layer_set_below(DatabaseChange *change, DiskLayer *layer, DiskLayer *below)
{
    char text[32];
    end_use(layer->below);
    layer->below = use(below);
    database_change_add(change, "UPDATE layers SET below = %s WHERE id = %lld",
                        id_or_null(below, text), (long long)layer->id);
}

void disk_layer_set_merging(DatabaseChange *change, DiskLayer *layer, bool is_merging)
{
    layer->is_merging = is_merging;
    database_change_add(change, "UPDATE layers SET is_merging = %d WHERE id = %lld", is_merging,
                        (long long)layer->id);
}

Disk *catalogue_add_disk(Catalogue *c, DatabaseChange *change, const char *name, DiskLayer *head,
                         json_t *policy)
{
    g_autofree char *text = json_text(policy);
    Disk *disk = g_new0(Disk, 1);
    *disk = (Disk){
        .name = g_strdup(name),
        .head = use(head),
        .policy = policy,
        .points = g_ptr_array_new_with_free_func(point_free),
        .exports = g_ptr_array_new_with_free_func(export_free),
        .checkpoints = g_ptr_array_new_with_free_func(checkpoint_free),
        .holds = g_ptr_array_new(),
    };
    guint at = c->disks->len;
    while (at > 0 && strcmp(((Disk *)c->disks->pdata[at - 1])->name, name) > 0)
        at--;
    g_ptr_array_insert(c->disks, (int)at, disk);
    database_change_add(change, "INSERT INTO disks VALUES(%Q, %lld, %Q)", name, (long long)head->id,
                        text);
    return disk;
}

void catalogue_remove_disk(Catalogue *c, DatabaseChange *change, Disk *disk)
{
    static const char *const tables[] = {"points", "exports", "checkpoints"};
    for (unsigned i = 0; i < G_N_ELEMENTS(tables); i++)
        database_change_add(change, "DELETE FROM %s WHERE disk = %Q", tables[i], disk->name);
    database_change_add(change, "DELETE FROM disks WHERE name = %Q", disk->name);
    end_use(disk->head);
    for (guint i = 0; i < disk->points->len; i++)
        end_use(((Point *)disk->points->pdata[i])->layer);
    g_ptr_array_remove(c->disks, disk);
}

void disk_set_head(DatabaseChange *change, Disk *disk, DiskLayer *head)
{
    end_use(disk->head);
    disk->head = use(head);
    database_change_add(change, "UPDATE disks SET head = %lld WHERE name = %Q", (long long)head->id,
                        disk->name);
}

Point *disk_add_point(DatabaseChange *change, Disk *disk, const char *name, DiskLayer *layer,
                      int64_t created_s)
{
    Point *point = g_new(Point, 1);
    *point = (Point){g_strdup(name), use(layer), created_s};
    guint at = disk->points->len;
    while (at > 0 && ((Point *)disk->points->pdata[at - 1])->created_s > created_s)
        at--;
    g_ptr_array_insert(disk->points, (int)at, point);
    database_change_add(change, "INSERT INTO points VALUES(%Q, %Q, %lld, %lld)", disk->name, name,
                        (long long)layer->id, (long long)created_s);
    return point;
}

void disk_remove_point(DatabaseChange *change, Disk *disk, Point *point)
{
    database_change_add(change, "DELETE FROM points WHERE disk = %Q AND name = %Q", disk->name,
                        point->name);
    end_use(point->layer);
    g_ptr_array_remove(disk->points, point);
}

void disk_move_point(DatabaseChange *change, const Disk *disk, Point *point, DiskLayer *layer)
{
    end_use(point->layer);
    point->layer = use(layer);
    database_change_add(change, "UPDATE points SET layer = %lld WHERE disk = %Q AND name = %Q",
                        (long long)layer->id, disk->name, point->name);
}

DiskExport *disk_add_export(DatabaseChange *change, Disk *disk, const DiskExport *as)
{
    g_autofree char *text = json_text(as->options);
    DiskExport *export = g_new(DiskExport, 1);
    *export = (DiskExport){
        .id = g_strdup(as->id),
        .name = g_strdup(as->name),
        .point = g_strdup(as->point),
        .options = json_incref(as->options),
    };
    g_ptr_array_add(disk->exports, export);
    database_change_add(change, "INSERT INTO exports VALUES(%Q, %Q, %Q, %Q, %Q)", as->id,
                        disk->name, as->point, as->name, text);
    return export;
}

void disk_remove_export(DatabaseChange *change, Disk *disk, DiskExport *export)
{
    database_change_add(change, "DELETE FROM exports WHERE id = %Q", export->id);
    g_ptr_array_remove(disk->exports, export);
}

void disk_export_set_option(DatabaseChange *change, DiskExport *export, const char *name,
                            json_t *value)
{
    if (value)
        json_object_set_new(export->options, name, value);
    else
        json_object_del(export->options, name);
    g_autofree char *text = json_text(export->options);
    database_change_add(change, "UPDATE exports SET options = %Q WHERE id = %Q", text, export->id);
}

Checkpoint *disk_add_checkpoint(DatabaseChange *change, Disk *disk, const Checkpoint *as)
{
    Checkpoint *checkpoint = g_new(Checkpoint, 1);
    *checkpoint = (Checkpoint){g_strdup(as->name), as->layer, g_strdup(as->target), as->created_s};
    g_ptr_array_add(disk->checkpoints, checkpoint);
    database_change_add(change, "INSERT INTO checkpoints VALUES(%Q, %Q, %lld, %Q, %lld)",
                        disk->name, as->name, (long long)as->layer->id, as->target,
                        (long long)as->created_s);
    return checkpoint;
}

void disk_remove_checkpoint(DatabaseChange *change, Disk *disk, Checkpoint *checkpoint)
{
    database_change_add(change, "DELETE FROM checkpoints WHERE disk = %Q AND name = %Q", disk->name,
                        checkpoint->name);
    g_ptr_array_remove(disk->checkpoints, checkpoint);
}

static DiskLayer *find_unneeded(const Catalogue *c)
{
    GHashTableIter iter;
    gpointer layer;
    g_hash_table_iter_init(&iter, c->layers);
    while (g_hash_table_iter_next(&iter, NULL, &layer))
        if (((DiskLayer *)layer)->n_users == 0)
            return layer;
    return NULL;
}

void catalogue_drop_unneeded(Catalogue *c, DatabaseChange *change, json_t *files)
{
    for (DiskLayer *layer; (layer = find_unneeded(c));) {
        if (layer->is_ours)
            json_array_append_new(files, json_string(layer->file));
        catalogue_remove_layer(c, change, layer);
    }
}

int64_t catalogue_next_layer(Catalogue *c, DatabaseChange *change)
{
    database_change_add(change, "UPDATE counters SET value = %lld WHERE name = 'layer'",
                        (long long)++c->last_layer);
    return c->last_layer;
}

int64_t catalogue_next_job(Catalogue *c, DatabaseChange *change)
{
    database_change_add(change, "UPDATE counters SET value = %lld WHERE name = 'job'",
                        (long long)++c->last_job);
    return c->last_job;
}

int64_t catalogue_add_intent(Catalogue *c, DatabaseChange *change, const char *kind, json_t *detail)
{
    g_autofree char *text = json_text(detail);
    json_decref(detail);
    database_change_add(change, "INSERT INTO intents VALUES(%lld, %Q, %Q)",
                        (long long)++c->last_intent, kind, text);
    return c->last_intent;
}

static void forget_target(Catalogue *c, const char *path)
{
    for (guint d = 0; d < c->disks->len; d++) {
        const Disk *disk = c->disks->pdata[d];
        for (guint i = 0; i < disk->checkpoints->len; i++) {
            Checkpoint *checkpoint = disk->checkpoints->pdata[i];
            if (g_strcmp0(checkpoint->target, path) == 0)
                g_clear_pointer(&checkpoint->target, g_free);
        }
    }
}

int64_t catalogue_intend(Fiber *self, Catalogue *c, const char *kind, json_t *detail,
                         GError **error)
{
    DatabaseChange *change = database_change_new();
    database_change_add(change, "UPDATE counters SET value = %lld WHERE name = 'layer'",
                        (long long)c->last_layer);
    database_change_add(change, "UPDATE counters SET value = %lld WHERE name = 'job'",
                        (long long)c->last_job);
    // A file that is to be made is not there, so a backup of that name is not any more.
    json_auto_t *made = json_incref(json_object_get(detail, "files"));
    size_t i;
    const json_t *file;
    json_array_foreach(made, i, file)
    {
        database_change_add(change, "UPDATE checkpoints SET target = NULL WHERE target = %Q",
                            json_string_value(file));
    }
    int64_t id = catalogue_add_intent(c, change, kind, detail);
    int r = database_write(self, c->database, change, error);
    if (r < 0)
        return r;
    json_array_foreach(made, i, file)
    {
        forget_target(c, json_string_value(file));
    }
    return id;
}

void catalogue_change_intent(DatabaseChange *change, int64_t id, const char *kind, json_t *detail)
{
    g_autofree char *text = json_text(detail);
    json_decref(detail);
    database_change_add(change, "UPDATE intents SET kind = %Q, detail = %Q WHERE id = %lld", kind,
                        text, (long long)id);
}

void catalogue_end_intent(DatabaseChange *change, int64_t id)
{
    database_change_add(change, "DELETE FROM intents WHERE id = %lld", (long long)id);
}

void catalogue_add_history(DatabaseChange *change, const json_t *entry)
{
    g_autofree char *text = json_text(entry);
    database_change_add(change, "INSERT INTO history(detail) VALUES(%Q)", text);
    database_change_add(
        change, "DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - %d",
        CATALOGUE_MAX_HISTORY);
}
