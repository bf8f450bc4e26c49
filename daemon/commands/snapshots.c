// SPDX-License-Identifier: LGPL-2.1-or-later
// External snapshots of one disk or, in a transaction, of several at one moment, whatever loops
// they live on. A stage of an action is a remote call to the disk's loop; control holds the graph
// lock from the first to the last. The write order is libchain/chain/external-snapshot.c's.
#include "snapshots.h"

#include <errno.h>
#include <string.h>

#include "chain-core/external-snapshot.h"
#include "chain-core/loop.h"
#include "chain-core/port.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/log.h"
#include "daemon/node-overlay.h"
#include "daemon/qmp/args.h"
#include "internal-snapshots.h"
#include "jobs/commit.h"
#include "new-image.h"

static const char NOT_TAKEN[] = "no snapshot was taken";

typedef struct Snapshot {
    Daemon *daemon;
    NamedNode *below, *overlay;
    bool is_opened;  // the overlay, by this action
    char *made_path; // its file, if this action made it
    Switch *graph;
    bool is_committed, is_taken_back;
    uint64_t size_below; // before
    // Of a call to the loop.
    int result;
    GError *error;
} Snapshot;

static Node *node_below(const Snapshot *s)
{
    return s->below->node;
}

// Calls `fn` on the disk's loop, with the Snapshot. The error, if any, is that of `fn`.
static int call(Fiber *self, Snapshot *s, FiberFn *fn, GError **error)
{
    s->result = 0;
    int r = remote_call_fiber_reserve(self, named_node_loop(s->below), fn, s);
    if (r < 0)
        return qmp_fail(error, "Node '%s': no memory for a fiber's stack", s->below->name);
    if (s->error)
        g_propagate_error(error, g_steal_pointer(&s->error));
    return s->result;
}

// -- which nodes ----------------------------------------------------------------------------------

static int check_below(Fiber *self, Nodes *nodes, NamedNode *below, GError **error)
{
    int r = named_node_check_no_overlay(below, error);
    if (r == 0)
        r = named_node_check_active(below, error);
    if (r == 0)
        r = internal_snapshots_check_none(below, error);
    if (r == 0)
        r = named_node_check_change(below, NODE_PERM_PLACE, "a snapshot", error);
    return r == 0 ? nodes_make_single(self, nodes, below, error) : r;
}

static bool may_have_backing(const Driver *driver)
{
    return driver_option_find(driver->options, "backing", strlen("backing"));
}

// By something outside of the graph, or an image whose file it is.
static bool is_read(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        bool passes_on =
            use->by && (g_str_equal(use->role, "backing") || driver_passes_on(use->by->driver));
        if (!passes_on || is_read(use->by))
            return true;
    }
    return false;
}

// In QEMU's order, which does not ask for other users in the end: they would see something else.
static int check_overlay(const NamedNode *overlay, const NamedNode *below, GError **error)
{
    if (named_node_check_active(overlay, error) < 0)
        return -EINVAL;
    if (is_read(overlay))
        return qmp_fail(error, "The overlay is already in use");
    if (overlay->node->ops->is_filter)
        return qmp_fail(error, "Filters cannot be used as overlays");
    if (named_node_child(overlay, "backing"))
        return qmp_fail(error, "The overlay already has a backing image");
    if (!may_have_backing(overlay->driver))
        return qmp_fail(error, "The overlay does not support backing images");
    int r = named_node_check_no_cycle(overlay, below, "backing", error);
    return r == 0 && overlay->users->len ? qmp_fail(error, "The overlay is already in use") : r;
}

// Nodes have no devices; both names stand in QEMU's sentence.
static NamedNode *find(const Nodes *nodes, const char *device, const char *name, GError **error)
{
    NamedNode *named = name ? nodes_find(nodes, name) : NULL;
    if (!named)
        qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", device ?: "", name ?: "");
    return named;
}

// -- stages ---------------------------------------------------------------------------------------

static void prepare_on_loop(Fiber *self, void *arg)
{
    Snapshot *s = arg;
    s->result = external_snapshot_prepare(self, node_below(s), s->overlay->node, s->daemon->memory,
                                          &s->graph, &s->error);
}

static void snapshot_free(Snapshot *s)
{
    g_free(s->made_path);
    g_free(s);
}

// As if there had never been one.
static void drop_overlay(Fiber *self, Snapshot *s)
{
    if (s->is_opened)
        nodes_close(self, s->daemon->nodes, s->overlay);
    if (s->made_path)
        new_image_remove(self, named_node_loop(s->below), s->made_path);
}

