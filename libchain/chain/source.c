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

void source_close(Fiber *self, Source *source)
{
    node_unref_close(self, g_steal_pointer(&source->node));
    file_close(self, g_steal_pointer(&source->file));
}

Node *source_node(Source *source)
{
    if (source->file && !source->node)
        source->node = file_node_new(file_ref(source->file));
    return source->node;
}

int source_lock(Fiber *self, const Source *source, const SourceMode *mode, GError **error)
{
    File *file = source->file;
    unsigned held = mode->is_writable ? HELD_WRITING : HELD_READING;
    int r = mode->is_locked ? file_lock(self, file, held, UNSHARED, error) : 0;
    if (r < 0)
        return r;
    // Whoever held the file until now may have made it longer since it was opened.
    r = file_refresh_size(self, file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", file_path(file), g_strerror(-r));
    return 0;
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

// A node that is no file, as one. The mode of one that was there before is its own.
static int hold_node(Node *node, bool was_there, SourceMode *mode, Source *ret_source,
                     GError **error)
{
    File *file;
    mode->is_writable &= !(node->read_only && mode->may_fall_back);
    bool is_writable = mode->is_writable || (was_there && !node->read_only);
    int r = node_file_new(node, is_writable, &file, error);
    if (r < 0)
        return r;
    if (was_there)
        file_keep_mode(file);
    *ret_source = (Source){.file = file, .node = node_ref(node)};
    return 0;
}

static int make_node(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     SourceMode *mode, Node **ret_node, GError **error);

// A new reference on the node that `child` names or describes.
static int make_child(Fiber *self, const NodeConfigChild *child, const LayerOptions *options,
                      SourceMode *mode, Node **ret_node, GError **error)
{
    Source source;
    const Driver *driver = child->config ? child->config->driver : NULL;
    if (child->node) {
        Node *node = options->find_node ? options->find_node(options->find_arg, child->node) : NULL;
        if (!node)
            return error_set(error, -ENODEV, "Cannot find device='' nor node-name='%s'",
                             child->node);
        *ret_node = node_ref(node);
        return 0;
    }
    if (driver && driver->make)
        return make_node(self, child->config, options, mode, ret_node, error);
    if (!driver || !driver->is_file)
        return error_set(error, -ENOTSUP, "an image inside an image is not supported");
    const char *path = driver_value_str(child->config->values, "filename", NULL);
    int r = source_open(self, path, options, mode, &source, error);
    if (r < 0)
        return r;
    *ret_node = node_ref(source_node(&source));
    source_close(self, &source);
    return 0;
}

static int make_node(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     SourceMode *mode, Node **ret_node, GError **error)
{
    Node *child = NULL;
    int r = config->n_children
                ? make_child(self, &config->children[0], options, mode, &child, error)
                : 0;
    if (r < 0)
        return r;
    DriverOptions made_of = {
        .name = driver_value_str(config->values, "node-name", config->driver->name),
        .is_writable = mode->is_writable,
        .values = config->values,
        .memory = options->memory,
        .throttle_groups = options->throttle_groups,
        .events = options->events,
    };
    r = config->driver->make(self, &made_of, child, ret_node, error);
    node_unref_close(self, child);
    return r;
}

int source_make(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                SourceMode *mode, Source *ret_source, GError **error)
{
    Node *node;
    int r = make_node(self, config, options, mode, &node, error);
    if (r < 0)
        return r;
    r = hold_node(node, false, mode, ret_source, error);
    node_unref_close(self, node);
    return r;
}

int source_take_node(const char *name, const LayerOptions *options, SourceMode *mode,
                     Source *ret_source, GError **error)
{
    Node *node = options->find_node ? options->find_node(options->find_arg, name) : NULL;
    if (!node)
        return error_set(error, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
    const Driver *driver = driver_find(node->ops->driver);
    if (driver && driver->make)
        return hold_node(node, true, mode, ret_source, error);
    File *file = driver && driver->is_file ? node_file(node) : NULL;
    if (!file)
        return error_set(error, -ENOTSUP, "the node '%s' is not a file, in which an image can lie",
                         name);
    if (mode->is_writable && !file_is_writable(file)) {
        if (!mode->may_fall_back)
            return error_set(error, -EACCES, "the node '%s' is read-only", name);
        mode->is_writable = false;
    }
    *ret_source = (Source){.file = file_ref(file), .node = node_ref(node)};
    return 0;
}
