// SPDX-License-Identifier: LGPL-2.1-or-later
// What is made for a disk is named by an intent before, so that after a crash it goes, or is a
// disk's. Control loop.
#include "disks.h"

#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/pace.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-birth.h"
#include "disk-info.h"
#include "new-image.h"
#include "resize.h"

static const QmpType format_type = {
    .name = "DiskFormat",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"qcow2", "raw", NULL},
};

// -- disk-create ----------------------------------------------------------------------------------

static const QmpType create_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            DISK_BIRTH_MEMBERS,
            {"size", &qmp_size, .doc = "in bytes"},
            {"format", &format_type, true, "qcow2, unless given"},
            {"file", &qmp_str, true,
             "its file, which must not exist; NAME.FORMAT in `directory`, unless given"},
            {"directory", &qmp_str, true,
             "where its file is made; the state directory's `images`, unless given"},
            {0}},
};

static char *full_path(const char *path)
{
    return g_canonicalize_filename(path, NULL);
}

static char *file_of_new(Fiber *self, const Catalogue *catalogue, const json_t *args, int64_t id,
                         const char *suffix)
{
    const char *file = qmp_args_str(args, "file"), *directory = qmp_args_str(args, "directory");
    g_autofree char *full = directory ? full_path(directory) : g_strdup(catalogue->images_dir);
    return file ? full_path(file)
                : disk_files_choose(self, catalogue,
                                    &(NewFile){full, qmp_args_str(args, "name"), suffix, id});
}

// What was made goes with its intent.
static void drop_file(Fiber *self, Daemon *daemon, int64_t intent, const char *file)
{
    json_t *files = json_pack("[s]", file);
    disk_files_remove_intended(self, daemon, intent, files);
    json_decref(files);
}

static int create_file(Fiber *self, Daemon *daemon, const DiskLayer *as, const json_t *args,
                       GError **error)
{
    const NewImage image = {
        .path = as->file,
        .format = as->format,
        .size_bytes = (uint64_t)qmp_args_int(args, "size", 0),
    };
    return new_image_create(self, loops_get(daemon->loops, 0), &image, error);
}

// The layer `as`, whose file is made, becomes a disk's head, or goes again with its file.
static int finish_new(Fiber *self, QmpCall *call, Catalogue *catalogue, DatabaseChange *change,
                      const DiskLayer *as, int64_t intent, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    DiskLayer *head = catalogue_add_layer(catalogue, change, as);
    catalogue_end_intent(change, intent);
    int r = disk_birth_finish(self, call, catalogue, change, args, head, ret_reply, error);
    if (r < 0) {
        catalogue_remove_layer(catalogue, NULL, head);
        drop_file(self, call->daemon, intent, as->file);
    }
    return r;
}

static int create_as(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
                     DiskLayer *as, json_t **ret_reply, GError **error)
{
    int64_t intent =
        catalogue_intend(self, catalogue, "make", json_pack("{s:[s]}", "files", as->file), error);
    if (intent < 0)
        return -EIO;
    stop_point("disk-create: it is intended");
    int r = create_file(self, call->daemon, as, args, error);
    if (r < 0) { // whatever lies there is not ours
        drop_file(self, call->daemon, intent, "");
        return r;
    }
    stop_point("disk-create: the file is made");
    DatabaseChange *change = database_change_new();
    return finish_new(self, call, catalogue, change, as, intent, args, ret_reply, error);
}

static int create(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
                  json_t **ret_reply, GError **error)
{
    int r = disk_birth_check(call, catalogue, args, error);
    if (r < 0)
        return r;
    const char *format = qmp_args_str(args, "format") ?: "qcow2";
    int64_t id = catalogue_next_layer(catalogue, NULL);
    g_autofree char *file = file_of_new(self, catalogue, args, id, format);
    if (disk_files_exist(self, file))
        return qmp_fail(
            error, "'%s' exists already: choose another name, or take it as it is with disk-add",
            file);
    DiskLayer as = {.id = id, .file = file, .format = (char *)format, .is_ours = true};
    return create_as(self, call, catalogue, args, &as, ret_reply, error);
}