// Takes `s`, also on failure.
static int prepare_overlay(Fiber *self, Snapshot *s, void **ret_state, GError **error)
{
    int r = check_overlay(s->overlay, s->below, error);
    if (r == 0)
        r = named_node_check_no_image(s->below, "a snapshot", error);
    if (r == 0)
        r = nodes_move(self, s->daemon->nodes, s->overlay, named_node_loop(s->below), error);
    if (r == 0)
        r = call(self, s, prepare_on_loop, error);
    if (r < 0) {
        drop_overlay(self, s);
        snapshot_free(s);
        return r;
    }
    node_overlay_begin(s->overlay, s->below);
    *ret_state = s;
    return 0;
}

static Snapshot *snapshot_new(Daemon *daemon, NamedNode *below)
{
    Snapshot *s = g_new0(Snapshot, 1);
    s->daemon = daemon;
    s->below = below;
    return s;
}

static void drain_on_loop(Fiber *self, void *arg)
{
    Snapshot *s = arg;
    s->result = switch_drain(self, s->graph, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
}

static int drain(Fiber *self, void *state, GError **error)
{
    Snapshot *s = state;
    int r = call(self, s, drain_on_loop, error);
    if (r < 0 && !*error)
        drain_fail(s->below, NOT_TAKEN, error);
    return r;
}

static void commit_on_loop(Fiber *self, void *arg)
{
    Snapshot *s = arg;
    s->size_below = node_below(s)->size_bytes;
    switch_commit(s->graph);
}

static void commit(Fiber *self, void *state)
{
    Snapshot *s = state;
    call(self, s, commit_on_loop, NULL);
    s->is_committed = true;
    node_overlay_end(s->overlay, !s->is_opened);
}

static void resume_on_loop(Fiber *self, void *arg)
{
    switch_resume(((Snapshot *)arg)->graph);
}

static void resume(Fiber *self, void *state)
{
    call(self, state, resume_on_loop, NULL);
}

static void abort_on_loop(Fiber *self, void *arg)
{
    switch_end(self, ((Snapshot *)arg)->graph);
}

// What guests have written to the overlay since goes down to the old head, which is the head again
// then: an active commit.
static int commit_down(Fiber *self, Snapshot *s)
{
    CommitSpec spec = {
        .name = "a snapshot that is taken back",
        .top = s->overlay->node,
        .base = node_below(s),
        .on_error = JOB_ON_ERROR_REPORT,
    };
    int r = node_change_mode(self, spec.base, true, &s->error);
    if (r < 0)
        return r;
    r = commit_at_once(self, &spec, &s->error);
    if (r < 0)
        node_change_mode(self, spec.base, false, NULL);
    return r;
}

static int move_back(Fiber *self, const Snapshot *s)
{
    Switch *graph = switch_new(REQUESTS_ALL);
    switch_move_users(graph, s->overlay->node, node_below(s));
    int r = switch_drain(self, graph, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
    if (r == 0)
        switch_commit(graph);
    switch_end(self, graph);
    return r;
}

// An overlay that stays is as empty as it was: over what is written from now on it would show what
// is old.
static int empty_overlay(Fiber *self, Node *overlay)
{
    int r = node_uncover(self, overlay, guest_off(0), overlay->size_bytes);
    return r == 0 ? node_flush(self, overlay) : r;
}

static void take_back_on_loop(Fiber *self, void *arg)
{
    Snapshot *s = arg;
    Node *below = node_below(s), *overlay = s->overlay->node;
    switch_end(self, g_steal_pointer(&s->graph));
    s->result = overlay->read_only ? move_back(self, s) : commit_down(self, s);
    if (s->result < 0)
        return;
    s->is_taken_back = true;
    node_set_backing(self, overlay, NULL);
    if (below->size_bytes > s->size_below)
        node_resize(self, below, s->size_below, NULL);
    if (!s->is_opened && !overlay->read_only)
        s->result = empty_overlay(self, overlay);
}

static void take_back(Fiber *self, Snapshot *s)
{
    g_autoptr(GError) error = NULL;
    int r = call(self, s, take_back_on_loop, &error);
    if (!s->is_taken_back)
        log_line(
            LOG_ERROR,
            "a transaction failed, but its snapshot of '%s' cannot be taken back: %s; clients go "
            "on with '%s', and what lies below it is no state of the disk by itself",
            s->below->name, error ? error->message : g_strerror(-r), s->overlay->name);
    else if (r < 0)
        log_line(LOG_ERROR,
                 "a transaction failed, and '%s', which was to become an overlay, holds what was "
                 "written meanwhile: %s; do not put it over anything",
                 s->overlay->name, error ? error->message : g_strerror(-r));
    if (s->is_taken_back)
        node_overlay_undo(s->overlay);
    nodes_refresh(self, s->below);
    nodes_refresh(self, s->overlay);
    if (s->is_taken_back)
        drop_overlay(self, s);
}

static void undo(Fiber *self, void *state)
{
    Snapshot *s = state;
    if (s->is_committed) {
        take_back(self, s);
        return;
    }
    call(self, s, abort_on_loop, NULL);
    s->graph = NULL;
    node_overlay_abort(s->overlay);
    drop_overlay(self, s);
}

static void finish_on_loop(Fiber *self, void *arg)
{
    Snapshot *s = arg;
    Node *old = node_ref(node_below(s));
    switch_end(self, s->graph);
    s->result = external_snapshot_finish(self, old, &s->error);
    node_unref_close(self, old);
}

// What guests wrote before is made durable here, long after they go on.
static void finish(Fiber *self, Snapshot *s)
{
    g_autoptr(GError) error = NULL;
    if (call(self, s, finish_on_loop, &error) < 0)
        log_line(LOG_ERROR, "after the snapshot of '%s': %s", s->below->name, error->message);
    nodes_refresh(self, s->below);
    nodes_refresh(self, s->overlay);
}

static void clean(Fiber *self, void *state)
{
    Snapshot *s = state;
    if (s->graph)
        finish(self, s);
    snapshot_free(s);
}

// -- blockdev-snapshot ----------------------------------------------------------------------------

static const QmpType snapshot_args = {
    .name = "BlockdevSnapshot",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node", &qmp_str, .doc = "the node that gets an overlay"},
                                   {"overlay", &qmp_str,
                                    .doc = "the node that lies over it from then on: without a "
                                           "backing node, and used by nobody"},
                                   {0}},
};

static int prepare_snapshot(Fiber *self, QmpCall *qmp, const json_t *data, void **ret_state,
                            GError **error)
{
    Nodes *nodes = qmp->daemon->nodes;
    const char *node = qmp_args_str(data, "node"), *overlay = qmp_args_str(data, "overlay");
    NamedNode *below = find(nodes, node, node, error);
    if (!below)
        return -EINVAL;
    int r = check_below(self, nodes, below, error);
    NamedNode *above = r == 0 ? find(nodes, overlay, overlay, error) : NULL;
    if (!above)
        return -EINVAL;
    Snapshot *s = snapshot_new(qmp->daemon, below);
    s->overlay = above;
    return prepare_overlay(self, s, ret_state, error);
}

// -- blockdev-snapshot-sync -----------------------------------------------------------------------

static const QmpType snapshot_sync_args = {
    .name = "BlockdevSnapshotSync",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"device", &qmp_str, true, "not used: nodes have no devices"},
            {"node-name", &qmp_str, true, "the node that gets an overlay"},
            {"snapshot-file", &qmp_str, .doc = "the overlay's file"},
            {"snapshot-node-name", &qmp_str, true, "the overlay's node"},
            {"format", &qmp_str, true, "the overlay's format; qcow2, unless it is given"},
            {"mode", &qmp_new_image_mode, true,
             "whether the file exists already, or is made (absolute-paths, unless it is given)"},
            {0}},
};

