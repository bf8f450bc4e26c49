// SPDX-License-Identifier: LGPL-2.1-or-later
// Five queries at most, whatever the number of disks. Layers are the same where their files are:
// each disk may have opened its own.
#include "disk-view.h"

#include <string.h>

#include "export-limits.h"
#include "field.h"

typedef struct View {
    json_t *nodes, *graph, *exports; // the replies
    json_t *remembered;              // of query-disks; NULL: it remembers none
    GHashTable *infos;               // by node-name: borrowed from `nodes`
    GHashTable *names;               // by the graph's number: the name
    GHashTable *children;            // "NODE\nROLE": name of the child
    GHashTable *parents;             // by node-name: has one among the nodes
    GHashTable *jobs;                // by node-name: json array of ids
    GHashTable *taken;               // ids of exports that belong to disks
    json_t *disks;
} View;

// -- the graph ------------------------------------------------------------------------------------

static const char *child_of(const View *view, const char *node, const char *role)
{
    g_autofree char *key = g_strdup_printf("%s\n%s", node, role);
    return g_hash_table_lookup(view->children, key);
}

// "stream job 's1'" → "s1"; owned. NULL: another user.
static char *job_of_user(const char *user)
{
    const char *job = strstr(user, "job '");
    size_t len = strlen(user);
    return job && user[len - 1] == '\''
               ? g_strndup(job + strlen("job '"), len - (size_t)(job - user) - strlen("job '") - 1)
               : NULL;
}

static void add_job(View *view, const char *node, const char *user)
{
    g_autofree char *id = job_of_user(user);
    if (!id)
        return;
    json_t *ids = g_hash_table_lookup(view->jobs, node);
    if (!ids) {
        ids = json_array();
        g_hash_table_insert(view->jobs, g_strdup(node), ids);
    }
    json_array_append_new(ids, json_string(id));
}

static void read_graph(View *view)
{
    size_t i;
    const json_t *node, *edge;
    json_array_foreach(field(view->graph, "nodes"), i, node)
    {
        g_hash_table_insert(view->names,
                            GINT_TO_POINTER((int)json_integer_value(field(node, "id"))),
                            (gpointer)field_text(node, "name"));
    }
    json_array_foreach(field(view->graph, "edges"), i, edge)
    {
        gpointer from = GINT_TO_POINTER((int)json_integer_value(field(edge, "parent")));
        gpointer to = GINT_TO_POINTER((int)json_integer_value(field(edge, "child")));
        const char *parent = g_hash_table_lookup(view->names, from);
        const char *child = g_hash_table_lookup(view->names, to);
        if (!parent || !child)
            continue;
        if (g_hash_table_contains(view->infos, parent)) {
            g_hash_table_insert(view->children,
                                g_strdup_printf("%s\n%s", parent, field_text(edge, "name")),
                                (gpointer)child);
            g_hash_table_add(view->parents, (gpointer)child);
        } else {
            add_job(view, child, parent);
        }
    }
}

static bool is_filter(const char *driver)
{
    static const char *const filters[] = {
        "throttle",        "copy-on-read", "compress",   "blkdebug",   "copy-before-write",
        "snapshot-access", "mirror_top",   "commit_top", "backup_top", NULL};
    return g_strv_contains(filters, driver);
}

// What a filter stands on.
static const char *filtered_by(const View *view, const char *node)
{
    const char *child = child_of(view, node, "file");
    if (!child)
        child = child_of(view, node, "image");
    return child ? child : child_of(view, node, "backing");
}

// -- layers ---------------------------------------------------------------------------------------

static json_t *snapshot_names(const json_t *image)
{
    json_t *names = json_array();
    size_t i;
    const json_t *snapshot;
    json_array_foreach(field(image, "snapshots"), i, snapshot)
    {
        json_array_append(names, field(snapshot, "name"));
    }
    return names;
}

// A name of QEMU's that describes an image ("json:{…}") is that of its file, if it names one.
static json_t *file_name(json_t *name)
{
    const char *text = json_string_value(name);
    json_auto_t *described = text && g_str_has_prefix(text, "json:")
                                 ? json_loads(text + strlen("json:"), 0, NULL)
                                 : NULL;
    json_t *file = field(field(described, "file"), "filename");
    return json_incref(json_is_string(file) ? file : name);
}

