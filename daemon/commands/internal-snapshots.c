// SPDX-License-Identifier: LGPL-2.1-or-later
// Making and deleting internal snapshots. The work is done on the node's loop, beside its guest,
// and may take seconds; meanwhile the node is used (so it stays) and its image held on its loop,
// and other commands go on. Control loop.
//
// In a transaction the moment is the commit, which is memory only. Counting what each snapshot
// references comes after it, so an action may still fail then (finish): all that the transaction
// did is undone.
#include "internal-snapshots.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/qmp/args.h"
#include "node-info.h"

// -- nodes ----------------------------------------------------------------------------------------

// In QEMU's words.
static NamedNode *find_device(const Daemon *daemon, const char *device, GError **error)
{
    NamedNode *named = nodes_find(daemon->nodes, device);
    if (!named)
        qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", device, device);
    return named && named_node_check_root(named, error) == 0 ? named : NULL;
}

// A node that is worked on: it stays, and until let_go() on its loop.
typedef struct Held {
    NamedNode *named;
    NodeUse *use;
    bool is_on_loop;
} Held;

static void hold_on_loop(void *arg)
{
    qcow2_snapshot_hold(arg);
}

static void release_on_loop(void *arg)
{
    qcow2_snapshot_release(arg);
}

// How its use is called, of work that nobody waits for who has the graph lock.
static const char WITHOUT_LOCK[] = "work at an internal snapshot";

int internal_snapshots_check_none(const NamedNode *named, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (g_str_equal(use->user, WITHOUT_LOCK))
            return qmp_fail(error,
                            "Node '%s' cannot be changed now: an internal snapshot of it is being "
                            "made or deleted; wait for the end of that",
                            named->name);
    }
    return 0;
}

// With the graph lock: nothing moves meanwhile.
static void hold(Fiber *self, NamedNode *named, const char *user, Held *ret_held)
{
    *ret_held = (Held){named, nodes_use(named, user, false), true};
    ret_held->use->role = "snapshot"; // of this image, whatever lies over it by then
    remote_call_plain(self, named_node_loop(named), hold_on_loop, named->node);
}

// As soon as the work is done: what makes the image read-only waits for it, perhaps another action
// of the same transaction.
static void let_go(Fiber *self, Held *held)
{
    if (held->is_on_loop)
        remote_call_plain(self, named_node_loop(held->named), release_on_loop, held->named->node);
    held->is_on_loop = false;
}

// With the graph lock. What is known of the image has changed.
static void release(Fiber *self, Daemon *daemon, Held *held)
{
    let_go(self, held);
    nodes_refresh(self, held->named);
    nodes_end_use(self, daemon->nodes, held->use);
}

// -- making ---------------------------------------------------------------------------------------

static const QmpType snapshot_args = {
    .name = "BlockdevSnapshotInternal",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the node, of a qcow2 image"},
                                   {"name", &qmp_str, .doc = "what to call the snapshot"},
                                   {0}},
};

typedef struct Making Making;
struct Making {
    Daemon *daemon;
    Held held;
    char *device, *name;
    // Of the same transaction and node: it makes this one, too. NULL: none is before it.
    Making *first;
    Qcow2NewSnapshot *taken; // of the first of a node
    bool is_drained, is_made;
    int result;
    GError *error;
};

static void prepare_on_loop(Fiber *self, void *arg)
{
    Making *m = arg;
    m->result = chain_check_unchanged(self, m->held.named->node, &m->error);
    if (m->result == 0 && m->first)
        m->result = qcow2_snapshot_prepare_another(self, m->first->taken, m->name, &m->error);
    else if (m->result == 0)
        m->result =
            qcow2_snapshot_prepare(self, m->held.named->node, m->name, &m->taken, &m->error);
}

static void drain_on_loop(Fiber *self, void *arg)
{
    Making *m = arg;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS;
    m->result = node_drain_begin_until(self, m->held.named->node, REQUESTS_THAT_WRITE, deadline_ns);
}

static void take_on_loop(void *arg)
{
    qcow2_snapshot_take(((Making *)arg)->taken);
}