// Opened as what lies below it was: past the page cache or not, read-only or not.
static json_t *options_of(const json_t *data, const NewImage *new, const NamedNode *below)
{
    const json_t *values = below->config ? below->config->values : NULL;
    json_t *cache = json_object_get(values, "cache");
    const char *name = qmp_args_str(data, "snapshot-node-name");
    json_t *options = json_pack("{s:s, s:b, s:n, s:{s:s, s:s}}", "driver", new->format, "read-only",
                                below->facts.read_only, "backing", "file", "driver", "file",
                                "filename", new->path);
    if (cache)
        json_object_set(options, "cache", cache);
    if (name)
        json_object_set_new(options, "node-name", json_string(name));
    return options;
}

static int open_file(Fiber *self, Snapshot *s, const json_t *data, const NewImage *new,
                     GError **error)
{
    NodeConfig *config = NULL;
    const Driver *driver = driver_find(new->format);
    if (!driver)
        return qmp_fail(error, "Unknown driver '%s'", new->format);
    if (!may_have_backing(driver))
        return qmp_fail(error, "The overlay does not support backing images");
    json_t *options = options_of(data, new, s->below);
    int r = node_config_new(options, true, &config, error);
    json_decref(options);
    if (r == 0)
        r = nodes_add(self, s->daemon->nodes, config, new->path, &s->overlay, error);
    s->is_opened = r == 0;
    return r;
}