static int disk_create(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = create(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

// -- disk-add -------------------------------------------------------------------------------------

static const QmpType add_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            DISK_BIRTH_MEMBERS,
            {"file", &qmp_str,
             .doc = "the top image of the chain, or another name of one, such as an NBD URI"},
            {"format", &format_type, true,
             "its format; what the file says, unless given, which a raw image does not"},
            {"own", &qmp_bool, true,
             "whether nothing but this daemon needs the layers below it: they may be changed by a "
             "merge that keeps what disks show, and removed when nobody needs them any more. "
             "false, "
             "unless given: they stay as they are"},
            {"read-only", &qmp_bool, true, "whether nobody is to write it; false"},
            {"overlay", &qmp_bool, true,
             "whether a new image over it is made, and is the head: the chain, which may be "
             "elsewhere, stays as it is, and disk-flatten brings it here. false, unless given"},
            {"directory", &qmp_str, true,
             "where that is made; the state directory's `images`, unless given"},
            {0}},
};

enum { MAX_LAYERS = 1000 }; // a bound for chains that never end

// From the head down; a layer that is known already ends it.
typedef struct FoundChain {
    GPtrArray *layers; // DiskLayer, each `below` the next; owned but for a last one that is known
    DiskLayer *known;  // on which the last of them stands, or NULL
} FoundChain;

static void found_layer_free(gpointer p)
{
    g_free(((DiskLayer *)p)->file);
    g_free(((DiskLayer *)p)->format);
    g_free(p);
}

static bool has_file(const FoundChain *found, const char *file)
{
    for (guint i = 0; i < found->layers->len; i++)
        if (g_str_equal(((DiskLayer *)found->layers->pdata[i])->file, file))
            return true;
    return false;
}

static int find_chain(Fiber *self, Daemon *daemon, const Catalogue *catalogue, const char *file,
                      const char *format, FoundChain *found, GError **error)
{
    ImageFacts facts = {.backing_file = g_strdup(file), .backing_format = g_strdup(format)};
    int r = 0;
    while (r == 0 && facts.backing_file) {
        g_autofree char *next = g_steal_pointer(&facts.backing_file);
        g_autofree char *of = g_steal_pointer(&facts.backing_format);
        image_facts_clear(&facts);
        found->known = catalogue_find_file(catalogue, next);
        if (found->known)
            break;
        if (has_file(found, next) || found->layers->len == MAX_LAYERS)
            r = qmp_fail(error, "the chain of '%s' never ends: it comes to '%s' again", file, next);
        else
            r = image_facts_read(self, daemon, next, of, &facts, error);
        if (r < 0)
            break;
        DiskLayer *layer = g_new0(DiskLayer, 1);
        layer->file = g_steal_pointer(&next);
        layer->format = g_strdup(facts.format);
        g_ptr_array_add(found->layers, layer);
    }
    image_facts_clear(&facts);
    return r;
}

static int check_found(const Catalogue *catalogue, const FoundChain *found, const char *file,
                       GError **error)
{
    const Disk *disk = found->known ? catalogue_disk_of_head(catalogue, found->known) : NULL;
    if (disk)
        return qmp_fail(error,
                        "'%s' is the head of disk '%s', which its clients write: make a point in "
                        "time of that with disk-snapshot, and a disk on it with disk-clone",
                        found->known->file, disk->name);
    if (found->known && found->known->is_merging)
        return qmp_fail(error,
                        "a commit into '%s' has begun: what '%s' stood on is not there any more",
                        found->known->file, file);
    if (!found->layers->len)
        return qmp_fail(error,
                        "'%s' is a layer that other disks stand on: make a disk on it with "
                        "disk-clone",
                        file);
    return 0;
}

// From the lowest on; the head is the last. Memory that is taken back with remove_found().
static DiskLayer *add_found(Catalogue *catalogue, DatabaseChange *change, const FoundChain *found,
                            bool are_ours)
{
    DiskLayer *below = found->known;
    for (guint i = found->layers->len; i-- > 0;) {
        DiskLayer as = *(DiskLayer *)found->layers->pdata[i];
        as.id = catalogue_next_layer(catalogue, change);
        as.below = below;
        as.is_ours = are_ours;
        below = catalogue_add_layer(catalogue, change, &as);
    }
    return below;
}

