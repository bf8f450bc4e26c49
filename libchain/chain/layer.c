// SPDX-License-Identifier: LGPL-2.1-or-later
// One image of a chain, from its name to its node. The file is locked before its first byte is
// read, and nothing is written before layer_load(). In a fiber, on the loop that the node will live
// on.
#include "chain-core/layer.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/shell-word.h"
#include "chain/foreign-image.h"
#include "chain/image-name.h"
#include "chain/source.h"

struct Layer {
    const LayerOptions *options;
    const Layer *above;       // the layer that named it, or NULL
    const NodeConfig *config; // what it is made of
    NodeConfig *own_config;   // the same, when a name was parsed for it
    SourceMode mode;
    Source file, data;    // the external data file is the second
    const char *recorded; // what the header of `above` calls it; NULL: a description did
    const Driver *driver; // NULL until known
    DriverOptions driver_options;
    DriverImage *image; // NULL until opened, and once loaded
    uint64_t file_id[2];
};

static Layer *layer_new(const LayerOptions *options, const Layer *above)
{
    g_assert(options->memory);
    Layer *layer = g_new0(Layer, 1);
    layer->options = options;
    layer->above = above;
    return layer;
}

void layer_drop(Fiber *self, Layer *layer)
{
    if (!layer)
        return;
    if (layer->image)
        layer->driver->drop(self, layer->image);
    source_close(self, &layer->data);
    source_close(self, &layer->file);
    node_config_free(layer->own_config);
    g_free(layer);
}

const char *layer_format(const Layer *layer)
{
    return layer->driver->name;
}

bool layer_is_writable(const Layer *layer)
{
    return layer->mode.is_writable;
}

// What a description, or a name, says that it lies in at the bottom.
static const char *described_path(const NodeConfig *config)
{
    for (;;) {
        const char *path = driver_value_str(config->values, "filename", NULL);
        const NodeConfigChild *child = node_config_below(config);
        if (path || !child)
            return path ?: config->driver->name;
        if (child->node)
            return child->node;
        config = child->config;
    }
}

const char *layer_path(const Layer *layer)
{
    return layer->file.file ? file_path(layer->file.file) : described_path(layer->config);
}

// An option of the file, else of the layer, else what the layer above has (`inherited`).
static bool effective(const NodeConfig *file, const NodeConfig *config, const char *path,
                      bool inherited)
{
    bool of_layer = driver_value_bool(config->values, path, inherited);
    return file ? driver_value_bool(file->values, path, of_layer) : of_layer;
}

static bool is_file(const NodeConfigChild *child)
{
    return child->config && child->config->driver && child->config->driver->is_file;
}

// Takes what the layer is made of, and finds out how its files are to be opened.
static int set_config(Layer *layer, const NodeConfig *config, GError **error)
{
    const LayerOptions *o = layer->options;
    const SourceMode *above = layer->above ? &layer->above->mode : NULL;
    const NodeConfigChild *child = node_config_child(config, "file");
    if (!child || (config->driver && !config->driver->open))
        return error_set(error, -ENOTSUP, "only a format can be a layer, and %s is none",
                         config->driver ? config->driver->name : "this");
    const NodeConfig *file = is_file(child) ? child->config : NULL;
    const char *locking = file ? driver_value_str(file->values, "locking", "auto") : "auto";
    bool is_shared =
        effective(file, config, "force-share", above ? above->is_shared : o->force_share);
    layer->config = config;
    layer->mode = (SourceMode){
        .is_writable = !above && !o->read_only && !is_shared && !o->snapshot &&
                       !driver_value_str(config->values, "snapshot", NULL) &&
                       !driver_value_bool(config->values, "read-only", false),
        .is_direct = effective(file, config, "cache.direct", above ? above->is_direct : o->direct),
        .is_shared = is_shared,
        .is_inactive = o->is_inactive,
        .is_locked = !is_shared && !g_str_equal(locking, "off"),
        .may_fall_back = effective(file, config, "auto-read-only", o->auto_read_only),
        .follows = config->driver && !config->driver->probe,
    };
    if (is_shared && o->is_inactive)
        return error_set(error, -EINVAL,
                         "force-share=on keeps nobody out, so such a node cannot be inactive");
    if (!layer->mode.is_writable || !file || !driver_value_bool(file->values, "read-only", false))
        return 0;
    layer->mode.is_writable = false;
    return layer->mode.follows || layer->mode.may_fall_back
               ? 0
               : error_set(error, -EACCES, "Block node is read-only");
}

