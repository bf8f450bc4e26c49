// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that make, change and delete nodes, and the events of nodes. Control loop.
#include "nodes.h"

#include "blockdev-type.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/node-active.h"
#include "daemon/qmp/args.h"

// -- blockdev-add ---------------------------------------------------------------------------------

static int add_node(Fiber *self, Daemon *daemon, const json_t *options, GError **error)
{
    if (!qmp_args_have(options, "node-name"))
        return qmp_fail(error, "'node-name' must be specified for the root node");
    NodeConfig *config = NULL;
    int r = node_config_new((json_t *)options, true, &config, error);
    if (r < 0)
        return r;
    // QEMU's default; disks of the command line let them through.
    if (!driver_value_str(config->values, "discard", NULL))
        json_object_set_new(config->values, "discard", json_string("ignore"));
    NamedNode *named;
    FiberMutex *lock = nodes_graph_lock(daemon->nodes);
    fiber_mutex_lock(self, lock);
    r = nodes_add_unlocking(self, daemon->nodes, config, NULL, &named, error);
    fiber_mutex_unlock(self, lock);
    return r;
}

static int blockdev_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return add_node(self, call->daemon, args, error);
}

// -- blockdev-del ---------------------------------------------------------------------------------

static const QmpType blockdev_del_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node-name", &qmp_str, .doc = "the node"}, {0}},
};

static int delete_node(Fiber *self, Daemon *daemon, const char *name, GError **error)
{
    NamedNode *named = nodes_find(daemon->nodes, name);
    if (!named)
        return qmp_fail(error, "Failed to find node with node-name='%s'", name);
    int flushed = 0;
    int r = nodes_delete(self, daemon->nodes, named, &flushed, error);
    if (flushed < 0)
        log_line(LOG_ERROR,
                 "'%s' could not be flushed when it was closed: %s; what was written since the "
                 "last flush may be lost",
                 name, g_strerror(-flushed));
    return r;
}

static int blockdev_del(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    fiber_mutex_lock(self, lock);
    int r = delete_node(self, call->daemon, qmp_args_str(args, "node-name"), error);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- blockdev-set-active --------------------------------------------------------------------------

static const QmpType set_active_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"node-name", &qmp_str, true, "the node; without it, all nodes"},
                            {"active", &qmp_bool, .doc = "whether it is active from then on"},
                            {0}},
};

// Those that nothing lies over: what lies below goes with them. The first error, after all.
static int set_all_active(Fiber *self, Nodes *nodes, bool is_active, GError **error)
{
    g_auto(GStrv) names = nodes_names(nodes);
    int result = 0;
    for (char **name = names; *name; name++) {
        NamedNode *named = nodes_find(nodes, *name);
        if (!named || named_node_check_root(named, NULL) < 0)
            continue;
        int r = node_active_set(self, nodes, named, is_active, result == 0 ? error : NULL);
        result = result < 0 ? result : r;
    }
    return result;
}

static int set_active(Fiber *self, Nodes *nodes, const json_t *args, GError **error)
{
    const char *name = qmp_args_str(args, "node-name");
    bool is_active = qmp_args_bool(args, "active", true);
    if (!name)
        return set_all_active(self, nodes, is_active, error);
    NamedNode *named = nodes_find(nodes, name);
    return named ? node_active_set(self, nodes, named, is_active, error)
                 : qmp_fail(error, "Failed to find node with node-name='%s'", name);
}

static int blockdev_set_active(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                               GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = set_active(self, nodes, args, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    return r;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"blockdev-add", &blockdev_options, NULL,
     "Makes a node, with all that lies below it unless that is given. The node is there until "
     "blockdev-del.",
     blockdev_add},
    {"blockdev-del", &blockdev_del_args, NULL,
     "Deletes a node that blockdev-add made and nobody uses, and what was opened for it alone.",
     blockdev_del},
    {"blockdev-set-active", &set_active_args, NULL,
     "Makes a node, and what lies below it, active or inactive. What is inactive is read only, by "
     "exports with allow-inactive, and other programs may write its files meanwhile: a migration "
     "takes a disk from one daemon to another so. What becomes active is read anew; dirty bitmaps "
     "that the image does not store are all dirty then.",
     blockdev_set_active},
    {0},
};

static const QmpType io_error_operation = {
    .name = "IoOperationType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"read", "write", NULL},
};
static const QmpType io_error_action = {
    .name = "BlockErrorAction",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"ignore", "report", "stop", NULL},
};
static const QmpType io_error_data = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"qom-path", &qmp_str, .doc = "always empty"},
            {"device", &qmp_str, .doc = "always empty"},
            {"node-name", &qmp_str, true, "the node that was opened with the file"},
            {"operation", &io_error_operation, .doc = "what failed"},
            {"action", &io_error_action, .doc = "always report: the client is told"},
            {"nospace", &qmp_bool, true, "whether the host had no space left"},
            {"reason", &qmp_str, .doc = "for people"},
            {0}},
};
static const QmpType corrupted_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "always empty"},
                                   {"node-name", &qmp_str, true, "the node"},
                                   {"msg", &qmp_str, .doc = "what is wrong, for people"},
                                   {"fatal", &qmp_bool,
                                    .doc = "whether the node refuses writes from now on"},
                                   {0}},
};

static const QmpEvent events[] = {
    {"BLOCK_IO_ERROR", &io_error_data,
     "The host failed to read or write a file. At most once a second for each disk."},
    {"BLOCK_IMAGE_CORRUPTED", &corrupted_data, "An image turned out to be damaged."},
    {0},
};

const QmpFamily qmp_nodes_family = {
    .title = "Nodes",
    .commands = commands,
    .events = events,
    .init = blockdev_type_init,
};