static void remove_found(Catalogue *catalogue, const FoundChain *found, DiskLayer *head)
{
    for (DiskLayer *layer = head, *below; layer != found->known; layer = below) {
        below = layer->below;
        catalogue_remove_layer(catalogue, NULL, layer);
    }
}

static int find_and_check(Fiber *self, const QmpCall *call, const Catalogue *catalogue,
                          const json_t *args, FoundChain *found, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    g_autofree char *file = disk_layer_resolve_name(self, NULL, qmp_args_str(args, "file"));
    fiber_mutex_lock(self, lock);
    int r =
        find_chain(self, call->daemon, catalogue, file, qmp_args_str(args, "format"), found, error);
    fiber_mutex_unlock(self, lock);
    return r == 0 ? check_found(catalogue, found, file, error) : r;
}

// With the graph lock.
static int make_overlay(Fiber *self, Daemon *daemon, const DiskLayer *as, GError **error)
{
    NamedNode *below;
    int r = disk_layer_open(self, daemon, as->below, NULL, &below, error);
    if (r < 0)
        return r;
    const NewImage image = {
        .path = as->file,
        .format = as->format,
        .size_bytes = below->facts.size_bytes,
        .below = named_node_image(below),
    };
    r = new_image_create(self, named_node_loop(below), &image, error);
    stop_point("disk-add: an overlay is made");
    if (r < 0)
        disk_layer_close_unused(self, daemon, as->below);
    return r;
}

// The disk with a new head over `below`. Takes `change`.
static int add_over(Fiber *self, QmpCall *call, Catalogue *catalogue, DatabaseChange *change,
                    const DiskLayer *as, const json_t *args, json_t **ret_reply, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    int64_t intent =
        catalogue_intend(self, catalogue, "make", json_pack("{s:[s]}", "files", as->file), error);
    if (intent < 0) {
        database_change_free(change);
        return -EIO;
    }
    stop_point("disk-add: an overlay is intended");
    fiber_mutex_lock(self, lock);
    int r = make_overlay(self, call->daemon, as, error);
    fiber_mutex_unlock(self, lock);
    if (r < 0) { // whatever lies there is not ours
        database_change_free(change);
        drop_file(self, call->daemon, intent, "");
        return r;
    }
    return finish_new(self, call, catalogue, change, as, intent, args, ret_reply, error);
}

static int add_overlay(Fiber *self, QmpCall *call, Catalogue *catalogue, DatabaseChange *change,
                       DiskLayer *below, const json_t *args, json_t **ret_reply, GError **error)
{
    const char *directory = qmp_args_str(args, "directory");
    g_autofree char *full = directory ? full_path(directory) : g_strdup(catalogue->images_dir);
    int64_t id = catalogue_next_layer(catalogue, change);
    g_autofree char *file = disk_files_choose(
        self, catalogue, &(NewFile){full, qmp_args_str(args, "name"), "qcow2", id});
    DiskLayer as = {.id = id, .file = file, .format = "qcow2", .below = below, .is_ours = true};
    return add_over(self, call, catalogue, change, &as, args, ret_reply, error);
}

static int add(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
               json_t **ret_reply, GError **error)
{
    g_autoptr(GPtrArray) layers = g_ptr_array_new_with_free_func(found_layer_free);
    FoundChain found = {.layers = layers};
    int r = disk_birth_check(call, catalogue, args, error);
    if (r == 0)
        r = find_and_check(self, call, catalogue, args, &found, error);
    if (r < 0)
        return r;
    DatabaseChange *change = database_change_new();
    DiskLayer *head = add_found(catalogue, change, &found, qmp_args_bool(args, "own", false));
    r = qmp_args_bool(args, "overlay", false)
            ? add_overlay(self, call, catalogue, change, head, args, ret_reply, error)
            : disk_birth_finish(self, call, catalogue, change, args, head, ret_reply, error);
    if (r < 0)
        remove_found(catalogue, &found, head);
    return r;
}

static int disk_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = add(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

// -- disk-remove ----------------------------------------------------------------------------------

static const QmpType remove_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"name", &qmp_str, .doc = "of the disk"},
            {"clients", &qmp_disk_client_mode, true,
             "of its exports; safe, unless given: refused while there are any"},
            {"delete-files", &qmp_bool, true,
             "whether the head's file, and those of layers that are ours and that no other disk "
             "needs, are removed. false, unless given: nothing is"},
            {0}},
};

