// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening the files of images. On the layer's loop, in a fiber.
#include "chain/source.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/resource.h>

#include "base/error.h"
#include "chain-core/node-file.h"
#include "chain-core/raw.h"
#include "chain/allowed-dirs.h"

// What other programs may do meanwhile; as QEMU's block drivers ask for it.
enum {
    HELD_READING = FILE_PERM_CONSISTENT_READ,
    HELD_WRITING = FILE_PERM_CONSISTENT_READ | FILE_PERM_WRITE | FILE_PERM_RESIZE,
    UNSHARED = FILE_PERM_WRITE | FILE_PERM_RESIZE,
};

static void clear_made(Fiber *self, GArray *made)
{
    for (guint i = 0; i < made->len; i++)
        node_unref_close(self, g_array_index(made, LayerNode, i).node);
    g_array_unref(made);
}

void source_close(Fiber *self, Source *source)
{
    if (source->made)
        clear_made(self, g_steal_pointer(&source->made));
    node_unref_close(self, g_steal_pointer(&source->node));
    file_close(self, g_steal_pointer(&source->file));
}

static GArray *made_new(void)
{
    return g_array_new(FALSE, TRUE, sizeof(LayerNode));
}

Node *source_node(Source *source)
{
    if (!source->file || source->node)
        return source->node;
    source->node = file_node_new(file_ref(source->file));
    if (source->config)
        node_config_apply(source->config, source->node);
    return source->node;
}

const GArray *source_nodes(Source *source)
{
    Node *node = source_node(source);
    if (!source->made && node) {
        LayerNode made = {node_ref(node), source->config, -1, NULL};
        source->made = made_new();
        g_array_append_val(source->made, made);
    }
    return source->made;
}

SourceMode source_mode_of(const NodeConfig *config, SourceMode above)
{
    const json_t *values = config->values;
    bool is_shared = driver_value_bool(values, "force-share", above.is_shared);
    return (SourceMode){
        .is_writable = above.is_writable && !driver_value_bool(values, "read-only", false),
        .is_direct = driver_value_bool(values, "cache.direct", above.is_direct),
        .is_shared = is_shared,
        .is_inactive = above.is_inactive,
        .is_locked = !is_shared && !g_str_equal(driver_value_str(values, "locking", "auto"), "off"),
        .may_fall_back = driver_value_bool(values, "auto-read-only", above.may_fall_back),
    };
}