static int refuse_loop(const Layer *layer, GError **error)
{
    bool has_id = layer->file_id[0] || layer->file_id[1]; // what lies in a node has none
    for (const Layer *above = layer->above; above; above = above->above) {
        if (has_id && memcmp(above->file_id, layer->file_id, sizeof layer->file_id) == 0)
            return error_set(error, -ELOOP,
                             "%s: its backing file %s is the same file as %s further up, so the "
                             "chain is a loop; record the right one: qemu-img rebase -u -F FORMAT "
                             "-b NAME IMAGE",
                             layer_path(layer->above), layer_path(layer), layer_path(above));
    }
    return 0;
}

// -- format ---------------------------------------------------------------------------------------

// qemu-img rebase, which records the format of this layer in its overlay. Owned.
static char *record_command(const Layer *layer, const char *format)
{
    g_autofree char *name = shell_word(layer->recorded);
    g_autofree char *overlay = shell_word(layer_path(layer->above));
    return g_strdup_printf("qemu-img rebase -u -F %s -b %s %s", format, name, overlay);
}

// It is not of the format that was said (NULL: not of any).
static int refuse_format(Fiber *self, const Layer *layer, File *file, GError **error)
{
    const char *path = layer_path(layer), *format = layer->driver ? layer_format(layer) : "qcow2";
    int r = foreign_image_check(self, file, error);
    if (r < 0)
        return r;
    if (layer->recorded) {
        g_autofree char *command = record_command(layer, "raw");
        return error_set(error, -EINVAL,
                         "%s: not a %s image, though %s records it as one; if it is a raw one, "
                         "record that: %s",
                         path, format, layer_path(layer->above), command);
    }
    if (layer->driver)
        return error_set(error, -EINVAL,
                         "%s: not a %s image, though that is the format given; if it is a raw "
                         "one, give raw",
                         path, format);
    return error_set(error, -EINVAL,
                     "%s: not a %s image; if it is a raw one, say so with --format raw", path,
                     format);
}

// A guest may have written it there, or the format is wrong: nobody but the user can tell.
static void warn_of_magic(const Layer *layer, const Driver *looks_like)
{
    const NodeEvents *events = layer->options->events;
    if (!events || !events->notice)
        return;
    g_autofree char *remedy = NULL;
    if (layer->recorded) {
        g_autofree char *command = record_command(layer, looks_like->name);
        remedy = g_strdup_printf("%s records it as %s; if that is wrong: %s",
                                 layer_path(layer->above), layer_format(layer), command);
    } else {
        remedy = g_strdup("that is the format given; if it is wrong, leave it out");
    }
    g_autofree char *sentence =
        g_strdup_printf("%s: read as %s, though it begins like a %s image: %s", layer_path(layer),
                        layer_format(layer), looks_like->name, remedy);
    events->notice(events, sentence);
}