static int check_clients(Fiber *self, const Daemon *daemon, const Disk *disk, GError **error)
{
    for (guint i = 0; i < disk->exports->len; i++) {
        const DiskExport *export = disk->exports->pdata[i];
        if (exports_have_clients(self, daemon->exports, export->id))
            return qmp_disk_refuse(
                error, -EBUSY,
                "disk '%s' has clients on its export '%s': let them disconnect, or "
                "disconnect them with \"clients\": \"hard\"",
                disk->name, export->name);
    }
    return 0;
}

// Nobody but its own exports may use its head.
static int check_unused(const Daemon *daemon, const Disk *disk, GError **error)
{
    const NamedNode *head = disk_layer_node(daemon->nodes, disk->head);
    for (guint i = 0; head && i < head->users->len; i++) {
        const NodeUse *use = head->users->pdata[i];
        bool is_own = g_str_equal(use->role, NODE_USE_ROLE_DISK);
        for (guint e = 0; !is_own && e < disk->exports->len; e++) {
            const Export *served = disk_export_served(daemon, disk->exports->pdata[e]);
            is_own = served && served->use == use;
        }
        if (!is_own)
            return qmp_fail(error, "disk '%s' is in use by %s: end that first", disk->name,
                            use->user);
    }
    return 0;
}

// Points of side branches have nodes, too.
static void close_points(Fiber *self, Daemon *daemon, const Disk *disk)
{
    for (guint i = 0; i < disk->points->len; i++)
        disk_layer_close_unused(self, daemon, ((const Point *)disk->points->pdata[i])->layer);
}

static int remove_disk(Fiber *self, Daemon *daemon, Catalogue *catalogue, Disk *disk,
                       bool deletes_files, GError **error)
{
    json_t *files = json_array(), *unneeded = json_array();
    DatabaseChange *change = database_change_new();
    int64_t intent = 0;
    for (guint i = 0; i < disk->exports->len; i++)
        disk_export_stop(self, daemon, disk->exports->pdata[i]);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    disk_close(self, daemon, disk);
    close_points(self, daemon, disk);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    if (deletes_files)
        json_array_append_new(files, json_string(disk->head->file));
    disk->head->is_ours = false; // by itself it is no more than the others are
    catalogue_remove_disk(catalogue, change, disk);
    catalogue_drop_unneeded(catalogue, change, unneeded);
    if (deletes_files) {
        json_array_extend(files, unneeded);
        intent =
            catalogue_add_intent(catalogue, change, "remove", json_pack("{s:O}", "files", files));
    }
    int r = database_note(self, catalogue->database, change, error);
    stop_point("disk-remove: it is forgotten");
    if (r == 0 && deletes_files)
        disk_files_remove_intended(self, daemon, intent, files);
    json_decref(files);
    json_decref(unneeded);
    return r;
}

static int remove_checked(Fiber *self, const QmpCall *call, Catalogue *catalogue,
                          const json_t *args, GError **error)
{
    Disk *disk = qmp_disks_get(catalogue, args, "name", error);
    if (!disk)
        return -ENOENT;
    if (disk->is_opening)
        return qmp_disk_refuse(error, -EBUSY,
                               "disk '%s' is busy: %s; try again once it has, or failed",
                               disk->name, disk->problem);
    if (disk->job)
        return qmp_disk_refuse(error, -EBUSY,
                               "disk '%s' is busy: job '%s' is at work on it; cancel it first",
                               disk->name, disk->job);
    int r = check_unused(call->daemon, disk, error);
    if (r == 0 && !qmp_args_is_hard(args))
        r = check_clients(self, call->daemon, disk, error);
    return r == 0 ? remove_disk(self, call->daemon, catalogue, disk,
                                qmp_args_bool(args, "delete-files", false), error)
                  : r;
}

static int disk_remove(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = remove_checked(self, call, catalogue, args, error);
    qmp_disks_end(self, catalogue);
    return r;
}

// -- disk-resize ----------------------------------------------------------------------------------