int source_lock(Fiber *self, const Source *source, const SourceMode *mode, GError **error)
{
    File *file = source->file;
    unsigned held = mode->is_writable ? HELD_WRITING : HELD_READING;
    int r = mode->is_locked ? file_lock_also(self, file, held, UNSHARED, error) : 0;
    if (r < 0)
        return r;
    // Whoever held the file until now may have made it longer since it was opened.
    r = file_refresh_size(self, file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", file_path(file), g_strerror(-r));
    if (mode->is_writable || mode->is_shared || mode->is_inactive)
        file_forget(file);
    else
        file_remember(self, file);
    return 0;
}

int source_lock_also(Fiber *self, File *file, bool is_writable, GError **error)
{
    int r = file_lock_also(self, file, is_writable ? HELD_WRITING : HELD_READING, UNSHARED, error);
    if (r < 0)
        return r;
    // Whoever used the file until now may have made it longer since it was opened.
    r = file_refresh_size(self, file);
    return r < 0 ? error_set(error, r, "%s: cannot tell its size: %s", file_path(file),
                             g_strerror(-r))
                 : 0;
}

int layer_lock_node(Fiber *self, Node *node, bool is_writable, GError **error)
{
    while (node->ops->is_filter)
        node = node->backing;
    File *file = node->ops->is_file ? node_file(node) : NULL;
    if (!file)
        return 0;
    int r = file_lock_also(self, file, is_writable ? HELD_WRITING : HELD_READING, UNSHARED, error);
    if (r < 0)
        return r;
    // Whoever used the file until now may have made it longer since it was opened.
    r = node_remeasure(self, node);
    return r < 0 ? error_set(error, r, "%s: cannot tell its size: %s", file_path(file),
                             g_strerror(-r))
                 : 0;
}

// Of whoever has the node, and nobody else: perhaps there are filters over it, which nobody uses
// either. A layer that is being opened, or has it as its file, has a reference.
static bool is_idle(const Node *node)
{
    if (node->ports->len || node->n_refs != 1 + node->parents->len ||
        (node->ops->is_file && file_is_shared(node_file((Node *)node))))
        return false;
    for (guint i = 0; i < node->parents->len; i++) {
        const Node *parent = node->parents->pdata[i];
        if (!parent->ops->is_filter || !is_idle(parent))
            return false;
    }
    return true;
}

void layer_unlock_node(Fiber *self, Node *node)
{
    while (node->ops->is_filter)
        node = node->backing;
    if (node->ops->is_file && is_idle(node))
        file_lock(self, node_file(node), 0, 0, NULL);
    else
        node_unlock_writing(self, node);
}

void source_add_remedy(GError **error, const char *remedy)
{
    if (!error || !*error)
        return;
    char *sentence = g_strconcat((*error)->message, "; ", remedy, NULL);
    g_free((*error)->message);
    (*error)->message = sentence;
}

static bool is_refused_writing(int r)
{
    return r == -EACCES || r == -EROFS || r == -EPERM;
}

// What to do about `r`, why `path` could not be opened; owned, or NULL. --read-only is advised only
// where it works.
static char *open_remedy(Fiber *self, const char *path, bool writable, int r)
{
    struct rlimit limit;
    if (r == -EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0)
        return g_strdup_printf("each file takes a descriptor, and this process may have %" PRIu64
                               ": raise the hard limit (ulimit -Hn, or LimitNOFILE= of the unit), "
                               "or make the chain shorter",
                               (uint64_t)limit.rlim_cur);
    if (r == -ENFILE)
        return g_strdup("the whole machine has no descriptor left: raise the sysctl fs.file-max");
    if (!writable || !is_refused_writing(r))
        return NULL;
    File *file;
    if (file_open(self, path, 0, &file, NULL) < 0)
        return NULL;
    file_close(self, file);
    return g_strdup("--read-only opens it without writing");
}

int source_open(Fiber *self, const char *path, const LayerOptions *options, SourceMode *mode,
                Source *ret_source, GError **error)
{
    FileOpenFlags direct = mode->is_direct ? FILE_DIRECT : 0;
    FileOpenFlags writable = mode->is_writable ? FILE_WRITABLE : 0;
    File *file = NULL;
    g_autoptr(GError) refusal = NULL;
    int r = file_open(self, path, writable | direct, &file, &refusal);
    if (is_refused_writing(r) && writable && mode->may_fall_back &&
        file_open(self, path, direct, &file, NULL) == 0) {
        mode->is_writable = false;
        r = 0;
    }
    if (r == 0) {
        if (!mode->is_locked)
            file_take_no_locks(file);
        if (mode->is_inactive)
            file_set_active(self, file, false, NULL);
        file_set_event_fn(file, options->file_event, options->file_event_arg);
        *ret_source = (Source){.file = file};
        return 0;
    }
    g_autofree char *remedy = open_remedy(self, path, writable, r);
    if (remedy)
        source_add_remedy(&refusal, remedy);
    g_propagate_error(error, g_steal_pointer(&refusal));
    return r;
}

int source_open_confined(Fiber *self, const char *path, const LayerOptions *options,
                         SourceMode *mode, Source *ret_source, GError **error)
{
    const char *const *dirs = options->allowed_dirs;
    AllowedFile allowed;
    Source source = {0};
    int r = allowed_dirs_check(self, dirs, path, &allowed, error);
    if (r == 0)
        r = source_open(self, path, options, mode, &source, error);
    if (r == 0)
        r = allowed_dirs_confirm(dirs, source.file, &allowed, error);
    allowed_file_release(&allowed);
    if (r == 0)
        *ret_source = source;
    else
        source_close(self, &source);
    return r;
}

// -- nodes ----------------------------------------------------------------------------------------

static int find_node(const LayerOptions *options, const char *name, Node **ret_node, GError **error)
{
    *ret_node = options->find_node ? options->find_node(options->find_arg, name) : NULL;
    return *ret_node ? 0
                     : error_set(error, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
}

// `node` as the file of what lies in it. A new reference. The mode of one that was there before is
// its own.
static int file_of(Node *node, bool was_there, SourceMode *mode, File **ret_file, GError **error)
{
    File *file = node->ops->is_file ? node_file(node) : NULL;
    bool is_writable = file ? file_is_writable(file) : !node->read_only;
    if (mode->is_writable && !is_writable) {
        if (!mode->may_fall_back && !mode->follows)
            return error_set(error, -EACCES, "Block node is read-only");
        mode->is_writable = false;
    }
    if (file) {
        *ret_file = file_ref(file);
        return 0;
    }
    int r = node_file_new(node, mode->is_writable || (was_there && is_writable), ret_file, error);
    if (r == 0 && was_there)
        file_keep_mode(*ret_file);
    return r;
}

int source_file_of(Node *node, bool is_writable, File **ret_file, GError **error)
{
    SourceMode mode = {.is_writable = is_writable};
    return file_of(node, true, &mode, ret_file, error);
}

int source_take_config(Fiber *self, const NodeConfig *config, Source *source, GError **error)
{
    source->config = config;
    if (config->driver != &host_device_driver || file_is_block_device(source->file))
        return 0;
    int r = error_set(error, -EINVAL,
                      "'host_device' driver requires '%s' to be either a character or block device",
                      file_path(source->file));
    source_close(self, source);
    return r;
}

int source_make_file(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     SourceMode mode, Node **ret_node, GError **error)
{
    Source source;
    int r = source_open(self, driver_value_str(config->values, "filename", NULL), options, &mode,
                        &source, error);
    if (r == 0)
        r = source_take_config(self, config, &source, error);
    if (r < 0)
        return r;
    *ret_node = node_ref(source_node(&source));
    source_close(self, &source);
    return 0;
}

// Of one node that has others below it.
typedef struct Made {
    const NodeConfig *config;
    SourceMode mode;
    Node *below, *target; // NULL: there is none
} Made;

// A format that has no metadata, and no layers.
static int make_format(Fiber *self, const LayerOptions *options, const Made *made, Node **ret_node,
                       GError **error)
{
    const NodeConfig *config = made->config;
    SourceMode mode = made->mode;
    bool was_there = node_config_below(config)->node;
    File *file;
    DriverImage *image;
    mode.follows = true;
    int r = file_of(made->below, was_there, &mode, &file, error);
    if (r < 0)
        return r;
    DriverOptions made_of = {
        .name = file_path(file),
        .is_writable = mode.is_writable,
        .is_shared = mode.is_shared,
        .is_inactive = mode.is_inactive,
        .values = config->values,
        .memory = options->memory,
        .events = options->events,
    };
    r = config->driver->open(self, file, &made_of, &image, error);
    if (r == 0)
        r = config->driver->load(self, image, NULL, ret_node, error);
    if (r == 0)
        node_add_child(*ret_node, made->below);
    return r;
}

static int make_by_driver(Fiber *self, const LayerOptions *options, const Made *made,
                          Node **ret_node, GError **error)
{
    const NodeConfig *config = made->config;
    if (config->driver->is_remote && options->refuses_remote)
        return error_set(error, -EREMOTE, "%s is on another machine", config->driver->name);
    DriverOptions made_of = {
        .name = driver_value_str(config->values, "node-name", config->driver->name),
        .is_writable = made->mode.is_writable,
        .values = config->values,
        .memory = options->memory,
        .throttle_groups = options->throttle_groups,
        .tls_creds = options->tls_creds,
        .events = options->events,
        .target = made->target,
        .find_node = options->find_node,
        .find_arg = options->find_arg,
    };
    return config->driver->make(self, &made_of, made->below, ret_node, error);
}

typedef struct Making {
    const LayerOptions *options;
    GArray *made;
} Making;

static int make_child(Fiber *self, const Making *m, const NodeConfigChild *child, SourceMode above,
                      int number_above, Node **ret_node, GError **error);

static int make_over(Fiber *self, const Making *m, const NodeConfig *config, SourceMode mode,
                     Node **ret_node, GError **error)
{
    const NodeConfigChild *below = node_config_below(config);
    const NodeConfigChild *target = node_config_child(config, "target");
    int number = (int)m->made->len - 1;
    Made made = {.config = config, .mode = mode};
    int r = below ? make_child(self, m, below, mode, number, &made.below, error) : 0;
    if (r == 0 && below) // an image in it may have made it longer
        r = node_remeasure(self, made.below);
    if (r == 0 && target)
        r = make_child(self, m, target, mode, number, &made.target, error);
    if (r == 0 && target)
        r = layer_lock_node(self, made.target, true, error);
    if (r == 0)
        r = config->driver->open ? make_format(self, m->options, &made, ret_node, error)
                                 : make_by_driver(self, m->options, &made, ret_node, error);
    node_unref_close(self, made.target);
    node_unref_close(self, made.below);
    return r;
}

// A new reference on what `child` names or describes. Recursion is bounded by what a description
// may be.
static int make_child(Fiber *self, const Making *m, const NodeConfigChild *child, SourceMode above,
                      int number_above, Node **ret_node, GError **error)
{
    const NodeConfig *config = child->config;
    const Driver *driver = config ? config->driver : NULL;
    Node *node;
    if (child->node) {
        int r = find_node(m->options, child->node, &node, error);
        if (r == 0)
            *ret_node = node_ref(node);
        return r;
    }
    if (!driver || driver->probe)
        return error_set(error, -ENOTSUP, "an image inside an image is not supported");
    SourceMode mode = source_mode_of(config, above);
    LayerNode made = {NULL, config, number_above, child->role};
    guint number = m->made->len;
    g_array_append_val(m->made, made);
    int r = driver->is_file ? source_make_file(self, config, m->options, mode, &node, error)
                            : make_over(self, m, config, mode, &node, error);
    if (r < 0)
        return r;
    node_config_apply(config, node);
    g_array_index(m->made, LayerNode, number).node = node_ref(node);
    *ret_node = node;
    return 0;
}

int source_take(Fiber *self, const NodeConfigChild *child, const LayerOptions *options,
                SourceMode *mode, Source *ret_source, GError **error)
{
    Making m = {options, made_new()};
    Source source = {.made = m.made};
    int r = make_child(self, &m, child, *mode, -1, &source.node, error);
    if (r == 0)
        r = file_of(source.node, child->node, mode, &source.file, error);
    if (r < 0)
        source_close(self, &source);
    else
        *ret_source = source;
    return r;
}