static void resume_on_loop(void *arg)
{
    node_drain_end(((Making *)arg)->held.named->node, REQUESTS_THAT_WRITE);
}

static void finish_on_loop(Fiber *self, void *arg)
{
    Making *m = arg;
    m->result = qcow2_snapshot_finish(self, g_steal_pointer(&m->taken), NULL, &m->error);
}

static bool is_made(const Making *m)
{
    return m->first ? m->first->is_made : m->is_made;
}

static void undo_on_loop(Fiber *self, void *arg)
{
    Making *m = arg;
    if (is_made(m))
        qcow2_snapshot_delete(self, m->held.named->node, NULL, m->name, NULL, NULL);
    else
        qcow2_snapshot_abort(self, g_steal_pointer(&m->taken));
}

static int call(Fiber *self, Making *m, FiberFn *fn, GError **error)
{
    m->result = 0;
    int r = remote_call_fiber_reserve(self, named_node_loop(m->held.named), fn, m);
    if (r < 0)
        return qmp_fail(error, "No memory for a fiber's stack");
    if (m->result == 0)
        return 0;
    r = m->result;
    qmp_fail(error, "Failed to create snapshot '%s' on device '%s': %s", m->name, m->device,
             m->error ? m->error->message : g_strerror(-r));
    g_clear_error(&m->error);
    return r;
}

static int check_node(const NamedNode *named, const char *device, const char *name, GError **error)
{
    if (named->facts.read_only)
        return qmp_fail(error, "Device '%s' is read only", device);
    if (!named->driver->has_snapshots)
        return qmp_fail(error,
                        "Block format '%s' used by device '%s' does not support internal snapshots",
                        named->driver->name, device);
    return *name ? 0 : qmp_fail(error, "Name is empty");
}

static void find_on_loop(Fiber *self, void *arg)
{
    Making *m = arg;
    m->result = qcow2_snapshot_find(m->held.named->node, NULL, m->name, NULL);
}

static int fail_for_name(const Making *m, GError **error)
{
    return qmp_fail(error, "Snapshot with name '%s' already exists on device '%s'", m->name,
                    m->device);
}

static int check_name(Fiber *self, Making *m, GError **error)
{
    int r = remote_call_fiber_reserve(self, named_node_loop(m->held.named), find_on_loop, m);
    if (r < 0)
        return qmp_fail(error, "No memory for a fiber's stack");
    return m->result ? fail_for_name(m, error) : 0;
}

// With the graph lock, as what follows.
static void making_free(Fiber *self, void *state)
{
    Making *m = state;
    release(self, m->daemon, &m->held);
    g_free(m->device);
    g_free(m->name);
    g_free(m);
}

static const QmpAction actions[];

// Another snapshot of the node, earlier in the transaction.
static int join_first(Making *m, const QmpCall *of, GError **error)
{
    for (size_t i = 0; i < of->n_steps; i++) {
        Making *before = of->steps[i].state;
        if (of->steps[i].action != actions || before->held.named != m->held.named)
            continue;
        if (g_str_equal(before->name, m->name))
            return fail_for_name(m, error);
        m->first = m->first ?: before;
    }
    return 0;
}

static int making_new(Fiber *self, Daemon *daemon, const json_t *data, const char *user,
                      Making **ret_making, GError **error)
{
    const char *device = qmp_args_str(data, "device"), *name = qmp_args_str(data, "name");
    NamedNode *named = find_device(daemon, device, error);
    if (!named || check_node(named, device, name, error) < 0 ||
        named_node_check_change(named, NODE_PERM_PLACE, "an internal snapshot", error) < 0)
        return -EINVAL;
    Making *m = g_new0(Making, 1);
    *m = (Making){.daemon = daemon, .device = g_strdup(device), .name = g_strdup(name)};
    hold(self, named, user, &m->held);
    *ret_making = m;
    return 0;
}

static int prepare_new(Fiber *self, Making *m, GError **error)
{
    int r = check_name(self, m, error);
    return r < 0 ? r : call(self, m, prepare_on_loop, error);
}