// Finds the format where it was not said, and checks the one that was. No content but a magic is
// ever believed, and not on a device: a guest writes what it likes into a raw image
// (CVE-2008-2004).
static int find_format(Fiber *self, Layer *layer, File *file, GError **error)
{
    const char *path = layer_path(layer);
    if (!layer->driver && file_is_block_device(file))
        return error_set(error, -EINVAL,
                         "%s: a device's format is not guessed from its content; say it with "
                         "--format raw (or qcow2)",
                         path);
    bool needs_magic = !layer->driver || layer->driver->probe;
    if (!needs_magic && layer->file.node && !layer->file.node->ops->is_file)
        return 0; // a read may do something there: copy, or use an error up
    uint8_t head[DRIVER_PROBE_BYTES] = {0};
    int r = file_read(self, file, host_off(0), head, sizeof head);
    if (r < 0 && needs_magic)
        return error_set(error, r, "%s: cannot read its first bytes: %s", path, g_strerror(-r));
    const Driver *looks_like = r < 0 ? NULL : driver_probe(head, sizeof head);
    if (needs_magic && (!looks_like || (layer->driver && looks_like != layer->driver)))
        return refuse_format(self, layer, file, error);
    const json_t *values = layer->config->values;
    bool is_part = json_object_get(values, "offset") || json_object_get(values, "size");
    if (!needs_magic && looks_like && !is_part)
        warn_of_magic(layer, looks_like);
    if (!layer->driver)
        layer->driver = looks_like;
    return 0;
}

// -- external data files --------------------------------------------------------------------------

// By a user, or, further down, perhaps by an image.
static int open_path(Fiber *self, Layer *layer, const char *path, Source *ret_source,
                     GError **error)
{
    return layer->above
               ? source_open_confined(self, path, layer->options, &layer->mode, ret_source, error)
               : source_open(self, path, layer->options, &layer->mode, ret_source, error);
}

// Of a file in the folder of the image at `path`, whether the header says the folder or not; NULL:
// it is none.
static const char *name_in_same_folder(const char *path, const char *name)
{
    if (g_path_is_absolute(name)) {
        g_autofree char *image = g_canonicalize_filename(path, NULL);
        g_autofree char *folder = g_path_get_dirname(image);
        g_autofree char *own_folder = g_path_get_dirname(name);
        if (!g_str_equal(folder, own_folder))
            return NULL;
        name = strrchr(name, '/') + 1;
    }
    bool is_plain =
        *name && !strchr(name, '/') && !g_str_equal(name, "..") && !g_str_equal(name, ".");
    return is_plain ? name : NULL;
}

static int open_recorded_data(Fiber *self, Layer *layer, GError **error)
{
    const char *path = layer_path(layer), *recorded = layer->image->data_name;
    const char *name = name_in_same_folder(path, recorded);
    if (!name)
        return error_set(error, -EINVAL,
                         "%s: its data file '%s' is not the name of a file in the same folder; "
                         "move it there and record the name: qemu-img amend -o data_file=NAME "
                         "IMAGE",
                         path, recorded);
    g_autofree char *data_path = image_name_beside(path, name);
    int r =
        source_open_confined(self, data_path, layer->options, &layer->mode, &layer->data, error);
    if (r < 0)
        g_prefix_error(error, "%s: its data file: ", path);
    return r;
}

static int open_described_data(Fiber *self, Layer *layer, const NodeConfigChild *child,
                               GError **error)
{
    if (!is_file(child))
        return source_take(self, child, layer->options, &layer->mode, &layer->data, error);
    int r = open_path(self, layer, driver_value_str(child->config->values, "filename", NULL),
                      &layer->data, error);
    return r < 0 ? r : source_take_config(self, child->config, &layer->data, error);
}

// What the description says of it, else what the header does.
static int open_data_file(Fiber *self, Layer *layer, GError **error)
{
    const NodeConfigChild *child = node_config_child(layer->config, "data-file");
    const char *path = layer_path(layer), *name = layer->image->data_name;
    if (!name)
        return child ? error_set(error, -EINVAL,
                                 "'data-file' can only be set for images with an external data "
                                 "file")
                     : 0;
    if (layer->options->no_data_files)
        return error_set(error, -EACCES,
                         "%s: it keeps its data in another file ('%s'), which is not allowed here; "
                         "qemu-img convert makes an image that does not",
                         path, name);
    bool was_writable = layer->mode.is_writable;
    int r = child ? open_described_data(self, layer, child, error)
                  : open_recorded_data(self, layer, error);
    if (r == 0 && was_writable != layer->mode.is_writable)
        r = error_set(error, -EACCES, "%s: its data file cannot be written", path);
    if (r < 0)
        return r;
    r = source_lock(self, &layer->data, &layer->mode, error);
    if (r < 0)
        g_prefix_error(error, "%s: its data file: ", path);
    return r;
}