static const QmpType resize_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"disk", &qmp_str, .doc = "the disk"},
                                   {"size", &qmp_size, .doc = "its new size in bytes"},
                                   {"shrink", &qmp_bool, true,
                                    "whether it may become smaller, which loses what lies beyond; "
                                    "false"},
                                   {0}},
};

static int resize(Fiber *self, const QmpCall *call, const Catalogue *catalogue, const json_t *args,
                  json_t **ret_reply, GError **error)
{
    Daemon *daemon = call->daemon;
    Disk *disk;
    uint64_t size = (uint64_t)qmp_args_int(args, "size", 0);
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r < 0)
        return r;
    NamedNode *head = disk_layer_node(daemon->nodes, disk->head);
    if (size < head->facts.size_bytes && !qmp_args_bool(args, "shrink", false))
        return qmp_fail(error,
                        "disk '%s' has %" G_GUINT64_FORMAT
                        " bytes: what lies beyond %" G_GUINT64_FORMAT
                        " would be lost; if that is meant say so with \"shrink\": true",
                        disk->name, head->facts.size_bytes, size);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    r = qmp_resize_node(self, daemon->nodes, head, size, error);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    if (r == 0)
        *ret_reply = qmp_describe_disk(daemon, disk);
    return r;
}

static int disk_resize(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = resize(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

// -- query-disks ----------------------------------------------------------------------------------

static const QmpType query_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, true, "only this disk"}, {0}},
};
static const QmpType disk_infos = {.kind = QMP_ARRAY, .element = &qmp_disk_info};

static json_t *describe_all(Fiber *self, const QmpCall *call)
{
    const Catalogue *catalogue = call->daemon->catalogue;
    json_t *infos = json_array();
    g_auto(GStrv) names = g_new0(char *, catalogue->disks->len + 1);
    QmpPace pace = qmp_pace_begin();
    for (guint i = 0; i < catalogue->disks->len; i++)
        names[i] = g_strdup(((const Disk *)catalogue->disks->pdata[i])->name);
    for (char **name = names; *name; name++) {
        const Disk *disk = catalogue_find_disk(catalogue, *name);
        if (disk)
            json_array_append_new(infos, qmp_describe_disk(call->daemon, disk));
        qmp_pace(self, &pace);
    }
    return infos;
}

static int query_disks(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    const Catalogue *catalogue = call->daemon->catalogue;
    const char *name = qmp_args_str(args, "name");
    if (!catalogue)
        *ret_reply = json_array();
    else if (!name)
        *ret_reply = describe_all(self, call);
    if (*ret_reply)
        return 0;
    const Disk *disk = catalogue_get_disk(catalogue, name, error);
    if (!disk)
        return -ENOENT;
    *ret_reply = json_pack("[o]", qmp_describe_disk(call->daemon, disk));
    return 0;
}

static const QmpCommand commands[] = {
    {"disk-create", &create_args, &qmp_disk_info,
     "Makes a disk with a new image, and exports it. It is remembered, like all disks: after a "
     "restart it is there again, with its points in time and its exports.",
     disk_create},
    {"disk-add", &add_args, &qmp_disk_info,
     "The same of an image that exists, with all that its chain consists of.", disk_add},
    {"disk-remove", &remove_args, NULL,
     "Forgets a disk, its points in time and its exports. Layers that other disks stand on stay.",
     disk_remove},
    {"disk-resize", &resize_args, &qmp_disk_info,
     "Gives a disk another size, while clients go on: those that connect from then on see it. "
     "Points "
     "in time keep theirs.",
     disk_resize},
    {"query-disks", &query_args, &disk_infos, "All disks, by name.", query_disks, .is_query = true},
    {0},
};

static char *text(void)
{
    return g_strdup(
        "Remembered by a daemon that has a state directory (`--state DIR`). A *disk* is a chain "
        "with "
        "a name, a head, which clients write, points in time, exports and a policy. Its layers are "
        "nodes called `layer-N`, on which all other commands work, but for those that would put "
        "other nodes in their place or below them: these are refused. [disks.md](disks.md) has the "
        "rules. All of these commands are extensions.\n");
}

const QmpFamily qmp_disks_family = {.title = "Disks", .text = text, .commands = commands};