static int prepare(Fiber *self, QmpCall *of, const json_t *data, void **ret_state, GError **error)
{
    Making *m;
    int r = making_new(self, of->daemon, data, "internal snapshot", &m, error);
    if (r < 0)
        return r;
    r = internal_snapshots_check_none(m->held.named, error);
    if (r == 0)
        r = join_first(m, of, error);
    if (r == 0)
        r = prepare_new(self, m, error);
    if (r < 0)
        making_free(self, m);
    else
        *ret_state = m;
    return r;
}

static int drain(Fiber *self, void *state, GError **error)
{
    Making *m = state;
    int r = m->first ? 0 : call(self, m, drain_on_loop, error);
    m->is_drained = r == 0 && !m->first;
    if (r == -ETIMEDOUT) {
        g_clear_error(error);
        return drain_fail(m->held.named, "no snapshot was taken", error);
    }
    return r;
}

static void commit(Fiber *self, void *state)
{
    Making *m = state;
    if (!m->first)
        remote_call_plain(self, named_node_loop(m->held.named), take_on_loop, m);
}

static void resume(Fiber *self, void *state)
{
    Making *m = state;
    if (m->is_drained)
        remote_call_plain(self, named_node_loop(m->held.named), resume_on_loop, m);
    m->is_drained = false;
}

static int finish(Fiber *self, void *state, GError **error)
{
    Making *m = state;
    int r = m->first ? 0 : call(self, m, finish_on_loop, error);
    m->is_made = r == 0;
    let_go(self, &m->held);
    return r;
}

static void undo(Fiber *self, void *state)
{
    Making *m = state;
    if (is_made(m) || m->taken)
        remote_call_fiber_reserve(self, named_node_loop(m->held.named), undo_on_loop, m);
    let_go(self, &m->held);
}

// Without the graph lock.
static int make_alone(Fiber *self, Making *m, GError **error)
{
    int r = prepare_new(self, m, error);
    if (r == 0)
        r = drain(self, m, error);
    if (r == 0)
        commit(self, m);
    resume(self, m);
    if (r == 0)
        r = finish(self, m, error);
    if (r < 0)
        undo(self, m);
    return r;
}

static int blockdev_snapshot_internal_sync(Fiber *self, QmpCall *of, const json_t *args,
                                           json_t **ret_reply, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(of->daemon->nodes);
    Making *m;
    fiber_mutex_lock(self, lock);
    int r = making_new(self, of->daemon, args, WITHOUT_LOCK, &m, error);
    fiber_mutex_unlock(self, lock);
    if (r < 0)
        return r;
    r = make_alone(self, m, error);
    fiber_mutex_lock(self, lock);
    making_free(self, m);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- deleting -------------------------------------------------------------------------------------

static const QmpType delete_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the node"},
                                   {"id", &qmp_str, true, "the snapshot's id"},
                                   {"name", &qmp_str, true,
                                    "its name; at least one of them; both: both must match"},
                                   {0}},
};

typedef struct Deletion {
    Held held;
    const char *id, *name;
    Qcow2SnapshotInfo info;
    int result;
    GError *error;
} Deletion;

static void delete_on_loop(Fiber *self, void *arg)
{
    Deletion *d = arg;
    d->result =
        qcow2_snapshot_delete(self, d->held.named->node, d->id, d->name, &d->info, &d->error);
}

static json_t *describe(const Qcow2SnapshotInfo *info)
{
    enum { NS_PER_S = 1000000000 };
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", info->id, "name", info->name,
                          "vm-state-size", (json_int_t)info->vm_state_bytes, "date-sec",
                          (json_int_t)info->date_sec, "date-nsec", (json_int_t)info->date_nsec,
                          "vm-clock-sec", (json_int_t)(info->vm_clock_ns / NS_PER_S),
                          "vm-clock-nsec", (json_int_t)(info->vm_clock_ns % NS_PER_S));
    if (info->icount != UINT64_MAX)
        json_object_set_new(o, "icount", json_integer((json_int_t)info->icount));
    return o;
}

// Who shows snapshots of the image; owned.
static char *viewers(const NamedNode *named)
{
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && g_str_equal(use->role, "snapshot"))
            g_string_append_printf(text, "%snode '%s'", text->len ? ", " : "", use->by->name);
    }
    return g_string_free(text, FALSE);
}