// -- opening --------------------------------------------------------------------------------------

static int open_image(Fiber *self, Layer *layer, GError **error)
{
    File *file = layer->file.file;
    const LayerOptions *o = layer->options;
    const char *snapshot =
        driver_value_str(layer->config->values, "snapshot", layer->above ? NULL : o->snapshot);
    file_identity(file, layer->file_id);
    int r = refuse_loop(layer, error); // before its locks, which our own would conflict with
    if (r == 0)
        r = source_lock(self, &layer->file, &layer->mode, error);
    if (r == 0)
        r = find_format(self, layer, file, error);
    if (r == 0 && snapshot && !layer->driver->has_snapshots)
        r = error_set(error, -EINVAL, "%s: a %s image has no internal snapshots", layer_path(layer),
                      layer_format(layer));
    if (r < 0)
        return r;
    layer->driver_options = (DriverOptions){
        .name = layer_path(layer),
        .is_writable = layer_is_writable(layer),
        .is_shared = layer->mode.is_shared,
        .is_inactive = layer->mode.is_inactive,
        .snapshot = snapshot,
        .values = layer->config->values,
        .memory = o->memory,
        .events = o->events,
    };
    r = layer->driver->open(self, file_ref(file), &layer->driver_options, &layer->image, error);
    return r < 0 ? r : open_data_file(self, layer, error);
}

static int open_source(Fiber *self, Layer *layer, GError **error)
{
    const NodeConfigChild *child = node_config_child(layer->config, "file");
    if (is_file(child)) {
        int r = open_path(self, layer, layer_path(layer), &layer->file, error);
        return r < 0 ? r : source_take_config(self, child->config, &layer->file, error);
    }
    if (layer->recorded && layer->options->allowed_dirs)
        return error_set(error, -EACCES, "%s is no file in a folder that is allowed",
                         layer->recorded);
    return source_take(self, child, layer->options, &layer->mode, &layer->file, error);
}

static int open_layer(Fiber *self, Layer *layer, GError **error)
{
    const Layer *above = layer->above;
    int r = open_source(self, layer, error);
    if (r == 0)
        return open_image(self, layer, error);
    if (above)
        g_prefix_error(error, "%s: its backing file: ", layer_path(above));
    if (above && r == -ENOENT)
        source_add_remedy(error, "if it was moved, record where to: qemu-img rebase -u -F FORMAT "
                                 "-b NAME IMAGE");
    return r;
}

// The format comes from the caller (`wanted`) or from the name; not two different ones.
static int choose_format(Layer *layer, const Driver *wanted, const char *conflict, GError **error)
{
    const Driver *said = layer->config->driver;
    if (said && wanted && said != wanted)
        return error_set(error, -EINVAL, conflict, wanted->name, said->name);
    layer->driver = wanted ?: said;
    return 0;
}

// Takes `layer`, with the result `r` so far.
static int open_or_drop(Fiber *self, Layer *layer, int r, Layer **ret_layer, GError **error)
{
    if (r == 0)
        r = open_layer(self, layer, error);
    if (r < 0)
        layer_drop(self, layer);
    else
        *ret_layer = layer;
    return r;
}

int layer_open(Fiber *self, const char *name, const LayerOptions *options, Layer **ret_layer,
               GError **error)
{
    Layer *layer = layer_new(options, NULL);
    int r = node_config_new_name(name, options->format, &layer->own_config, error);
    if (r == 0)
        r = set_config(layer, layer->own_config, error);
    if (r == 0)
        layer->driver = layer->config->driver;
    return open_or_drop(self, layer, r, ret_layer, error);
}

int layer_open_config(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                      Layer **ret_layer, GError **error)
{
    Layer *layer = layer_new(options, NULL);
    int r = set_config(layer, config, error);
    layer->driver = config->driver;
    return open_or_drop(self, layer, r, ret_layer, error);
}

// -- what lies below ------------------------------------------------------------------------------