static int check_sync(const Nodes *nodes, const json_t *data, GError **error)
{
    const char *name = qmp_args_str(data, "snapshot-node-name");
    if (qmp_args_have(data, "node-name") && !name)
        return qmp_fail(error, "New overlay node-name missing");
    if (name && nodes_find(nodes, name))
        return qmp_fail(error, "New overlay node-name already in use");
    return 0;
}

static int prepare_snapshot_sync(Fiber *self, QmpCall *qmp, const json_t *data, void **ret_state,
                                 GError **error)
{
    Nodes *nodes = qmp->daemon->nodes;
    NamedNode *below =
        find(nodes, qmp_args_str(data, "device"), qmp_args_str(data, "node-name"), error);
    if (!below)
        return -EINVAL;
    int r = check_below(self, nodes, below, error);
    if (r == 0)
        r = check_sync(nodes, data, error);
    if (r < 0)
        return r;
    NewImage new = {
        .path = qmp_args_str(data, "snapshot-file"),
        .format = qmp_args_str(data, "format") ?: "qcow2",
        .size_bytes = below->facts.size_bytes,
        .below = named_node_image(below),
    };
    bool is_new = !qmp_args_mode_is_existing(data);
    r = is_new ? new_image_create(self, named_node_loop(below), &new, error) : 0;
    if (r < 0)
        return r;
    Snapshot *s = snapshot_new(qmp->daemon, below);
    s->made_path = is_new ? g_strdup(new.path) : NULL;
    r = open_file(self, s, data, &new, error);
    if (r < 0) {
        drop_overlay(self, s);
        snapshot_free(s);
        return r;
    }
    return prepare_overlay(self, s, ret_state, error);
}

// -- commands -------------------------------------------------------------------------------------

static const char *node_of_snapshot(const json_t *data)
{
    return qmp_args_str(data, "node");
}

static const char *node_of_snapshot_sync(const json_t *data)
{
    return qmp_args_str(data, "node-name");
}

static const QmpAction actions[] = {
    {"blockdev-snapshot", &snapshot_args, "As the command.", prepare_snapshot, drain, commit, undo,
     resume, clean, .drains = node_of_snapshot},
    {"blockdev-snapshot-sync", &snapshot_sync_args, "As the command.", prepare_snapshot_sync, drain,
     commit, undo, resume, clean, .drains = node_of_snapshot_sync},
    {0},
};

// As a transaction of this one does.
static int run_alone(Fiber *self, QmpCall *qmp, const QmpAction *action, const json_t *args,
                     GError **error)
{
    FiberMutex *lock = nodes_graph_lock(qmp->daemon->nodes);
    void *state;
    int r = drain_rehearse(self, qmp->daemon->nodes, action->drains(args), NOT_TAKEN, error);
    if (r < 0)
        return r;
    fiber_mutex_lock(self, lock);
    r = action->prepare(self, qmp, args, &state, error);
    if (r == 0) {
        r = drain(self, state, error);
        if (r == 0) {
            commit(self, state);
            resume(self, state);
        } else {
            undo(self, state);
        }
        clean(self, state);
    }
    fiber_mutex_unlock(self, lock);
    return r;
}

static int blockdev_snapshot(Fiber *self, QmpCall *qmp, const json_t *args, json_t **ret_reply,
                             GError **error)
{
    return run_alone(self, qmp, &actions[0], args, error);
}

static int blockdev_snapshot_sync(Fiber *self, QmpCall *qmp, const json_t *args, json_t **ret_reply,
                                  GError **error)
{
    return run_alone(self, qmp, &actions[1], args, error);
}

static const QmpCommand commands[] = {
    {"blockdev-snapshot", &snapshot_args, NULL,
     "Puts a node over another: whoever used that, clients of exports too, uses the new one from "
     "then on, and what lies below keeps what it showed at that moment.",
     blockdev_snapshot},
    {"blockdev-snapshot-sync", &snapshot_sync_args, NULL,
     "The same with a file that is opened, and made if need be, for it.", blockdev_snapshot_sync},
    {0},
};

const QmpFamily qmp_snapshots_family = {
    .title = "External snapshots",
    .commands = commands,
    .actions = actions,
};