static json_t *layer_of(const char *node, const json_t *info)
{
    const json_t *image = field(info, "image");
    json_t *allocated = field(image, "actual-size");
    return json_pack("{s:s, s:o, s:O, s:O, s:o, s:n, s:[], s:o}", "node", node, "filename",
                     file_name(field(image, "filename")), "format", field(image, "format"), "size",
                     field(image, "virtual-size"), "allocated",
                     allocated ? json_incref(allocated) : json_null(), "point", "shared",
                     "snapshots", snapshot_names(image));
}

static void add_jobs(const View *view, json_t *jobs, const char *node)
{
    size_t i, j;
    const json_t *id, *old;
    json_array_foreach(g_hash_table_lookup(view->jobs, node), i, id)
    {
        bool is_known = false;
        json_array_foreach(jobs, j, old) is_known |= json_equal(old, id);
        if (!is_known)
            json_array_append(jobs, (json_t *)id);
    }
}

// From `top` down.
static void add_layers(const View *view, const char *top, json_t *layers, json_t *jobs)
{
    for (const char *node = top; node;) {
        const json_t *info = g_hash_table_lookup(view->infos, node);
        if (!info)
            return;
        add_jobs(view, jobs, node);
        if (is_filter(field_text(info, "drv"))) {
            node = filtered_by(view, node);
            continue;
        }
        json_array_append_new(layers, layer_of(node, info));
        node = child_of(view, node, "backing");
    }
}

// -- disks ----------------------------------------------------------------------------------------

static json_t *disk_new(const View *view, const char *name, const char *node)
{
    json_t *layers = json_array(), *jobs = json_array();
    const json_t *info = g_hash_table_lookup(view->infos, node);
    add_layers(view, node, layers, jobs);
    const json_t *head = json_array_get(layers, 0);
    const json_t *head_info =
        head ? g_hash_table_lookup(view->infos, field_text(head, "node")) : info;
    json_t *bitmaps = field(head_info, "dirty-bitmaps");
    return json_pack(
        "{s:s, s:s, s:O*, s:O*, s:b, s:i, s:i, s:[], s:[], s:o, s:o, s:o, s:b, s:n, s:[], s:[]}",
        "name", name, "node", node, "size", field(head, "size"), "format", field(head, "format"),
        "read-only", json_is_true(field(info, "ro")), "clients", 0, "in-flight", 0, "uris",
        "limits", "bitmaps", bitmaps ? json_incref(bitmaps) : json_array(), "jobs", jobs, "layers",
        layers, "is-remembered", 0, "problem", "points", "checkpoints");
}

// Beside what is known of its nodes, what the daemon remembers of it.
static void add_points(json_t *disk, const json_t *info)
{
    size_t i, j;
    const json_t *point;
    json_t *layer;
    json_array_foreach(field(info, "points"), i, point)
    {
        json_array_append_new(field(disk, "points"),
                              json_pack("{s:O, s:O, s:O, s:O, s:O}", "name", field(point, "name"),
                                        "node", field(point, "node-name"), "filename",
                                        field(point, "file"), "created", field(point, "created"),
                                        "in-chain", field(point, "in-chain")));
        json_array_foreach(field(disk, "layers"), j, layer)
        {
            if (json_equal(field(layer, "node"), field(point, "node-name")))
                json_object_set(layer, "point", field(point, "name"));
        }
    }
}

static void add_limits(json_t *disk, const json_t *export)
{
    const json_t *throttle = field(export, "throttle");
    g_autofree char *text = limits_text(throttle);
    if (throttle)
        json_array_append_new(field(disk, "limits"),
                              json_pack("{s:O, s:O, s:O, s:s}", "export", field(export, "id"),
                                        "group", field(throttle, "group"), "limits",
                                        field(throttle, "limits"), "text", text));
}

static const json_t *served_export(const View *view, const json_t *id)
{
    size_t i;
    const json_t *export;
    json_array_foreach(view->exports, i, export)
    {
        if (json_equal(field(export, "id"), id))
            return export;
    }
    return NULL;
}

