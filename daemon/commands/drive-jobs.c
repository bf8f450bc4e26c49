// SPDX-License-Identifier: LGPL-2.1-or-later
// There is one engine: the file becomes a node, and the job of blockdev-mirror or blockdev-backup
// is started with it as its target. Whoever uses that node keeps it: the job, and after a pivot the
// clients. A command that is refused leaves no file that it has made. Control loop, with the graph
// lock held; a command by itself gives it up while another machine is asked.
#include "drive-jobs.h"

#include <errno.h>

#include "block-jobs.h"
#include "blockdev-backup.h"
#include "blockdev-mirror.h"
#include "daemon/daemon.h"
#include "daemon/job-nodes.h"
#include "daemon/node-names.h"
#include "daemon/qmp/args.h"
#include "job-start.h"
#include "new-image.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpMember target_members[] = {
    {"target", &qmp_str,
     .doc = "the file to which, or another name of an image, such as an NBD URI"},
    {"format", &qmp_str, true,
     "the target's; unless it is given, the device's, or what the file says that exists"},
    {"mode", &qmp_new_image_mode, true,
     "whether the target exists already, or is made (absolute-paths, unless it is given), as an "
     "overlay of what lies below the device for sync `top`"},
};
static const QmpMember node_name_member = {"node-name", &qmp_str, true, "of the target's node"};

// Filled in by make_types().
static QmpType drive_mirror_args = {.name = "DriveMirror", .kind = QMP_OBJECT};
static QmpType drive_backup_args = {.name = "DriveBackup", .kind = QMP_OBJECT};

static bool is_left_out(const char *name)
{
    return g_str_equal(name, "target") || g_str_equal(name, "filter-node-name");
}

// Those of the command whose job it is, but for the node that is the target. They live as long as
// the process, as other types do.
static GArray *members_of(const QmpType *type, bool has_filter_name)
{
    GArray *members = g_array_new(true, false, sizeof(QmpMember));
    for (const QmpMember *member = type->members; member->name; member++)
        if (!is_left_out(member->name) ||
            (has_filter_name && g_str_equal(member->name, "filter-node-name")))
            g_array_append_vals(members, member, 1);
    g_array_append_vals(members, target_members, G_N_ELEMENTS(target_members));
    return members;
}

static void make_types(void)
{
    if (drive_mirror_args.members)
        return;
    GArray *of_mirror = members_of(&qmp_blockdev_mirror_args, false);
    g_array_append_val(of_mirror, node_name_member);
    GArray *of_backup = members_of(&qmp_blockdev_backup_args, true);
    drive_mirror_args.members = (const QmpMember *)g_array_free(of_mirror, false);
    drive_backup_args.members = (const QmpMember *)g_array_free(of_backup, false);
}

// -- the target -----------------------------------------------------------------------------------

typedef struct DriveTarget {
    Nodes *nodes;
    NamedNode *device;
    NamedNode *node;
    char *made_path; // its file, if the command made it
    Loop *loop;
    bool is_backup;
    bool may_unlock; // while the target is opened
    json_t *args;    // of the command whose job it is; owned
} DriveTarget;

static bool is_sync(const json_t *args, const char *sync)
{
    return g_str_equal(qmp_args_str(args, "sync"), sync);
}

// What lies below the image of the device; NULL: nothing does.
static NamedNode *backing_of(NamedNode *device)
{
    NamedNode *image = named_node_image(device);
    return image ? named_node_child(image, "backing") : NULL;
}

static int check_target(const Nodes *nodes, const json_t *args, bool is_backup, GError **error)
{
    const char *name = qmp_args_str(args, "node-name");
    if (qmp_args_have(args, "replaces") && !name)
        return qmp_fail(error,
                        "a node-name must be provided when replacing a named node of the graph");
    bool is_there = qmp_args_mode_is_existing(args);
    if (!is_backup && is_sync(args, "none") && !is_there)
        return qmp_fail(error, "With sync 'none' the target must be there: its backing file would "
                               "be the device, which its clients go on writing; make it, and take "
                               "it as it is with \"mode\": \"existing\"");
    if (name && !node_names_is_allowed(name))
        return qmp_fail(error, "Invalid node-name: '%s'", name);
    if (name && nodes_find(nodes, name))
        return qmp_fail(error, "Duplicate nodes with node-name='%s'", name);
    return 0;
}

