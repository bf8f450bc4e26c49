// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of exports. An export is in the table from before it is made until it is gone from its
// loop. Control loop.
#include "exports.h"

#include <errno.h>
#include <string.h>

#include "bitmaps.h"
#include "chain-core/layer.h"
#include "chain-core/remote-call.h"
#include "chain-core/whole-sectors.h"
#include "daemon/qmp/error.h"
#include "node-names.h"
#include "options.h"

struct Exports {
    Nodes *nodes;
    NbdServer *server;
    ExportRemovedFn *removed;
    void *removed_arg;
    void (*changed)(void *arg); // NULL: nobody watches
    void *changed_arg;
    ExportGroupFn *group_of; // NULL: there is no configuration
    void *group_arg;
    GPtrArray *all; // Export
    FiberWaitGroup additions, removals, limitings;
};

Exports *exports_new(Nodes *nodes, NbdServer *server, ExportRemovedFn *removed, void *removed_arg)
{
    Exports *exports = g_new0(Exports, 1);
    exports->nodes = nodes;
    exports->server = server;
    exports->removed = removed;
    exports->removed_arg = removed_arg;
    exports->all = g_ptr_array_new();
    return exports;
}

void exports_watch(Exports *exports, void (*changed)(void *arg), void *arg)
{
    exports->changed = changed;
    exports->changed_arg = arg;
}

static void tell_changed(const Exports *exports)
{
    if (exports->changed)
        exports->changed(exports->changed_arg);
}

void exports_free(Exports *exports)
{
    if (!exports)
        return;
    g_assert(exports->all->len == 0);
    g_ptr_array_unref(exports->all);
    g_free(exports);
}

const GPtrArray *exports_all(const Exports *exports)
{
    return exports->all;
}

Export *exports_find(const Exports *exports, const char *id)
{
    for (guint i = 0; i < exports->all->len; i++) {
        Export *export = exports->all->pdata[i];
        if (export->nbds && g_str_equal(export->id, id))
            return export;
    }
    return NULL;
}

bool exports_get_stats(const Export *export, NbdsExportStats *ret_stats)
{
    if (!export->nbds || export->is_shutting_down)
        return false;
    nbds_export_get_stats(export->nbds, ret_stats);
    return true;
}

bool exports_have_clients(Fiber *self, const Exports *exports, const char *id)
{
    enum { N_LOOKS = 10 };
    static const uint64_t LOOK_NS = 2000000;
    for (unsigned i = 0; i < N_LOOKS; i++) {
        const Export *export = exports_find(exports, id);
        NbdsExportStats stats;
        if (!export || !exports_get_stats(export, &stats) || !stats.n_clients)
            return false;
        fiber_sleep(self, LOOK_NS);
    }
    return true;
}

static void export_free(Exports *exports, Export *export)
{
    throttle_groups_end_use(nodes_throttle_groups(exports->nodes), export->throttle);
    g_free(export->id);
    g_free(export->name);
    g_free(export);
}

// -- limits ---------------------------------------------------------------------------------------

static const char *configured_group(const Exports *exports, const char *name)
{
    return exports->group_of ? exports->group_of(exports->group_arg, name) : NULL;
}

// Of the export that clients call `name`. A new user, or NULL.
static ThrottleGroup *use_group(const Exports *exports, const char *name,
                                const ExportThrottle *throttle)
{
    ThrottleGroups *groups = nodes_throttle_groups(exports->nodes);
    ExportThrottle configured = {.group = configured_group(exports, name)};
    throttle_limits_init(&configured.limits);
    if (!throttle && configured.group)
        throttle = &configured;
    return throttle ? throttle_groups_use(groups, throttle->group, &throttle->limits) : NULL;
}

typedef struct Limiting {
    NbdsExport *nbds;
    ThrottleGroup *group;
} Limiting;

static void limit_on_loop(void *arg)
{
    const Limiting *l = arg;
    nbds_export_set_throttle(l->nbds, l->group);
}

// On the control loop nobody comes in between up to the remote call; exports_remove() waits for
// that. With the lock of moves. Where the group stays, what waits goes on waiting.
static void set_throttle(Fiber *self, Exports *exports, Export *export,
                         const ExportThrottle *throttle)
{
    ThrottleGroup *old = export->throttle, *group = use_group(exports, export->name, throttle);
    export->has_own_throttle = throttle;
    export->throttle = group;
    if (group != old) {
        Limiting l = {export->nbds, group ? throttle_group_ref(group) : NULL};
        fiber_wait_group_add(&exports->limitings, 1);
        remote_call_plain(self, nbds_export_loop(export->nbds), limit_on_loop, &l);
        fiber_wait_group_done(&exports->limitings);
    }
    throttle_groups_end_use(nodes_throttle_groups(exports->nodes), old);
}

