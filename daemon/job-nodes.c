// SPDX-License-Identifier: LGPL-2.1-or-later
// Names are looked up in control's table; a mode is changed on the node's loop.
#include "job-nodes.h"

#include <errno.h>

#include "chain-core/remote-call.h"
#include "daemon/log.h"
#include "daemon/node-instances.h"
#include "daemon/node-names.h"
#include "daemon/qmp/error.h"

NamedNode *job_nodes_find_device(const Nodes *nodes, const char *name, GError **error)
{
    NamedNode *named = nodes_find(nodes, name);
    if (!named)
        qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", name, name);
    return named && named_node_check_active(named, error) == 0 ? named : NULL;
}

int job_nodes_check_root(const NamedNode *named, GError **error)
{
    for (guint i = 0; i < named->users->len; i++)
        if (((const NodeUse *)named->users->pdata[i])->by)
            return qmp_fail(error, "Need a root block node");
    return 0;
}

int job_nodes_check_filter_name(const Nodes *nodes, const char *name, GError **error)
{
    if (name && !node_names_is_allowed(name))
        return qmp_fail(error, "Invalid node-name: '%s'", name);
    if (name && nodes_find(nodes, name))
        return qmp_fail(error, "Duplicate nodes with node-name='%s'", name);
    return 0;
}

static bool is_file_of(const NamedNode *above, const NamedNode *named, const char *name)
{
    const char *path = named_node_file_name(named);
    if (!*path)
        return false;
    g_autofree char *dir = g_path_get_dirname(named_node_file_name(above));
    g_autofree char *full = g_canonicalize_filename(path, NULL);
    g_autofree char *base = g_canonicalize_filename(dir, NULL);
    g_autofree char *wanted = g_canonicalize_filename(name, base);
    return g_str_equal(path, name) || g_str_equal(full, wanted);
}

NamedNode *job_nodes_find_file(NamedNode *top, const char *name, GError **error)
{
    NamedNode *above = named_node_image(top);
    while (above) {
        NamedNode *below = named_node_image(named_node_below(above));
        if (below && is_file_of(above, below, name))
            return below;
        above = below;
    }
    qmp_fail(error, "Can't find '%s' in the backing chain", name);
    return NULL;
}

bool job_nodes_is_below(const NamedNode *top, const NamedNode *wanted)
{
    for (; top; top = named_node_below(top))
        if (top == wanted)
            return true;
    return false;
}

char *job_nodes_header_name(const NamedNode *image, NamedNode *over, NamedNode *base)
{
    char *name = named_node_header_name(named_node_image(base), named_node_file_name(image));
    if (name)
        return name;
    const NamedNode *lowest = over;
    for (NamedNode *named = over; named != base; named = named_node_below(named))
        if (!named->node->ops->is_filter)
            lowest = named;
    return g_strdup(json_string_value(json_object_get(lowest->facts.info, "backing-filename")));
}

int job_nodes_join(Fiber *self, Nodes *nodes, NamedNode *source, NamedNode *target, GError **error)
{
    int r = nodes_make_single(self, nodes, source, error);
    if (r == 0)
        r = nodes_make_single(self, nodes, target, error);
    if (r < 0 || named_node_loop(source) == named_node_loop(target))
        return r;
    if (nodes_move(self, nodes, target, named_node_loop(source), NULL) == 0)
        return 0;
    return nodes_move(self, nodes, source, named_node_loop(target), error);
}

int job_nodes_check_snapshots(const NamedNode *image, GError **error)
{
    if (!json_object_get(image->facts.info, "snapshots"))
        return 0;
    return qmp_fail(error,
                    "Node '%s' has internal snapshots, which need the layers below it: delete them "
                    "first (blockdev-snapshot-delete-internal-sync)",
                    image->name);
}

// -- on the nodes' loop ---------------------------------------------------------------------------

typedef struct LoopJobCall {
    JobNodesCallFn *fn;
    void *arg;
    int result;
    GError *error;
} LoopJobCall;

static void call_on_loop(Fiber *self, void *arg)
{
    LoopJobCall *call = arg;
    call->result = call->fn(self, call->arg, &call->error);
}

int job_nodes_call(Fiber *self, const NamedNode *named, JobNodesCallFn *fn, void *arg,
                   GError **error)
{
    LoopJobCall call = {.fn = fn, .arg = arg};
    if (remote_call_fiber_reserve(self, named_node_loop(named), call_on_loop, &call) < 0) {
        qmp_fail(error, "Node '%s': no memory for a fiber's stack", named->name);
        return -ENOMEM;
    }
    if (call.error)
        g_propagate_error(error, call.error);
    return call.result;
}

static int switch_with_lock(Fiber *self, Nodes *nodes, const NamedNode *named, const JobSwitch *how,
                            void *job, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(nodes);
    fiber_mutex_lock(self, lock);
    int r = job_nodes_call(self, named, how->switch_now, job, error);
    if (r == 0)
        how->note(self, job);
    fiber_mutex_unlock(self, lock);
    return r;
}

int job_nodes_switch(Fiber *self, Nodes *nodes, const NamedNode *named, const JobSwitch *how,
                     void *job, GError **error)
{
    int r;
    do {
        r = job_nodes_call(self, named, how->come_close, job, error);
        if (r == 0)
            r = switch_with_lock(self, nodes, named, how, job, error);
    } while (r > 0);
    return r;
}

// -- modes ----------------------------------------------------------------------------------------

typedef struct ModeChange {
    Node *node;
    bool is_writable;
} ModeChange;

static int change_on_loop(Fiber *self, void *arg, GError **error)
{
    const ModeChange *change = arg;
    return node_change_mode(self, change->node, change->is_writable, error);
}

// Does nobody else rely on what it lies in?
static int check_may_write(const NamedNode *named, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < named->children->len; i++) {
        NodeUse use = *(const NodeUse *)named->children->pdata[i];
        use.writes = true;
        if (!g_str_equal(use.role, "backing"))
            r = named_node_check_use(use.used, &use, error);
    }
    return r;
}

int job_nodes_set_writable(Fiber *self, NamedNode *named, bool is_writable, GError **error)
{
    ModeChange change = {.node = named->node, .is_writable = is_writable};
    int r = is_writable ? check_may_write(named, error) : 0;
    if (r < 0)
        return r;
    r = job_nodes_call(self, named, change_on_loop, &change, error);
    nodes_refresh(self, named);
    return r;
}

int job_nodes_make_writable(Fiber *self, NamedNode *named, GPtrArray *changed, GError **error)
{
    if (!named->facts.read_only)
        return 0;
    int r = job_nodes_set_writable(self, named, true, error);
    if (r == 0)
        g_ptr_array_add(changed, named);
    return r;
}

void job_nodes_make_read_only(Fiber *self, const GPtrArray *changed, const char *owner)
{
    for (guint i = 0; i < changed->len; i++) {
        g_autoptr(GError) error = NULL;
        if (job_nodes_set_writable(self, changed->pdata[i], false, &error) < 0)
            log_line(LOG_ERROR, "after %s: %s", owner, error->message);
    }
}