// What is to be seen through the target as far as it owns nothing: of a backup of nothing, which
// shows the moment, the device. NULL: nothing is.
static NamedNode *below_target(const DriveTarget *target)
{
    if (is_sync(target->args, "none") && target->is_backup)
        return target->device;
    return is_sync(target->args, "top") ? backing_of(target->device) : NULL;
}

static int make_file(Fiber *self, DriveTarget *target, const char *format, GError **error)
{
    NamedNode *below = below_target(target);
    const NewImage image = {
        .path = qmp_args_str(target->args, "target"),
        .format = format,
        .size_bytes = target->device->facts.size_bytes,
        .below = below ? named_node_image(below) : NULL,
    };
    int r = new_image_create(self, target->loop, &image, error);
    if (r == 0)
        target->made_path = g_strdup(image.path);
    return r;
}

// What there is finds its backing file by itself, unless that is the device. A new image lies over
// the node that it shares with the device.
static NodeConfig *with_backing(const DriveTarget *target, NodeConfig *config)
{
    const NamedNode *below = below_target(target);
    if ((!target->made_path && below != target->device) ||
        !driver_option_find(config->driver->options, "backing", 7))
        return config;
    NodeConfig *with = node_config_new_with(config, "backing", below ? below->name : NULL);
    node_config_free(config);
    return with;
}

// A target on another machine is opened without the graph lock: the device stays, and where it is.
static int add_node(Fiber *self, DriveTarget *target, NodeConfig *config, GError **error)
{
    static const NodePerms none = {0, NODE_PERM_ALL};
    const char *path = qmp_args_str(target->args, "target");
    const NamedNode *backing = backing_of(target->device);
    if (!target->may_unlock)
        return nodes_add(self, target->nodes, config, path, &target->node, error);
    NodeUse *use = named_node_use(target->device, &(NodeUse){.role = "root",
                                                             .is_fixed = true,
                                                             .user = g_strdup("a new job"),
                                                             .perms = &none});
    int r = nodes_add_unlocking(self, target->nodes, config, path, &target->node, error);
    if (r == 0 && backing_of(target->device) != backing)
        r = qmp_fail(error, "Node '%s' has changed meanwhile: try again", target->device->name);
    nodes_end_use(self, target->nodes, use);
    return r;
}

// Past the page cache or not, as the device.
static int open_node(Fiber *self, DriveTarget *target, const char *format, GError **error)
{
    const char *name = qmp_args_str(target->args, "node-name");
    const char *path = qmp_args_str(target->args, "target");
    const NamedNode *image = named_node_image(target->device);
    const json_t *values = image && image->config ? image->config->values : NULL;
    json_t *cache = json_object_get(values, "cache");
    NodeConfig *config;
    int r = node_config_new_name(path, format, &config, error);
    if (r < 0)
        return r;
    config = with_backing(target, config);
    if (name)
        json_object_set_new(config->values, "node-name", json_string(name));
    if (cache)
        json_object_set(config->values, "cache", cache);
    return add_node(self, target, config, error);
}

// Whoever uses the node keeps it: the job has it now, or it goes.
static void target_done(Fiber *self, DriveTarget *target)
{
    if (target->node)
        nodes_close(self, target->nodes, target->node);
    json_decref(target->args);
}

static int make_target(Fiber *self, DriveTarget *target, GError **error)
{
    const json_t *args = target->args;
    const NamedNode *image = named_node_image(target->device);
    const char *format = qmp_args_str(args, "format");
    bool is_there = qmp_args_mode_is_existing(args);
    if (!format && !is_there)
        format = image && image->driver->open ? image->driver->name : "raw";
    if (is_there && format && !driver_find(format))
        return qmp_fail(error, "Unknown driver '%s'", format);
    int r = check_target(target->nodes, args, target->is_backup, error);
    if (r == 0 && !is_there)
        r = make_file(self, target, format, error);
    return r == 0 ? open_node(self, target, format, error) : r;
}

static void set_args(const DriveTarget *target)
{
    json_t *args = target->args;
    bool is_all = is_sync(args, "top") && !backing_of(target->device);
    json_object_set_new(args, "target", json_string(target->node->name));
    if (is_all)
        json_object_set_new(args, "sync", json_string("full"));
}

typedef struct DriveStart {
    QmpJobStart start; // first
    char *made_path;   // owned, or NULL
    Loop *loop;
} DriveStart;

