// SPDX-License-Identifier: LGPL-2.1-or-later
// From FILE arguments to nodes and exports, and back at the end. Control loop.
#include "disks.h"

#include <errno.h>
#include <string.h>

#include "chain-core/node-config.h"
#include "log.h"
#include "message-ids.h"
#include "node-names.h"

// -- opening --------------------------------------------------------------------------------------

// What clients see beside the name: "web: 20 GiB qcow2, 4 layers, head". Owned.
static char *describe(const DiskOption *disk, const Options *options, const NamedNode *named)
{
    if (options->description)
        return g_strdup(options->description);
    g_autofree char *summary = named_node_summary(named);
    char *text =
        *disk->name ? g_strdup_printf("%s: %s", disk->name, summary) : g_steal_pointer(&summary);
    if (strlen(text) <= OPTIONS_MAX_STRING && g_utf8_validate(text, -1, NULL))
        return text;
    g_free(text); // a snapshot's name may be anything
    return g_strdup("");
}

static void set_flag(NodeConfig *config, const char *name, bool is_set)
{
    if (is_set)
        json_object_set_new(config->values, name, json_true());
}

static NodeConfig *disk_config(const DiskOption *disk, const Options *options, GError **error)
{
    NodeConfig *config = NULL;
    const char *format = disk->format ? disk->format : options->format;
    if (node_config_new_name(disk->file, format, &config, error) < 0)
        return NULL;
    set_flag(config, "read-only", options->read_only);
    set_flag(config, "force-share", options->force_share);
    if (options->direct)
        json_object_set_new(config->values, "cache", json_pack("{s:b}", "direct", 1));
    if (options->snapshot)
        json_object_set_new(config->values, "snapshot", json_string_nocheck(options->snapshot));
    if (node_names_is_allowed(disk->name))
        json_object_set_new(config->values, "node-name", json_string(disk->name));
    return config;
}

static int export_disk(Fiber *self, const DiskOption *disk, const Options *options,
                       Exports *exports, NamedNode *named, GError **error)
{
    g_autofree char *description = describe(disk, options, named);
    g_autofree char *made_up = g_strdup_printf("disk%u", exports_all(exports)->len);
    bool is_id = node_names_is_allowed(disk->name) && !exports_find(exports, disk->name);
    ExportSpec spec = {
        .id = is_id ? disk->name : made_up,
        .name = disk->name,
        .description = description,
        .is_writable = !named->facts.read_only,
        .has_allocation_depth = true,
    };
    Export *export;
    return exports_add(self, exports, named, &spec, &export, error);
}

static int open_disk(Fiber *self, const DiskOption *disk, const Options *options, Nodes *nodes,
                     Exports *exports, GError **error)
{
    NodeConfig *config = disk_config(disk, options, error);
    if (!config)
        return -EINVAL;
    NamedNode *named;
    const char *label = *disk->name ? disk->name : disk->file;
    int r = nodes_add(self, nodes, config, label, &named, error);
    return r < 0 ? r : export_disk(self, disk, options, exports, named, error);
}