bool exports_set_throttle(Fiber *self, Exports *exports, const char *id,
                          const ExportThrottle *throttle)
{
    FiberRwLock *move_lock = nodes_move_lock(exports->nodes);
    fiber_rw_lock_read(self, move_lock);
    Export *export = exports_find(exports, id);
    bool is_there = export && !export->is_shutting_down;
    if (is_there)
        set_throttle(self, exports, export, throttle);
    fiber_rw_unlock_read(self, move_lock);
    return is_there;
}

void exports_set_groups(Exports *exports, ExportGroupFn *group_of, void *arg)
{
    exports->group_of = group_of;
    exports->group_arg = arg;
}

// Exports come and go meanwhile.
void exports_refresh_groups(Fiber *self, Exports *exports)
{
    g_autoptr(GPtrArray) ids = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < exports->all->len; i++)
        g_ptr_array_add(ids, g_strdup(((const Export *)exports->all->pdata[i])->id));
    for (guint i = 0; i < ids->len; i++) {
        const Export *export = exports_find(exports, ids->pdata[i]);
        if (export && !export->has_own_throttle)
            exports_set_throttle(self, exports, ids->pdata[i], NULL);
    }
}

// -- adding ---------------------------------------------------------------------------------------

typedef struct Adding {
    NbdsServer *server;
    Node *node;
    const ExportSpec *spec;
    ThrottleGroup *throttle;
    GPtrArray *bitmaps;
    NbdsExport *nbds;
    int result;
    GError *error;
} Adding;

// Some clients can address sectors only (chaind(8), "SIZES"). A new reference.
static Node *node_to_export(Fiber *self, Node *node)
{
    return node->size_bytes % SECTOR_BYTES ? whole_sectors_new(self, node) : node_ref(node);
}

static void add_on_loop(Fiber *self, void *arg)
{
    Adding *a = arg;
    const ExportSpec *spec = a->spec;
    a->result = layer_lock_node(self, a->node, spec->is_writable, &a->error);
    if (a->result < 0)
        return;
    Node *node = node_to_export(self, a->node);
    NbdsExportConfig config = {
        .name = spec->name,
        .description = spec->description,
        .node = node,
        .read_only = !spec->is_writable,
        .becomes_writable = spec->allows_inactive,
        .writethrough = spec->is_writethrough,
        .allocation_depth = spec->has_allocation_depth,
        .bitmaps = a->bitmaps,
        .padding_bytes = node->size_bytes - a->node->size_bytes,
    };
    a->result = nbds_server_add_export(a->server, &config, &a->nbds, &a->error);
    if (a->result == 0 && a->throttle)
        nbds_export_set_throttle(a->nbds, throttle_group_ref(a->throttle));
    node_unref_close(self, node);
}

static bool has_name(const Exports *exports, const char *name)
{
    for (guint i = 0; i < exports->all->len; i++) {
        const Export *export = exports->all->pdata[i];
        if (g_str_equal(export->name, name))
            return true;
    }
    return false;
}

static char *user_text(const char *id)
{
    return g_strdup_printf("block export '%s'", id);
}

static int check(const Exports *exports, const NamedNode *named, const ExportSpec *spec,
                 GError **error)
{
    if (!nbd_server_get(exports->server) || nbd_server_is_stopping(exports->server))
        return qmp_fail(error, "NBD server not running");
    if (strlen(spec->name) > OPTIONS_MAX_STRING)
        return qmp_fail(error, "export name '%s' too long", spec->name);
    if (spec->description && strlen(spec->description) > OPTIONS_MAX_STRING)
        return qmp_fail(error, "description '%s' too long", spec->description);
    if (has_name(exports, spec->name))
        return qmp_fail(error, "NBD server already has export named '%s'", spec->name);
    g_autofree char *user = user_text(spec->id);
    NodeUse use = {
        .role = "root",
        .writes = spec->is_writable,
        .user = user,
        .allows_inactive = spec->allows_inactive,
    };
    int r = named_node_check_mode(named, node_use_perms(&use), error);
    return r < 0 ? r : named_node_check_use(named, &use, error);
}