static void remove_made(Fiber *self, const DriveStart *drive)
{
    if (drive->made_path)
        new_image_remove(self, drive->loop, drive->made_path);
}

// The job of `prepare`, which knows the target as a node.
static int prepare_drive(Fiber *self, const QmpCall *call, const json_t *args,
                         QmpPrepareJobFn *prepare, bool may_unlock, DriveStart *ret_drive,
                         GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    NamedNode *device = job_nodes_find_device(nodes, qmp_args_str(args, "device"), error);
    if (!device)
        return -ENODEV;
    DriveTarget target = {
        .nodes = nodes,
        .device = device,
        .loop = named_node_loop(device),
        .is_backup = prepare == qmp_prepare_backup,
        .may_unlock = may_unlock,
        .args = json_copy((json_t *)args),
    };
    DriveStart drive = {.loop = target.loop};
    int r = make_target(self, &target, error);
    if (r == 0) {
        set_args(&target);
        r = prepare(self, call, target.args, &drive.start, error);
    }
    target_done(self, &target);
    drive.made_path = target.made_path;
    if (r == 0) {
        *ret_drive = drive;
    } else {
        remove_made(self, &drive);
        g_free(drive.made_path);
    }
    return r;
}

// -- commands -------------------------------------------------------------------------------------

static int prepare_alone(Fiber *self, const QmpCall *call, const json_t *args,
                         QmpPrepareJobFn *prepare, QmpJobStart *ret_start, GError **error)
{
    DriveStart drive;
    int r = prepare_drive(self, call, args, prepare, true, &drive, error);
    if (r < 0)
        return r;
    g_free(drive.made_path);
    *ret_start = drive.start;
    return 0;
}

static int prepare_drive_mirror(Fiber *self, const QmpCall *call, const json_t *args,
                                QmpJobStart *ret_start, GError **error)
{
    return prepare_alone(self, call, args, qmp_prepare_mirror, ret_start, error);
}

static int prepare_drive_backup(Fiber *self, const QmpCall *call, const json_t *args,
                                QmpJobStart *ret_start, GError **error)
{
    return prepare_alone(self, call, args, qmp_prepare_backup, ret_start, error);
}

static int start_mirror(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_job(self, call, args, prepare_drive_mirror, error);
}

static int start_backup(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_backup(self, call, args, prepare_drive_backup, error);
}

// -- actions --------------------------------------------------------------------------------------

static int prepare_action(Fiber *self, const QmpCall *call, const json_t *data,
                          QmpPrepareJobFn *prepare, void **ret_state, GError **error)
{
    DriveStart drive;
    int r = prepare_drive(self, call, data, prepare, false, &drive, error);
    if (r == 0)
        *ret_state = g_memdup2(&drive, sizeof drive);
    return r;
}

static int prepare_mirror_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                                 GError **error)
{
    return prepare_action(self, call, data, qmp_prepare_mirror, ret_state, error);
}

static int prepare_backup_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                                 GError **error)
{
    return prepare_action(self, call, data, qmp_prepare_backup, ret_state, error);
}

static void abort_action(Fiber *self, void *state)
{
    qmp_abort_job_action(self, state);
    remove_made(self, state);
}

static void clean_action(Fiber *self, void *state)
{
    g_free(((DriveStart *)state)->made_path);
    qmp_clean_job_action(self, state);
}

static const QmpAction actions[] = {
    {"drive-mirror", &drive_mirror_args, "As the command; an extension.", prepare_mirror_action,
     .is_job = true, .start = qmp_start_job_action, .abort = abort_action, .clean = clean_action},
    {"drive-backup", &drive_backup_args,
     "As the command. The backups of one transaction are of the same moment.",
     prepare_backup_action, QMP_BACKUP_MOMENT, .is_job = true, .start = qmp_start_job_action,
     .abort = abort_action, .clean = clean_action},
    {0},
};

static const QmpCommand commands[] = {
    {"drive-mirror", &drive_mirror_args, NULL,
     "As blockdev-mirror, to a file that is opened for it, and made unless it exists. Completed, "
     "its node stays as long as somebody uses it.",
     start_mirror},
    {"drive-backup", &drive_backup_args, NULL,
     "As blockdev-backup, to a file that is opened for it, and made unless it exists.",
     start_backup},
    {0},
};

const QmpFamily qmp_drive_jobs_family = {
    .title = "Mirror and backup to files",
    .commands = commands,
    .actions = actions,
    .init = make_types,
};
