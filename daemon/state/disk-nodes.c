// SPDX-License-Identifier: LGPL-2.1-or-later
// Layers are opened one by one from the lowest on, each over the node of the one below, so that
// chains that share layers share their nodes.
#include "disk-nodes.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/loop.h"
#include "daemon/commands/throttle-limits.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/error.h"

void disk_layer_node_name(const DiskLayer *layer, char name[LAYER_NODE_NAME_BYTES])
{
    g_snprintf(name, LAYER_NODE_NAME_BYTES, "layer-%" G_GINT64_FORMAT, layer->id);
}

NamedNode *disk_layer_node(const Nodes *nodes, const DiskLayer *layer)
{
    char name[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(layer, name);
    return nodes_find(nodes, name);
}

static bool is_path(const char *name)
{
    const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
    return !colon || (slash && slash < colon);
}

bool disk_layer_is_remote(const DiskLayer *layer)
{
    return !is_path(layer->file);
}

typedef struct Resolving {
    const char *path; // as it is opened
    char *resolved;   // without `..`, as written
} Resolving;

// `..` is not the directory before it in the name where that is a link.
static int follow_links(void *arg)
{
    Resolving *r = arg;
    GStatBuf opened, other;
    if (g_stat(r->path, &opened) < 0)
        return 0;
    if (g_stat(r->resolved, &other) == 0 && other.st_dev == opened.st_dev &&
        other.st_ino == opened.st_ino)
        return 0;
    g_autofree char *dir = g_path_get_dirname(r->path), *name = g_path_get_basename(r->path);
    char *real = realpath(dir, NULL);
    if (!real)
        return 0;
    g_free(r->resolved);
    r->resolved = g_build_filename(real, name, NULL);
    free(real);
    return 0;
}

char *disk_layer_resolve_name(Fiber *self, const char *file, const char *name)
{
    if (!is_path(name))
        return g_strdup(name);
    g_autofree char *dir = file && is_path(file) ? g_path_get_dirname(file) : NULL;
    g_autofree char *path =
        dir && !g_path_is_absolute(name) ? g_build_filename(dir, name, NULL) : g_strdup(name);
    Resolving resolving = {path, g_canonicalize_filename(name, dir)};
    if (strstr(path, "../"))
        loop_work(self, follow_links, &resolving);
    return resolving.resolved;
}

static bool may_have_backing(const Driver *driver)
{
    return driver_option_find(driver->options, "backing", strlen("backing"));
}

// -- what an image says ---------------------------------------------------------------------------

// Only the image itself: its header may name what is not there.
static NodeConfig *config_alone(const char *file, const char *format, GError **error)
{
    NodeConfig *config;
    if (node_config_new_name(file, format, &config, error) < 0)
        return NULL;
    if (!config->driver || may_have_backing(config->driver)) {
        NodeConfig *with = node_config_new_with(config, "backing", NULL);
        node_config_free(config);
        config = with;
    }
    json_object_set_new(config->values, "read-only", json_true());
    json_object_set_new(config->values, "force-share", json_true());
    return config;
}

int image_facts_read(Fiber *self, Daemon *daemon, const char *file, const char *format,
                     ImageFacts *ret_facts, GError **error)
{
    NodeConfig *config = config_alone(file, format, error);
    NamedNode *named;
    if (!config)
        return -EINVAL;
    int r = nodes_add_unlocking(self, daemon->nodes, config, file, &named, error);
    if (r < 0)
        return r;
    const char *name = json_string_value(json_object_get(named->facts.info, "backing-filename"));
    *ret_facts = (ImageFacts){
        .format = g_strdup(named->driver->name),
        .size_bytes = named->facts.size_bytes,
        .backing_file = name ? disk_layer_resolve_name(self, file, name) : NULL,
        .backing_format = g_strdup(
            json_string_value(json_object_get(named->facts.info, "backing-filename-format"))),
    };
    nodes_close(self, daemon->nodes, named);
    return 0;
}

void image_facts_clear(ImageFacts *facts)
{
    g_free(facts->format);
    g_free(facts->backing_file);
    g_free(facts->backing_format);
    *facts = (ImageFacts){0};
}

// -- opening layers -------------------------------------------------------------------------------

// What a layer is opened as.
typedef struct LayerMode {
    bool is_writable, is_direct;
} LayerMode;

static LayerMode mode_of(const Disk *disk, bool is_head)
{
    if (!disk)
        return (LayerMode){0};
    bool is_read_only = json_is_true(json_object_get(disk->policy, "read-only"));
    return (LayerMode){
        .is_writable = is_head && !is_read_only,
        .is_direct = json_is_true(json_object_get(disk->policy, "direct")),
    };
}

static NodeConfig *config_of(const DiskLayer *layer, const DiskLayer *over, LayerMode mode,
                             GError **error)
{
    NodeConfig *config;
    char name[LAYER_NODE_NAME_BYTES], below[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(layer, name);
    if (node_config_new_name(layer->file, layer->format, &config, error) < 0)
        return NULL;
    if (over)
        disk_layer_node_name(over, below);
    if (may_have_backing(config->driver)) {
        NodeConfig *with = node_config_new_with(config, "backing", over ? below : NULL);
        node_config_free(config);
        config = with;
    }
    json_object_set_new(config->values, "node-name", json_string(name));
    json_object_set_new(config->values, "read-only", json_boolean(!mode.is_writable));
    if (mode.is_direct)
        json_object_set_new(config->values, "cache", json_pack("{s:b}", "direct", 1));
    return config;
}

static int check_below(Fiber *self, const DiskLayer *layer, const NamedNode *named, GError **error)
{
    const char *name = json_string_value(json_object_get(named->facts.info, "backing-filename"));
    const char *known = layer->below ? layer->below->file : NULL;
    g_autofree char *resolved = name ? disk_layer_resolve_name(self, layer->file, name) : NULL;
    if (g_strcmp0(resolved, known) == 0)
        return 0;
    return qmp_fail(error,
                    "the header of '%s' names '%s' below it, but the disk was last seen with '%s' "
                    "there: put that right with qemu-img rebase -u, or remove the disk and add it "
                    "as it is now",
                    layer->file, resolved ?: "nothing", known ?: "nothing");
}

static int open_one(Fiber *self, Daemon *daemon, const DiskLayer *layer, const Disk *disk,
                    bool is_head, GError **error)
{
    NodeConfig *config = config_of(layer, layer->below, mode_of(disk, is_head), error);
    NamedNode *named;
    const char *label = is_head ? disk->name : layer->file;
    if (!config)
        return -EINVAL;
    int r = nodes_add_unlocking(self, daemon->nodes, config, label, &named, error);
    if (r == 0 && (r = check_below(self, layer, named, error)) < 0)
        nodes_close(self, daemon->nodes, named);
    return r;
}

int disk_layer_open_alone(Fiber *self, Daemon *daemon, const DiskLayer *layer, const Disk *disk,
                          NamedNode **ret_node, GError **error)
{
    NodeConfig *config = config_of(layer, NULL, mode_of(disk, true), error);
    return config ? nodes_add(self, daemon->nodes, config, disk->name, ret_node, error) : -EINVAL;
}

int disk_layer_open_over(Fiber *self, Daemon *daemon, const DiskLayer *layer, const Disk *disk,
                         NamedNode **ret_node, GError **error)
{
    int r = open_one(self, daemon, layer, disk, true, error);
    if (r == 0)
        *ret_node = disk_layer_node(daemon->nodes, layer);
    return r;
}

void disk_layer_close_unused(Fiber *self, Daemon *daemon, const DiskLayer *layer)
{
    for (; layer; layer = layer->below) {
        NamedNode *named = disk_layer_node(daemon->nodes, layer);
        if (named && named->users->len)
            return;
        if (named)
            nodes_close(self, daemon->nodes, named);
    }
}

int disk_layer_open(Fiber *self, Daemon *daemon, DiskLayer *layer, const Disk *disk,
                    NamedNode **ret_node, GError **error)
{
    g_autoptr(GPtrArray) closed = g_ptr_array_new();
    for (DiskLayer *l = layer; l && !disk_layer_node(daemon->nodes, l); l = l->below)
        g_ptr_array_add(closed, l);
    for (guint i = closed->len; i-- > 0;) {
        DiskLayer *next = closed->pdata[i];
        int r = open_one(self, daemon, next, disk, disk && next == layer, error);
        if (r < 0) {
            disk_layer_close_unused(self, daemon, next);
            return r;
        }
    }
    *ret_node = disk_layer_node(daemon->nodes, layer);
    return 0;
}

// -- disks ----------------------------------------------------------------------------------------

void disk_let_go(Disk *disk)
{
    for (guint i = 0; i < disk->holds->len; i++)
        named_node_end_use(disk->holds->pdata[i]);
    g_ptr_array_set_size(disk->holds, 0);
}

void disk_hold(const Daemon *daemon, Disk *disk)
{
    static const NodePerms in_place = {
        .shared = NODE_PERM_ALL & ~(NODE_PERM_PLACE | NODE_PERM_BACKING),
    };
    disk_let_go(disk);
    for (const DiskLayer *layer = disk->head; layer; layer = layer->below) {
        NodeUse use = {
            .role = NODE_USE_ROLE_DISK,
            .user = g_strdup_printf("disk '%s'", disk->name),
            .perms = &in_place,
        };
        g_ptr_array_add(disk->holds, named_node_use(disk_layer_node(daemon->nodes, layer), &use));
    }
}

int disk_open(Fiber *self, Daemon *daemon, Disk *disk, GError **error)
{
    NamedNode *head;
    g_autoptr(GError) problem = NULL;
    int r = disk_layer_open(self, daemon, disk->head, disk, &head, &problem);
    g_clear_pointer(&disk->problem, g_free);
    if (r < 0) {
        disk->problem = g_strdup(problem->message);
        g_propagate_error(error, g_steal_pointer(&problem));
        return r;
    }
    disk_hold(daemon, disk);
    return 0;
}

void disk_serve(Fiber *self, Daemon *daemon, Disk *disk)
{
    for (guint i = 0; i < disk->exports->len; i++) {
        const DiskExport *export = disk->exports->pdata[i];
        g_autoptr(GError) why = NULL;
        if (!nbd_server_get(daemon->nbd) || disk_export_served(daemon, export))
            continue;
        if (disk_export_start(self, daemon, disk, export, &why) < 0)
            log_about(LOG_ERROR, &(LogAbout){.disk = disk->name},
                      "disk '%s': '%s' is not exported: %s", disk->name, export->name,
                      why->message);
    }
}

void disks_serve(Fiber *self, Daemon *daemon)
{
    Catalogue *catalogue = daemon->catalogue;
    FiberMutex *graph = nodes_graph_lock(daemon->nodes);
    if (!catalogue)
        return;
    fiber_mutex_lock(self, &catalogue->lock);
    fiber_mutex_lock(self, graph);
    for (guint i = 0; i < catalogue->disks->len; i++) {
        Disk *disk = catalogue->disks->pdata[i];
        if (disk->holds->len)
            disk_serve(self, daemon, disk);
    }
    fiber_mutex_unlock(self, graph);
    fiber_mutex_unlock(self, &catalogue->lock);
}

void disk_close(Fiber *self, Daemon *daemon, Disk *disk)
{
    disk_let_go(disk);
    disk_layer_close_unused(self, daemon, disk->head);
}

// -- exports --------------------------------------------------------------------------------------

Export *disk_export_served(const Daemon *daemon, const DiskExport *export)
{
    return exports_find(daemon->exports, export->id);
}

static char *describe(const Disk *disk, const DiskExport *export, const NamedNode *named)
{
    const char *given = json_string_value(json_object_get(export->options, "description"));
    g_autofree char *summary = named_node_summary(named);
    if (given)
        return g_strdup(given);
    return export->point ? g_strdup_printf("%s@%s: %s", disk->name, export->point, summary)
                         : g_strdup_printf("%s: %s", disk->name, summary);
}

int disk_export_start(Fiber *self, Daemon *daemon, Disk *disk, const DiskExport *export,
                      GError **error)
{
    const Point *point = export->point ? disk_find_point(disk, export->point) : NULL;
    DiskLayer *layer = point ? point->layer : disk->head;
    NamedNode *named;
    Export *started;
    int r = disk_layer_open(self, daemon, layer, point ? NULL : disk, &named, error);
    if (r < 0)
        return r;
    g_autofree char *description = describe(disk, export, named);
    ExportThrottle throttle;
    bool is_limited =
        export_throttle_from_json(json_object_get(export->options, "throttle"), &throttle);
    ExportSpec spec = {
        .id = export->id,
        .name = export->name,
        .description = description,
        .is_writable =
            !named->facts.read_only && json_is_true(json_object_get(export->options, "writable")),
        .has_allocation_depth = true,
        .throttle = is_limited ? &throttle : NULL,
    };
    r = exports_add(self, daemon->exports, named, &spec, &started, error);
    if (r < 0)
        disk_layer_close_unused(self, daemon, layer);
    return r;
}

int disk_check_not_its_export(const Daemon *daemon, const char *id, GError **error)
{
    Disk *disk;
    if (!daemon->catalogue || !catalogue_find_export(daemon->catalogue, id, &disk))
        return 0;
    return qmp_fail(error, "export '%s' belongs to disk '%s': use disk-unexport", id, disk->name);
}

void disk_export_stop(Fiber *self, Daemon *daemon, const DiskExport *export)
{
    Export *served = disk_export_served(daemon, export);
    if (served && !served->is_shutting_down)
        exports_remove(self, daemon->exports, served);
    else if (served)
        exports_wait_removed(self, daemon->exports);
}