static int add(Fiber *self, Exports *exports, Export *export, const ExportSpec *spec,
               GError **error)
{
    NamedNode *named = export_node(export);
    Adding adding = {
        .server = nbd_server_get(exports->server),
        .node = named->node,
        .spec = spec,
        .throttle = export->throttle,
    };
    int r = bitmaps_for_export(exports->nodes, named, spec->bitmaps, spec->is_writable,
                               &adding.bitmaps, error);
    if (r < 0)
        return r;
    r = remote_call_fiber_reserve(self, named_node_loop(named), add_on_loop, &adding);
    g_ptr_array_unref(adding.bitmaps);
    if (r < 0)
        return qmp_fail(error, "'%s' cannot be exported: no memory for a fiber's stack",
                        named->name);
    if (adding.result < 0)
        g_propagate_error(error, adding.error);
    export->nbds = adding.nbds;
    return adding.result;
}

static int bring_to_loop(Fiber *self, Exports *exports, NamedNode *named, const ExportSpec *spec,
                         GError **error)
{
    g_autoptr(GError) ignored = NULL;
    if (!spec->loop)
        return 0;
    int r = nodes_move(self, exports->nodes, named, spec->loop, spec->is_fixed ? error : &ignored);
    return spec->is_fixed ? r : 0;
}

int exports_add(Fiber *self, Exports *exports, NamedNode *named, const ExportSpec *spec,
                Export **ret_export, GError **error)
{
    int r = check(exports, named, spec, error);
    if (r == 0)
        r = bring_to_loop(self, exports, named, spec, error);
    if (r < 0)
        return r;
    g_autofree char *user = user_text(spec->id);
    Export *export = g_new0(Export, 1);
    *export = (Export){
        .id = g_strdup(spec->id),
        .name = g_strdup(spec->name),
        .use = nodes_use(named, user, spec->is_writable),
        .server = exports->server,
        .throttle = use_group(exports, spec->name, spec->throttle),
        .has_own_throttle = spec->throttle,
    };
    export->use->is_fixed = spec->is_fixed;
    export->use->allows_inactive = spec->allows_inactive || !spec->is_writable;
    g_ptr_array_add(exports->all, export);
    fiber_wait_group_add(&exports->additions, 1);
    r = add(self, exports, export, spec, error);
    fiber_wait_group_done(&exports->additions);
    if (r == 0) {
        *ret_export = export;
        tell_changed(exports);
        return 0;
    }
    g_ptr_array_remove(exports->all, export);
    nodes_end_use(self, exports->nodes, export->use);
    export_free(exports, export);
    return r;
}

// -- removing -------------------------------------------------------------------------------------

static void remove_on_loop(Fiber *self, void *nbds)
{
    nbds_server_remove_export(self, nbds);
}

// Requests first: what they wrote is flushed with the node.
int exports_remove(Fiber *self, Exports *exports, Export *export)
{
    FiberRwLock *move_lock = nodes_move_lock(exports->nodes);
    export->is_shutting_down = true;
    fiber_wait_group_add(&exports->removals, 1);
    fiber_wait_group_wait(self, &exports->limitings);
    fiber_rw_lock_read(self, move_lock);
    // From here on its node stays on its loop. The lock would keep all others there as well,
    // however long requests to this one's storage take.
    bool was_fixed = export->use->is_fixed;
    export->use->is_fixed = true;
    Loop *loop = nbds_export_loop(export->nbds);
    fiber_rw_unlock_read(self, move_lock);
    int r = remote_call_fiber_reserve(self, loop, remove_on_loop, export->nbds);
    if (r == 0) {
        fiber_rw_lock_read(self, move_lock);
        g_ptr_array_remove(exports->all, export);
        r = nodes_end_use(self, exports->nodes, export->use);
        if (exports->removed)
            exports->removed(exports->removed_arg, export->id);
        tell_changed(exports);
        export_free(exports, export);
        fiber_rw_unlock_read(self, move_lock);
    } else {
        export->use->is_fixed = was_fixed;
    }
    fiber_wait_group_done(&exports->removals);
    return r;
}

void exports_wait_added(Fiber *self, Exports *exports)
{
    fiber_wait_group_wait(self, &exports->additions);
}

void exports_wait_removed(Fiber *self, Exports *exports)
{
    fiber_wait_group_wait(self, &exports->removals);
}
