// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-create: files of the host, and qcow2 images in files. Each is made by a job, whose work
// runs here and is done on the loop of the file. Control loop.
#include "create.h"

#include <errno.h>

#include "blockdev-type.h"
#include "chain-core/chain.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType preallocation = {
    .name = "PreallocMode",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"off", "metadata", "falloc", "full", NULL},
};
static const QmpType file_options = {
    .name = "BlockdevCreateOptionsFile",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"filename", &qmp_str, .doc = "the path"},
                                   {"size", &qmp_size, .doc = "in bytes"},
                                   {"preallocation", &preallocation, true,
                                    "off, which is the default; falloc and full: the host's space "
                                    "is taken"},
                                   {"nocow", &qmp_bool, true, "accepted, does nothing"},
                                   {"extent-size-hint", &qmp_size, true, "accepted, does nothing"},
                                   {0}},
};
static const QmpType version = {
    .name = "BlockdevQcow2Version",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"v2", "v3", NULL},
};
static const QmpType compression = {
    .name = "Qcow2CompressionType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"zlib", "zstd", NULL},
};
static const QmpType format_name = {.name = "BlockdevBackingFormat",
                                    .kind = QMP_ENUM,
                                    .values = (const char *const[]){"qcow2", "raw", NULL}};
static const QmpType qcow2_options = {
    .name = "BlockdevCreateOptionsQcow2",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"file", &blockdev_ref, .doc = "a writable file node, whose content is replaced"},
            {"size", &qmp_size, .doc = "of the disk, in bytes"},
            {"version", &version, true, "v3 without it"},
            {"backing-file", &qmp_str, true, "what the header names as lying below"},
            {"backing-fmt", &format_name, true, "and its format, which is required with it"},
            {"cluster-size", &qmp_size, true, "64 KiB without it"},
            {"preallocation", &preallocation, true,
             "off, which is the default; metadata: all clusters have their places; falloc and "
             "full: the host's space is taken, too"},
            {"lazy-refcounts", &qmp_bool, true, "recorded; chaind has no use for it"},
            {"refcount-bits", &qmp_int, true, "16 without it"},
            {"compression-type", &compression, true, "zlib without it"},
            {"extended-l2", &qmp_bool, true, "whether clusters have subclusters"},
            {"data-file", &blockdev_ref, true,
             "a writable file node that is to hold the data; what it holds stays, and it is made "
             "as long as the disk if it is shorter"},
            {"data-file-raw", &qmp_bool, true,
             "whether it is to show by itself, as a raw file, what the disk does; all clusters "
             "have their places then"},
            {0}},
};
static const QmpType create_driver = {
    .name = "BlockdevCreateDriver",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"file", "qcow2", NULL},
};
static const QmpType create_options = {
    .name = "BlockdevCreateOptions",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"driver", &create_driver, .doc = "what to make"}, {0}},
    .tag = "driver",
    .variants = (const QmpVariant[]){{"file", &file_options}, {"qcow2", &qcow2_options}, {0}},
};
static const QmpType blockdev_create_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"job-id", &qmp_str, .doc = "of the job that makes it"},
                                   {"options", &create_options, .doc = "what to make"},
                                   {0}},
};

// -- on the file's loop ---------------------------------------------------------------------------

// A file node that the job writes.
typedef struct Taken {
    NamedNode *named;
    NodeUse *use;
} Taken;

typedef struct Creation {
    Daemon *daemon;
    char *user; // what its uses of nodes are called
    json_t *options;
    Taken file; // in which a format is made; none: a file is made
    Taken data; // of the image; or none
    int result;
    GError *error;
} Creation;

static bool takes_space(const json_t *options)
{
    const char *mode = qmp_args_str(options, "preallocation");
    return g_strcmp0(mode, "falloc") == 0 || g_strcmp0(mode, "full") == 0;
}