// Clients of the disk and of its points count for it; the URIs are the head's.
static void take_exports(View *view, json_t *disk, const json_t *info)
{
    size_t i;
    const json_t *export;
    json_int_t clients = 0;
    json_array_foreach(field(info, "exports"), i, export)
    {
        clients += json_integer_value(field(export, "clients"));
        if (!field(export, "point"))
            json_array_extend(field(disk, "uris"), field(export, "uris"));
        g_hash_table_add(view->taken, (gpointer)field_text(export, "id"));
        add_limits(disk, served_export(view, field(export, "id")));
    }
    json_object_set_new(disk, "clients", json_integer(clients));
}

// Of a disk that is not open, there are no nodes to ask.
static void add_closed_layers(json_t *disk, const json_t *info)
{
    size_t i;
    const json_t *layer;
    if (json_array_size(field(disk, "layers")))
        return;
    json_array_foreach(field(info, "layers"), i, layer)
    {
        json_array_append_new(field(disk, "layers"),
                              json_pack("{s:O, s:O, s:O, s:n, s:n, s:n, s:[], s:[]}", "node",
                                        field(layer, "node-name"), "filename", field(layer, "file"),
                                        "format", field(layer, "format"), "size", "allocated",
                                        "point", "shared", "snapshots"));
    }
}

static void add_remembered(View *view)
{
    size_t i, j;
    const json_t *info, *layer;
    json_array_foreach(view->remembered, i, info)
    {
        json_t *disk = disk_new(view, field_text(info, "name"), field_text(info, "node-name"));
        json_object_set_new(disk, "is-remembered", json_true());
        json_object_set(disk, "format", field(info, "format"));
        json_object_set(disk, "checkpoints", field(info, "checkpoints"));
        if (field(info, "problem"))
            json_object_set(disk, "problem", field(info, "problem"));
        if (!field(disk, "size"))
            json_object_set_new(disk, "size", json_null());
        add_closed_layers(disk, info);
        add_points(disk, info);
        take_exports(view, disk, info);
        json_array_append_new(view->disks, disk);
        json_array_foreach(field(info, "layers"), j, layer)
        {
            g_hash_table_add(view->parents, (gpointer)field_text(layer, "node-name"));
        }
    }
}

static void add_exported(View *view)
{
    size_t i;
    const json_t *export;
    json_array_foreach(view->exports, i, export)
    {
        const char *name = field_text(export, "name"), *node = field_text(export, "node-name");
        if (!g_hash_table_contains(view->infos, node) ||
            g_hash_table_contains(view->taken, field_text(export, "id")))
            continue; // it came after the nodes were asked for, or is a disk's
        json_t *disk = disk_new(view, *name ? name : field_text(export, "id"), node);
        json_object_set(disk, "clients", field(export, "clients"));
        json_object_set(disk, "in-flight", field(export, "in-flight"));
        json_object_set(disk, "uris", field(export, "uris"));
        add_limits(disk, export);
        json_array_append_new(view->disks, disk);
        g_hash_table_add(view->parents, (gpointer)node);
    }
}

// Nodes that nobody stands on, and that somebody has named.
static void add_unexported(View *view)
{
    size_t i;
    const json_t *info;
    json_array_foreach(view->nodes, i, info)
    {
        const char *node = field_text(info, "node-name");
        if (*node != '#' && !g_hash_table_contains(view->parents, node))
            json_array_append_new(view->disks, disk_new(view, node, node));
    }
}

// By filename: an array of the names of the disks that have it.
static GHashTable *owners_of_files(const View *view)
{
    GHashTable *owners =
        g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)json_decref);
    size_t i, j;
    const json_t *disk, *layer;
    json_array_foreach(view->disks, i, disk)
    {
        json_array_foreach(field(disk, "layers"), j, layer)
        {
            const char *file = field_text(layer, "filename");
            json_t *names = g_hash_table_lookup(owners, file);
            if (!names) {
                names = json_array();
                g_hash_table_insert(owners, (gpointer)file, names);
            }
            json_array_append(names, field(disk, "name"));
        }
    }
    return owners;
}

