// SPDX-License-Identifier: LGPL-2.1-or-later
// Each kind of intent has a function that finds out how far it came, and makes the catalogue and
// the files agree again; doing so twice does no harm, since a crash may come here, too.
#include "recovery.h"

#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "disk-files.h"
#include "disk-nodes.h"
#include "merges.h"
#include "stop-point.h"

// -- made for nothing, or not needed any more -----------------------------------------------------

static void remove_files(Fiber *self, Daemon *daemon, const Intent *intent)
{
    disk_files_remove_intended(self, daemon, intent->id, json_object_get(intent->detail, "files"));
}

// -- snapshots ------------------------------------------------------------------------------------

// Is the overlay there, over what was the head?
static bool is_complete(Fiber *self, Daemon *daemon, const json_t *item)
{
    const Disk *disk = catalogue_find_disk(daemon->catalogue, qmp_args_str(item, "disk"));
    ImageFacts facts = {0};
    if (!disk || image_facts_read(self, daemon, qmp_args_str(item, "file"), "qcow2", &facts, NULL))
        return false;
    bool is_over = g_strcmp0(facts.backing_file, disk->head->file) == 0;
    image_facts_clear(&facts);
    return is_over;
}

static void make_head(Catalogue *catalogue, DatabaseChange *change, const json_t *item,
                      int64_t created_s)
{
    Disk *disk = catalogue_find_disk(catalogue, qmp_args_str(item, "disk"));
    DiskLayer *below = disk->head;
    DiskLayer *head = catalogue_add_layer(catalogue, change,
                                          &(DiskLayer){
                                              .id = qmp_args_int(item, "layer", 0),
                                              .file = (char *)qmp_args_str(item, "file"),
                                              .format = "qcow2",
                                              .below = below,
                                              .is_ours = true,
                                          });
    disk_set_head(change, disk, head);
    disk_add_point(change, disk, qmp_args_str(item, "point"), below, created_s);
    log_line(LOG_INFO, "disk '%s': the point in time '%s', which was being made, is there",
             disk->name, qmp_args_str(item, "point"));
}

// What was noted as made may be written already, so it is not looked for: a file that is not there
// is told of when its disk is opened.
static void end_snapshot(Fiber *self, Daemon *daemon, const Intent *intent)
{
    const json_t *items = json_object_get(intent->detail, "snapshots"), *item;
    bool are_made = qmp_args_bool(intent->detail, "made", false);
    g_autoptr(GError) error = NULL;
    size_t i;
    json_array_foreach(items, i, item)
    {
        if (are_made || is_complete(self, daemon, item))
            continue;
        remove_files(self, daemon, intent);
        return;
    }
    DatabaseChange *change = database_change_new();
    json_array_foreach(items, i, item)
        make_head(daemon->catalogue, change, item, qmp_args_int(intent->detail, "created", 0));
    catalogue_end_intent(change, intent->id);
    if (database_note(self, daemon->catalogue->database, change, &error) < 0)
        log_line(LOG_ERROR, "%s", error->message);
}

// -- merges ---------------------------------------------------------------------------------------

// Does its header name this below? `base` NULL: nothing. Negative, with a line in the log: it
// cannot be read.
static int stands_on(Fiber *self, Daemon *daemon, const DiskLayer *layer, const DiskLayer *base)
{
    ImageFacts facts = {0};
    g_autoptr(GError) error = NULL;
    int r = image_facts_read(self, daemon, layer->file, layer->format, &facts, &error);
    if (r < 0) {
        log_line(LOG_WARNING, "whether a merge has ended is not known: %s", error->message);
        return r;
    }
    bool does = g_strcmp0(facts.backing_file, base ? base->file : NULL) == 0;
    image_facts_clear(&facts);
    return does;
}

static void remove_left(Fiber *self, Daemon *daemon, MergeLeft *left)
{
    disk_files_remove_intended(self, daemon, left->intent, left->files);
    merge_left_clear(left);
}

// Where the image cannot be read its disk is not opened, and the intent stays for the next start.
static void end_stream(Fiber *self, Daemon *daemon, const Intent *intent)
{
    StreamMerge merge;
    MergeLeft left;
    bool is_known = stream_merge_parse(daemon->catalogue, intent->detail, &merge);
    int r = is_known ? stands_on(self, daemon, merge.image, merge.base) : 0;
    if (r == 0)
        merge_give_up(self, daemon->catalogue, intent->id);
    if (r <= 0)
        return;
    stream_merge_note(self, daemon->catalogue, intent->id, &merge, &left);
    remove_left(self, daemon, &left);
}