// An existing file loses its content, once nobody else uses it.
static int fill_file(Fiber *self, File *file, const json_t *options, GError **error)
{
    uint64_t size = (uint64_t)qmp_args_int(options, "size", 0);
    if (file_is_block_device(file))
        return qmp_fail(error, "'%s' is a device: it cannot be created", file_path(file));
    int r = file_lock(self, file, FILE_PERM_WRITE | FILE_PERM_RESIZE,
                      FILE_PERM_WRITE | FILE_PERM_RESIZE, error);
    if (r < 0)
        return r;
    r = file_truncate(self, file, 0);
    if (r == 0)
        r = file_truncate(self, file, size);
    if (r == 0 && takes_space(options) && size)
        r = file_reserve(self, file, host_off(0), size);
    if (r == 0)
        r = file_flush(self, file);
    if (r == 0)
        return file_sync_dir(self, file_path(file), error);
    qmp_fail(error, "Could not resize file '%s': %s", file_path(file), g_strerror(-r));
    return r;
}

static int create_file(Fiber *self, const json_t *options, GError **error)
{
    const char *path = qmp_args_str(options, "filename");
    File *file;
    int r = file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, NULL);
    if (r < 0)
        r = file_open(self, path, FILE_WRITABLE, &file, error);
    if (r < 0)
        return r;
    r = fill_file(self, file, options, error);
    file_close(self, file);
    return r;
}

// 0 is not the default here, but as wrong as what no image can have.
static uint64_t given_or_default(const json_t *options, const char *name)
{
    if (!json_object_get(options, name))
        return 0;
    uint64_t value = (uint64_t)qmp_args_int(options, name, 0);
    return value ? value : UINT64_MAX;
}

// Nobody else uses it. The locks were for the making.
static void end_with_file(Fiber *self, const Taken *taken)
{
    if (!taken->named)
        return;
    Node *node = taken->named->node;
    node->size_bytes = file_size(node_file(node));
    file_lock(self, node_file(node), 0, 0, NULL);
}

static int create_qcow2(Fiber *self, const Creation *c, GError **error)
{
    enum { SECTOR_BYTES = 512 };
    const json_t *options = c->options;
    File *file = node_file(c->file.named->node);
    File *data = c->data.named ? node_file(c->data.named->node) : NULL;
    const char *mode = qmp_args_str(options, "preallocation");
    Qcow2CreateOptions create = {
        .size_bytes = (uint64_t)qmp_args_int(options, "size", 0),
        .version = g_strcmp0(qmp_args_str(options, "version"), "v2") == 0 ? 2 : 3,
        .cluster_bytes = given_or_default(options, "cluster-size"),
        .refcount_bits = given_or_default(options, "refcount-bits"),
        .zstd = g_strcmp0(qmp_args_str(options, "compression-type"), "zstd") == 0,
        .extended_l2 = qmp_args_bool(options, "extended-l2", false),
        .lazy_refcounts = qmp_args_bool(options, "lazy-refcounts", false),
        .preallocate_metadata = g_strcmp0(mode, "metadata") == 0 || takes_space(options),
        .reserve_data = takes_space(options),
        .backing_name = qmp_args_str(options, "backing-file"),
        .backing_format = qmp_args_str(options, "backing-fmt"),
        .data_file = data,
        .data_name = data ? file_path(data) : NULL, // as it was given, for QEMU takes it so
        .raw_data = qmp_args_bool(options, "data-file-raw", false),
    };
    if (create.size_bytes % SECTOR_BYTES)
        return qmp_fail(error, "Image size must be a multiple of 512 bytes");
    int r = qcow2_create_in(self, file, &create, error);
    end_with_file(self, &c->file);
    end_with_file(self, &c->data);
    return r;
}

static void create_on_loop(Fiber *self, void *arg)
{
    Creation *c = arg;
    c->result =
        c->file.named ? create_qcow2(self, c, &c->error) : create_file(self, c->options, &c->error);
}

// -- the job --------------------------------------------------------------------------------------

static int check_file(const NamedNode *named, char *user, GError **error)
{
    if (!named->driver->is_file)
        return qmp_fail(error, "'%s' is not a file", named->name);
    if (named->facts.read_only)
        return qmp_fail(error, "Block node is read-only");
    NodeUse use = {.role = "file", .writes = true, .user = user};
    return named_node_check_use(named, &use, error);
}