static void add_sharing(View *view)
{
    GHashTable *owners = owners_of_files(view);
    size_t i, j, k;
    json_t *disk, *layer, *name;
    json_array_foreach(view->disks, i, disk)
    {
        json_int_t allocated = 0, exclusive = 0;
        json_array_foreach(field(disk, "layers"), j, layer)
        {
            json_t *shared = field(layer, "shared");
            const json_t *names = g_hash_table_lookup(owners, field_text(layer, "filename"));
            json_array_foreach(names, k, name)
            {
                if (*field_text(layer, "filename") && !json_equal(name, field(disk, "name")))
                    json_array_append(shared, name);
            }
            json_int_t bytes = json_integer_value(field(layer, "allocated"));
            allocated += bytes;
            exclusive += json_array_size(shared) ? 0 : bytes;
        }
        json_object_set_new(disk, "allocated", json_integer(allocated));
        json_object_set_new(disk, "exclusive", json_integer(exclusive));
    }
    g_hash_table_unref(owners);
}

// -- loading --------------------------------------------------------------------------------------

static int ask(View *view, Ctl *ctl, GError **error)
{
    view->exports = ctl_run(ctl, "query-export-stats", NULL, error);
    if (view->exports)
        view->nodes = ctl_run_with(ctl, "query-named-block-nodes", error, "{s:b}", "flat", 1);
    if (view->nodes)
        view->graph = ctl_run(ctl, "x-debug-query-block-graph", NULL, error);
    if (view->graph && qmp_client_has(ctl->client, "query-disks"))
        view->remembered = ctl_run(ctl, "query-disks", NULL, NULL); // without --state: an error
    return view->graph ? 0 : -1;
}

static void view_make(View *view)
{
    size_t i;
    const json_t *info;
    view->infos = g_hash_table_new(g_str_hash, g_str_equal);
    view->names = g_hash_table_new(NULL, NULL);
    view->children = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    view->parents = g_hash_table_new(g_str_hash, g_str_equal);
    view->jobs =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)json_decref);
    view->taken = g_hash_table_new(g_str_hash, g_str_equal);
    view->disks = json_array();
    json_array_foreach(view->nodes, i, info)
    {
        g_hash_table_insert(view->infos, (gpointer)field_text(info, "node-name"), (gpointer)info);
    }
    read_graph(view);
    add_remembered(view);
    add_exported(view);
    add_unexported(view);
    add_sharing(view);
    g_hash_table_unref(view->infos);
    g_hash_table_unref(view->names);
    g_hash_table_unref(view->children);
    g_hash_table_unref(view->parents);
    g_hash_table_unref(view->jobs);
    g_hash_table_unref(view->taken);
}

static json_t *select_disk(const json_t *disks, const char *name, GError **error)
{
    size_t i;
    json_t *disk;
    json_array_foreach(disks, i, disk)
    {
        if (g_str_equal(field_text(disk, "name"), name) ||
            g_str_equal(field_text(disk, "node"), name))
            return json_pack("[O]", disk);
    }
    ctl_fail(error, CTL_NOT_FOUND, "there is no disk '%s': 'chainctl ls' lists those there are",
             name);
    return NULL;
}

json_t *disk_view_load(Ctl *ctl, const char *name, GError **error)
{
    View view = {0};
    if (ask(&view, ctl, error) == 0)
        view_make(&view);
    json_decref(view.exports);
    json_decref(view.nodes);
    json_decref(view.graph);
    json_decref(view.remembered);
    if (!view.disks || !name)
        return view.disks;
    json_t *one = select_disk(view.disks, name, error);
    json_decref(view.disks);
    return one;
}

json_t *disk_view_load_one(Ctl *ctl, const char *name, GError **error)
{
    json_auto_t *disks = disk_view_load(ctl, name, error);
    return disks ? json_incref(json_array_get(disks, 0)) : NULL;
}

char *disk_view_layer_title(const json_t *disk, size_t i)
{
    const json_t *layers = field(disk, "layers");
    const char *point = json_string_value(field(json_array_get(layers, i), "point"));
    if (i == 0)
        return g_strdup("head");
    if (point)
        return g_strconcat("@", point, NULL);
    return i + 1 == json_array_size(layers) ? g_strdup("base") : g_strdup_printf("-%zu", i);
}

const json_t *disk_view_point(const json_t *disk, const char *name)
{
    size_t i;
    const json_t *point;
    json_array_foreach(field(disk, "points"), i, point)
    {
        if (g_str_equal(field_text(point, "name"), name))
            return point;
    }
    return NULL;
}