// What the description of the layer above says lies below it.
static int take_described(Layer *layer, const NodeConfig *config, GError **error)
{
    int r = set_config(layer, config, error);
    if (r == 0 && !config->driver)
        r = error_set(error, -EINVAL,
                      "the json: name says that %s lies below it, but not its format; give its "
                      "\"backing\" a \"driver\": qcow2 or raw",
                      layer_path(layer));
    if (r < 0)
        g_prefix_error(error, "%s: ", layer_path(layer->above));
    layer->driver = config->driver;
    return r;
}

static int parse_recorded(Layer *layer, const DriverImage *image, GError **error)
{
    const char *path = layer_path(layer->above);
    const Driver *format = NULL;
    layer->recorded = image->backing_name;
    int r = image_name_parse(image->backing_name, path, &layer->own_config, error);
    if (r == 0)
        r = set_config(layer, layer->own_config, error);
    if (r == 0 && image->backing_format)
        r = image_format_parse(image->backing_format, &format, error);
    if (r == 0)
        r = choose_format(layer, format, "it is recorded both as %s and as %s", error);
    if (r < 0) {
        g_prefix_error(error, "%s: its backing file '%s': ", path, image->backing_name);
        return r;
    }
    // Without a recorded format it might be anything.
    if (!layer->driver) {
        g_autofree char *quoted_name = shell_word(image->backing_name);
        g_autofree char *quoted_path = shell_word(path);
        return error_set(error, -EINVAL,
                         "%s: the format of its backing file '%s' is not recorded; record it: "
                         "qemu-img rebase -u -F qcow2 -b %s %s (or -F raw)",
                         path, image->backing_name, quoted_name, quoted_path);
    }
    return 0;
}

int layer_open_next(Fiber *self, Layer *above, Layer **ret_layer, GError **error)
{
    const NodeConfigChild *described = node_config_child(above->config, "backing");
    if (described && described->config)
        return layer_open_described(self, above, described->config, ret_layer, error);
    if (described || !above->image->backing_name || !*above->image->backing_name) {
        *ret_layer = NULL;
        return 0;
    }
    Layer *layer = layer_new(above->options, above);
    int r = parse_recorded(layer, above->image, error);
    return open_or_drop(self, layer, r, ret_layer, error);
}

int layer_open_described(Fiber *self, Layer *above, const NodeConfig *config, Layer **ret_layer,
                         GError **error)
{
    Layer *layer = layer_new(above->options, above);
    int r = take_described(layer, config, error);
    return open_or_drop(self, layer, r, ret_layer, error);
}

int layer_open_file(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                    Node **ret_node, GError **error)
{
    SourceMode above = {
        .is_writable = !options->read_only,
        .is_direct = options->direct,
        .is_shared = options->force_share,
        .is_inactive = options->is_inactive,
        .may_fall_back = options->auto_read_only,
    };
    int r = source_make_file(self, config, options, source_mode_of(config, above), ret_node, error);
    if (r == 0)
        file_keep_mode(node_file(*ret_node));
    return r;
}

// What it lies in is drained, and moves to another loop, with it.
static void join(Node *node, Node *source)
{
    if (source && !g_ptr_array_find(source->parents, node, NULL))
        node_add_child(node, source);
}

int layer_load(Fiber *self, Layer *layer, Node **ret_node, GError **error)
{
    DriverImage *image = g_steal_pointer(&layer->image);
    File *data = layer->data.file ? file_ref(layer->data.file) : NULL;
    int r = layer->driver->load(self, image, data, ret_node, error);
    if (r == 0) {
        join(*ret_node, layer->file.node);
        join(*ret_node, layer->data.node);
    }
    return r;
}

const NodeConfig *layer_config(const Layer *layer)
{
    return layer->config;
}

NodeConfig *layer_take_config(Layer *layer)
{
    return g_steal_pointer(&layer->own_config);
}

const GArray *layer_nodes(Layer *layer, const char *role, Node *node)
{
    Source *source = g_str_equal(role, "file") ? &layer->file : &layer->data;
    join(node, source_node(source));
    return source_nodes(source);
}