static int end_deletion(Deletion *d, const char *device, json_t **ret_reply, GError **error)
{
    int r = d->result;
    if (r == 0) {
        *ret_reply = describe(&d->info);
        qcow2_snapshot_info_clear(&d->info);
    } else if (r == -ENOENT) {
        qmp_fail(error, "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
                 d->id ? d->id : "null", d->name ? d->name : "null", device);
    } else if (r == -EBUSY) {
        g_autofree char *who = viewers(d->held.named);
        qmp_fail(error,
                 "Snapshot with id '%s' and name '%s' on device '%s' is in use: snapshots of it "
                 "are shown by %s",
                 d->id ? d->id : "null", d->name ? d->name : "null", device, who);
    } else {
        qmp_fail(error, "Failed to delete snapshot with id '%s' and name '%s' on device '%s': %s",
                 d->id ? d->id : "null", d->name ? d->name : "null", device,
                 d->error ? d->error->message : g_strerror(-r));
    }
    g_clear_error(&d->error);
    return r;
}

// With the graph lock.
static int begin_deletion(Fiber *self, const Daemon *daemon, const char *device, Deletion *d,
                          GError **error)
{
    NamedNode *named = find_device(daemon, device, error);
    if (!named)
        return -ENODEV;
    if (!d->id && !d->name)
        return qmp_fail(error, "Name or id must be provided");
    if (!named->driver->has_snapshots)
        return qmp_fail(error,
                        "Block format '%s' used by device '%s' does not support internal snapshots",
                        named->driver->name, device);
    if (named->facts.read_only)
        return qmp_fail(error, "Device '%s' is read only", device);
    hold(self, named, WITHOUT_LOCK, &d->held);
    return 0;
}

static int blockdev_snapshot_delete_internal_sync(Fiber *self, QmpCall *of, const json_t *args,
                                                  json_t **ret_reply, GError **error)
{
    const char *device = qmp_args_str(args, "device");
    Deletion d = {.id = qmp_args_str(args, "id"), .name = qmp_args_str(args, "name")};
    FiberMutex *lock = nodes_graph_lock(of->daemon->nodes);
    fiber_mutex_lock(self, lock);
    int r = begin_deletion(self, of->daemon, device, &d, error);
    fiber_mutex_unlock(self, lock);
    if (r < 0)
        return r;
    r = remote_call_fiber_reserve(self, named_node_loop(d.held.named), delete_on_loop, &d);
    r = r < 0 ? qmp_fail(error, "No memory for a fiber's stack")
              : end_deletion(&d, device, ret_reply, error);
    fiber_mutex_lock(self, lock);
    release(self, of->daemon, &d.held);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"blockdev-snapshot-internal-sync", &snapshot_args, NULL,
     "Makes an internal snapshot of an image while it is written: clients wait for the writes "
     "under way at that moment, and no longer, whatever the size. When the reply comes the "
     "snapshot is on disk.",
     blockdev_snapshot_internal_sync},
    {"blockdev-snapshot-delete-internal-sync", &delete_args, &snapshot_info,
     "Deletes an internal snapshot while the image is written. Refused while a node shows it.",
     blockdev_snapshot_delete_internal_sync},
    {0},
};

static const char *node_of_snapshot(const json_t *data)
{
    return qmp_args_str(data, "device");
}

static const QmpAction actions[] = {
    {.name = "blockdev-snapshot-internal-sync",
     .data = &snapshot_args,
     .doc =
         "Makes an internal snapshot of the moment at which all actions take effect; several of a "
         "node are on its disk together, or none of them is. If it cannot be completed then, the "
         "transaction fails, and all of it is undone.",
     .prepare = prepare,
     .drain = drain,
     .commit = commit,
     .resume = resume,
     .finish = finish,
     .abort = undo,
     .clean = making_free,
     .drains = node_of_snapshot},
    {0},
};

const QmpFamily qmp_internal_snapshots_family = {
    .title = "Internal snapshots",
    .commands = commands,
    .actions = actions,
};