int disks_open(Fiber *self, const Options *options, Nodes *nodes, Exports *exports, GError **error)
{
    int r = 0;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    for (guint i = 0; r == 0 && i < options->disks->len; i++)
        r = open_disk(self, options->disks->pdata[i], options, nodes, exports, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    if (r < 0)
        disks_close_all(self, nodes, exports, UINT64_MAX);
    return r;
}

// -- the end --------------------------------------------------------------------------------------

typedef struct Ending Ending;

// Of one export, or of a node that none uses.
typedef struct OneEnd {
    Ending *ending;
    Export *export;     // NULL: `named`
    NamedNode *named;   // NULL: `export`
    NodeOrigin *origin; // a reference
    char *file;         // for messages
    bool is_over;
    int result;
} OneEnd;

struct Ending {
    LoopTimer timer; // first
    Nodes *nodes;
    Exports *exports;
    GPtrArray *all; // OneEnd
    FiberWaitGroup left;
};

// And goes on without other machines.
static void say_who_is_late(LoopTimer *timer)
{
    const Ending *ending = (const Ending *)timer;
    for (guint i = 0; i < ending->all->len; i++) {
        const OneEnd *one = ending->all->pdata[i];
        if (!one->is_over)
            log_line(LOG_WARNING,
                     "'%s' is not closed yet: its storage or a client does not answer; waiting "
                     "(a second signal leaves at once)",
                     one->file);
    }
    nodes_give_up(ending->nodes);
}

static void end_one(Fiber *self, void *arg)
{
    OneEnd *one = arg;
    Ending *ending = one->ending;
    one->result = one->export ? exports_remove(self, ending->exports, one->export)
                              : nodes_close(self, ending->nodes, one->named);
    one->is_over = true;
    fiber_wait_group_done(&ending->left);
}

static void begin_one(Fiber *self, Ending *ending, Export *export, NamedNode *named)
{
    const NamedNode *top = export ? export_node(export) : named;
    const char *file = named_node_file_name(top);
    OneEnd *one = g_new0(OneEnd, 1);
    *one = (OneEnd){
        .ending = ending,
        .export = export,
        .named = named,
        .origin = node_origin_ref(top->origin),
        .file = g_strdup(*file ? file : top->origin->label),
    };
    g_ptr_array_add(ending->all, one);
    fiber_wait_group_add(&ending->left, 1);
    if (fiber_spawn_reserve(fiber_loop(self), "end of a disk", end_one, one) == 0)
        return;
    one->result = -ENOMEM;
    one->is_over = true;
    fiber_wait_group_done(&ending->left);
}

static void begin_all(Fiber *self, Ending *ending)
{
    g_autoptr(GPtrArray) nodes =
        g_ptr_array_copy((GPtrArray *)nodes_all(ending->nodes), NULL, NULL);
    g_autoptr(GPtrArray) exports =
        g_ptr_array_copy((GPtrArray *)exports_all(ending->exports), NULL, NULL);
    g_autoptr(GPtrArray) unused = g_ptr_array_new();
    for (guint i = 0; i < nodes->len; i++) {
        NamedNode *named = nodes->pdata[i];
        if (named->users->len == 0)
            g_ptr_array_add(unused, named);
        else
            nodes_close(self, ending->nodes, named); // does not suspend, as it is used
    }
    for (guint i = 0; i < exports->len; i++) {
        Export *export = exports->pdata[i];
        if (!export->is_shutting_down)
            begin_one(self, ending, export, NULL);
    }
    for (guint i = 0; i < unused->len; i++)
        begin_one(self, ending, NULL, unused->pdata[i]);
}

static int log_end(const OneEnd *one)
{
    if (one->result == 0)
        return 0;
    if (one->result == -ENOMEM) {
        log_line(LOG_ERROR, "'%s' could not be closed: no memory for a fiber's stack", one->file);
        return -ENOMEM;
    }
    LogAbout about = {MESSAGE_ID_NOT_FLUSHED, .disk = one->origin->label, .file = one->file};
    log_about(LOG_ERROR, &about,
              "'%s' could not be flushed at the end: %s; what was written since the last flush may "
              "be lost",
              one->file, one->origin->is_corrupt ? "it is damaged" : g_strerror(-one->result));
    return -EIO;
}

int disks_close_all(Fiber *self, Nodes *nodes, Exports *exports, uint64_t timeout_ns)
{
    Ending ending = {
        .timer.fn = say_who_is_late,
        .nodes = nodes,
        .exports = exports,
        .all = g_ptr_array_new(),
    };
    bool has_timer = timeout_ns != UINT64_MAX;
    if (has_timer)
        loop_timer_start(fiber_loop(self), &ending.timer, timeout_ns);
    begin_all(self, &ending);
    fiber_wait_group_wait(self, &ending.left);
    exports_wait_removed(self, exports);
    if (has_timer)
        loop_timer_stop(fiber_loop(self), &ending.timer);
    int result = 0;
    for (guint i = 0; i < ending.all->len; i++) {
        OneEnd *one = ending.all->pdata[i];
        int r = log_end(one);
        if (r == -ENOMEM || result == 0)
            result = r;
        node_origin_unref(one->origin);
        g_free(one->file);
        g_free(one);
    }
    g_ptr_array_unref(ending.all);
    return result;
}