// The file node that the options name as `role`, used by the job from here on.
static int take_file(Fiber *self, const Creation *c, const char *role, Taken *ret_taken,
                     GError **error)
{
    Nodes *nodes = c->daemon->nodes;
    json_t *file = json_object_get(c->options, role);
    const char *name = json_string_value(file);
    NodeConfig *config = NULL;
    NamedNode *named = NULL;
    bool is_temporary = !name;
    int r = is_temporary ? node_config_new(file, true, &config, error) : 0;
    if (r == 0 && is_temporary)
        r = nodes_add_unlocking(self, nodes, config, NULL, &named, error);
    else if (r == 0)
        named = nodes_find(nodes, name);
    if (r < 0)
        return r;
    if (!named)
        return qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", name, name);
    r = check_file(named, c->user, error);
    if (r == 0)
        *ret_taken = (Taken){named, nodes_use(named, c->user, true)};
    if (is_temporary)
        nodes_close(self, nodes, named);
    return r;
}

// They come to one loop.
static int take_files(Fiber *self, Creation *c, GError **error)
{
    int r = take_file(self, c, "file", &c->file, error);
    if (r < 0 || !json_object_get(c->options, "data-file"))
        return r;
    r = take_file(self, c, "data-file", &c->data, error);
    return r < 0 ? r
                 : nodes_move(self, c->daemon->nodes, c->data.named, named_node_loop(c->file.named),
                              error);
}

static int create(Fiber *self, Creation *c, GError **error)
{
    bool is_format = !g_str_equal(qmp_args_str(c->options, "driver"), "file");
    FiberMutex *lock = nodes_graph_lock(c->daemon->nodes);
    fiber_mutex_lock(self, lock);
    int r = is_format ? take_files(self, c, error) : 0;
    fiber_mutex_unlock(self, lock);
    if (r < 0)
        return r;
    Loop *loop = c->file.use ? named_node_loop(c->file.named) : loops_get(c->daemon->loops, 0);
    r = remote_call_fiber(self, loop, create_on_loop, c);
    if (c->file.use)
        nodes_refresh(self, c->file.named);
    if (c->data.use)
        nodes_refresh(self, c->data.named);
    if (r < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    if (c->result < 0 && c->error)
        g_propagate_error(error, g_steal_pointer(&c->error));
    return c->result;
}

// On the control loop: only what the file's loop has to do is done there.
static int run_job(Fiber *self, JobControl *control, void *work, GError **error)
{
    fiber_yield(self); // the command answers first
    job_set_total(control, 1);
    int r = create(self, work, error);
    job_count(control, JOB_BYTES_COPIED, 1);
    return r;
}

static void clean_job(Fiber *self, void *work)
{
    Creation *c = work;
    if (c->data.use)
        nodes_end_use(self, c->daemon->nodes, c->data.use);
    if (c->file.use)
        nodes_end_use(self, c->daemon->nodes, c->file.use);
    json_decref(c->options);
    g_free(c->user);
    g_free(c);
}

static const JobKind create_kind = {.type = "create", .run = run_job, .clean = clean_job};

static int blockdev_create(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    const char *id = qmp_args_str(args, "job-id");
    Creation *c = g_new0(Creation, 1);
    JobSpec spec = {.id = id, .kind = &create_kind, .work = c, .waits_concluded = true};
    Job *job = job_new(call->daemon->jobs, &spec, error);
    if (!job) {
        g_free(c);
        return -EINVAL;
    }
    *c = (Creation){
        .daemon = call->daemon,
        .user = g_strdup_printf("job '%s'", id),
        .options = json_deep_copy(json_object_get(args, "options")),
    };
    job_start(self, job, fiber_loop(self));
    return 0;
}

static const QmpCommand commands[] = {
    {"blockdev-create", &blockdev_create_args, NULL,
     "Makes a file, or a qcow2 image in the file of a node. A job does it, which stays until it is "
     "dismissed.",
     blockdev_create},
    {0},
};

const QmpFamily qmp_create_family = {.title = "New images", .commands = commands};