static bool is_in(void *arg, const DiskLayer *overlay)
{
    return g_ptr_array_find(arg, overlay, NULL);
}

// Where one overlay names the base, what was merged is complete. Those that do not yet show the
// same over the top, which stays below them. Where none that can be read does, the intent stays for
// those that cannot.
static void end_commit(Fiber *self, Daemon *daemon, const Intent *intent)
{
    Catalogue *catalogue = daemon->catalogue;
    CommitMerge merge;
    MergeLeft left;
    g_autoptr(GPtrArray) over = g_ptr_array_new();
    bool is_known = commit_merge_parse(catalogue, intent->detail, &merge);
    g_autoptr(GPtrArray) overlays =
        is_known ? catalogue_layers_above(catalogue, merge.top) : g_ptr_array_new();
    int unread = 0;
    for (guint i = 0; i < overlays->len; i++) {
        int r = stands_on(self, daemon, overlays->pdata[i], merge.base);
        if (r > 0)
            g_ptr_array_add(over, overlays->pdata[i]);
        unread = MIN(unread, r);
    }
    if (!over->len && unread == 0)
        merge_give_up(self, catalogue, intent->id);
    if (!over->len)
        return;
    commit_merge_note(self, catalogue, intent->id, &merge, is_in, over, &left);
    remove_left(self, daemon, &left);
}

// -- rollbacks ------------------------------------------------------------------------------------

static void end_drop(Fiber *self, Daemon *daemon, const Intent *intent)
{
    MergeLeft left;
    rollback_drop_note(self, daemon->catalogue, intent->id, intent->detail, &left);
    remove_left(self, daemon, &left);
}

// -- all ------------------------------------------------------------------------------------------

typedef struct IntentKind {
    const char *name;
    void (*end)(Fiber *self, Daemon *daemon, const Intent *intent);
} IntentKind;

static const IntentKind kinds[] = {
    {"make", remove_files}, {"remove", remove_files}, {"snapshot", end_snapshot},
    {"stream", end_stream}, {"commit", end_commit},   {"drop", end_drop},
};

static void end_intents(Fiber *self, Daemon *daemon)
{
    Catalogue *catalogue = daemon->catalogue;
    for (guint i = 0; i < catalogue->intents->len; i++) {
        const Intent *intent = catalogue->intents->pdata[i];
        for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++)
            if (g_str_equal(kinds[k].name, intent->kind))
                kinds[k].end(self, daemon, intent);
    }
    g_ptr_array_set_size(catalogue->intents, 0);
}

static int list_images(void *arg)
{
    GPtrArray *names = arg;
    g_autoptr(GDir) dir = g_dir_open(names->pdata[0], 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir)))
        g_ptr_array_add(names, g_build_filename(names->pdata[0], name, NULL));
    return 0;
}

// Named, and left alone: nobody knows whose they are.
static void tell_of_strangers(Fiber *self, const Catalogue *catalogue)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GHashTable) known = g_hash_table_new(g_str_hash, g_str_equal);
    GHashTableIter iter;
    gpointer layer;
    g_ptr_array_add(names, g_strdup(catalogue->images_dir));
    loop_work(self, list_images, names);
    g_hash_table_iter_init(&iter, catalogue->layers);
    while (g_hash_table_iter_next(&iter, NULL, &layer))
        g_hash_table_add(known, ((DiskLayer *)layer)->file);
    for (guint i = 1; i < names->len; i++)
        if (!g_hash_table_contains(known, names->pdata[i]))
            log_line(LOG_WARNING, "'%s' belongs to no disk", (const char *)names->pdata[i]);
}

void disks_recover(Fiber *self, Daemon *daemon)
{
    Catalogue *catalogue = daemon->catalogue;
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    end_intents(self, daemon);
    tell_of_strangers(self, catalogue);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
}

void disks_stop(Daemon *daemon)
{
    for (guint i = 0; daemon->catalogue && i < daemon->catalogue->disks->len; i++)
        disk_let_go(daemon->catalogue->disks->pdata[i]);
}
