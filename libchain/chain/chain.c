// SPDX-License-Identifier: LGPL-2.1-or-later
// Opens a chain from the top down (each image names the next), then joins it from the bottom up, so
// that no edge ever appears below a finished chain. Each file is locked before its first byte is
// read. A top that is to be written is first only looked at, through a second descriptor, and
// opened for good when all below it is open: a chain that is refused has not been touched. In a
// fiber.
#include "chain-core/chain.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"
#include "chain/image-name.h"

// What other programs may do meanwhile; as QEMU's block drivers ask for it (RELIABILITY §1).
enum {
    HELD_READING = FILE_PERM_CONSISTENT_READ,
    HELD_WRITING = FILE_PERM_CONSISTENT_READ | FILE_PERM_WRITE | FILE_PERM_RESIZE,
    UNSHARED = FILE_PERM_WRITE | FILE_PERM_RESIZE,
};

typedef struct Opening {
    const ChainOpenOptions *options;
    GPtrArray *nodes;   // Node, owned, top first; a writable top is NULL until the end
    GPtrArray *files;   // File of each node, borrowed
    GPtrArray *notices; // char *
    File *top_file;     // of a writable qcow2 top until it is opened; owned
    const char *top_format;
} Opening;

// The next image to open.
typedef struct Step {
    ImageName name;
    const char *format; // literal, NULL: not recorded
    char *overlay;      // path of the image that named it, or NULL
} Step;

static void step_clear(Step *step)
{
    image_name_clear(&step->name);
    g_free(step->overlay);
    *step = (Step){0};
}

static bool step_is_writable(const Opening *o, const Step *step)
{
    return !step->overlay && !step->name.is_read_only && !o->options->read_only &&
           !o->options->force_share && !o->options->snapshot;
}

static int lock_file(Fiber *self, const Opening *o, File *file, bool writable, GError **error)
{
    unsigned held = writable ? HELD_WRITING : HELD_READING;
    int r = o->options->force_share ? 0 : file_lock(self, file, held, UNSHARED, error);
    if (r < 0)
        return r;
    // Whoever held the file until now may have made it longer since it was opened.
    r = file_refresh_size(self, file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", file_path(file), g_strerror(-r));
    return 0;
}

static void add_remedy(GError **error, const char *remedy)
{
    if (!error || !*error)
        return;
    char *sentence = g_strconcat((*error)->message, "; ", remedy, NULL);
    g_free((*error)->message);
    (*error)->message = sentence;
}

static int open_file(Fiber *self, const Opening *o, const char *path, bool writable,
                     File **ret_file, GError **error)
{
    FileOpenFlags flags = (writable ? FILE_WRITABLE : 0) | (o->options->direct ? FILE_DIRECT : 0);
    int r = file_open(self, path, flags, ret_file, error);
    if (writable && (r == -EACCES || r == -EROFS || r == -EPERM))
        add_remedy(error, "--read-only opens it without writing");
    return r;
}

// Nothing but the magic of qcow2 is ever believed, and not on a device: a guest writes what it
// likes into a raw image (CVE-2008-2004).
static int find_top_format(Fiber *self, File *file, const char **ret_format, GError **error)
{
    static const uint8_t magic[4] = {'Q', 'F', 'I', 0xfb};
    const char *path = file_path(file);
    if (file_is_block_device(file))
        return error_set(error, -EINVAL,
                         "%s: a device's format is not guessed from its content; say it with "
                         "--format raw (or qcow2)",
                         path);
    uint8_t head[sizeof magic];
    int r = file_read(self, file, host_off(0), head, sizeof head);
    if (r < 0)
        return error_set(error, r, "%s: cannot read its first bytes: %s", path, g_strerror(-r));
    if (memcmp(head, magic, sizeof magic) != 0)
        return error_set(error, -EINVAL,
                         "%s: not a qcow2 image; if it is a raw one, say so with --format raw",
                         path);
    *ret_format = "qcow2";
    return 0;
}

static int refuse_loop(const Opening *o, const Step *step, File *file, GError **error)
{
    uint64_t id[2], other[2];
    file_identity(file, id);
    for (guint i = 0; i < o->files->len; i++) {
        const File *above = o->files->pdata[i];
        file_identity(above, other);
        if (memcmp(other, id, sizeof id) == 0)
            return error_set(error, -ELOOP,
                             "%s: its backing file %s is the same file as %s further up, so the "
                             "chain is a loop; record the right one: qemu-img rebase -u -F FORMAT "
                             "-b NAME IMAGE",
                             step->overlay, file_path(file), file_path(above));
    }
    return 0;
}

static int open_data_file(Fiber *self, const Opening *o, Qcow2Image *image, bool writable,
                          GError **error)
{
    const char *name = qcow2_image_data_file_name(image);
    if (!name)
        return 0;
    const char *path = file_path(qcow2_image_file(image));
    if (!*name || strchr(name, '/') || g_str_equal(name, "..") || g_str_equal(name, "."))
        return error_set(error, -EINVAL,
                         "%s: its data file '%s' is not a plain name of a file in the same folder; "
                         "move it there and record the name: qemu-img amend -o data_file=NAME "
                         "IMAGE",
                         path, name);
    g_autofree char *data_path = image_name_beside(path, name);
    File *file = NULL;
    int r = open_file(self, o, data_path, writable, &file, error);
    if (r == 0)
        r = lock_file(self, o, file, writable, error);
    if (r < 0) {
        file_close(self, file);
        g_prefix_error(error, "%s: its data file: ", path);
        return r;
    }
    qcow2_image_set_data_file(image, file);
    return 0;
}

// Which image comes next, if any. Without a recorded format it might be anything.
static int find_next(const Qcow2Image *image, const ImageName *name, const char *path,
                     Step *ret_next, GError **error)
{
    const char *backing = qcow2_image_backing_name(image);
    const char *recorded = qcow2_image_backing_format(image);
    if (!backing || !*backing || name->is_backing_cut)
        return 0;
    Step next = {0};
    int r = image_name_parse(backing, path, &next.name, error);
    if (r == 0 && recorded)
        r = image_format_parse(recorded, &next.format, error);
    if (r == 0 && !next.format)
        next.format = next.name.format;
    if (r == 0 && next.name.format && next.format != next.name.format &&
        !g_str_equal(next.format, next.name.format))
        r = error_set(error, -EINVAL, "it is recorded both as %s and as %s", next.format,
                      next.name.format);
    if (r < 0) {
        g_prefix_error(error, "%s: its backing file '%s': ", path, backing);
        step_clear(&next);
        return r;
    }
    if (!next.format) {
        g_autofree char *quoted_name = g_shell_quote(backing);
        g_autofree char *quoted_path = g_shell_quote(path);
        step_clear(&next);
        return error_set(error, -EINVAL,
                         "%s: the format of its backing file '%s' is not recorded; record it: "
                         "qemu-img rebase -u -F qcow2 -b %s %s (or -F raw)",
                         path, backing, quoted_name, quoted_path);
    }
    next.overlay = g_strdup(path);
    *ret_next = next;
    return 0;
}

// Takes `file`.
static int open_view(Fiber *self, Opening *o, File *file, bool writable, const char *snapshot,
                     Qcow2Image **ret_image, Node **ret_node, GError **error)
{
    Qcow2OpenOptions options = {
        .read_only = !writable, .memory = o->options->memory, .events = o->options->events};
    Qcow2Image *image;
    Node *node;
    int r = qcow2_image_open(self, file, &options, &image, error);
    if (r < 0)
        return r;
    r = open_data_file(self, o, image, writable, error);
    if (r == 0)
        r = qcow2_view_new(self, image, snapshot, &node, error);
    if (r < 0) {
        qcow2_image_unref_close(self, image);
        return r;
    }
    if (!snapshot)
        file_identity(file, node->identity.file);
    for (const char *const *n = qcow2_image_notices(image); n && *n; n++)
        g_ptr_array_add(o->notices, g_strdup(*n));
    *ret_image = image;
    *ret_node = node;
    return 0;
}

// Takes `file`, which is locked.
static int open_qcow2(Fiber *self, Opening *o, const Step *step, File *file, Step *ret_next,
                      GError **error)
{
    const char *snapshot = step->overlay ? NULL : o->options->snapshot;
    Qcow2Image *image;
    Node *node;
    int r = open_view(self, o, file, false, snapshot, &image, &node, error);
    if (r < 0)
        return r;
    r = find_next(image, &step->name, file_path(file), ret_next, error);
    qcow2_image_unref_close(self, image);
    if (r < 0)
        node_unref_close(self, node);
    else
        g_ptr_array_add(o->nodes, node);
    return r;
}

// Takes `file`, which is locked and stays open for open_writable_top().
static int look_at_writable_top(Fiber *self, Opening *o, const Step *step, File *file,
                                Step *ret_next, GError **error)
{
    o->top_file = file;
    g_ptr_array_add(o->nodes, NULL);
    Qcow2OpenOptions options = {.read_only = true, .memory = o->options->memory};
    Qcow2Image *image;
    File *again;
    int r = open_file(self, o, step->name.path, false, &again, error);
    if (r == 0)
        r = qcow2_image_open(self, again, &options, &image, error);
    if (r < 0)
        return r;
    r = find_next(image, &step->name, step->name.path, ret_next, error);
    qcow2_image_unref_close(self, image);
    return r;
}

static int open_writable_top(Fiber *self, Opening *o, GError **error)
{
    File *file = g_steal_pointer(&o->top_file);
    if (!file)
        return 0;
    Qcow2Image *image;
    Node *node;
    int r = open_view(self, o, file, true, NULL, &image, &node, error);
    if (r < 0)
        return r;
    qcow2_image_unref_close(self, image);
    o->nodes->pdata[0] = node;
    return 0;
}

static int open_raw(Fiber *self, Opening *o, File *file, GError **error)
{
    Node *node;
    int r = raw_node_new(self, file, &node, error);
    if (r == 0)
        g_ptr_array_add(o->nodes, node);
    return r;
}

// Opens the image of `step` as the next node of the chain. `ret_next` is all zero at the base.
static int open_image(Fiber *self, Opening *o, const Step *step, Step *ret_next, GError **error)
{
    bool writable = step_is_writable(o, step);
    File *file;
    int r = open_file(self, o, step->name.path, writable, &file, error);
    if (r < 0) {
        if (step->overlay)
            g_prefix_error(error, "%s: its backing file: ", step->overlay);
        if (step->overlay && r == -ENOENT)
            add_remedy(error, "if it was moved, record where to: qemu-img rebase -u -F FORMAT -b "
                              "NAME IMAGE");
        return r;
    }
    const char *format = step->format;
    r = refuse_loop(o, step, file, error); // before its locks, which our own would conflict with
    if (r == 0)
        r = lock_file(self, o, file, writable, error);
    if (r == 0 && !format)
        r = find_top_format(self, file, &format, error);
    if (r == 0 && !step->overlay && o->options->snapshot && g_str_equal(format, "raw"))
        r = error_set(error, -EINVAL, "%s: a raw image has no internal snapshots", step->name.path);
    if (r < 0) {
        file_close(self, file);
        return r;
    }
    g_ptr_array_add(o->files, file);
    if (!step->overlay)
        o->top_format = format;
    if (g_str_equal(format, "raw"))
        return open_raw(self, o, file, error);
    return writable ? look_at_writable_top(self, o, step, file, ret_next, error)
                    : open_qcow2(self, o, step, file, ret_next, error);
}

static int open_top_step(const char *path, const ChainOpenOptions *options, Step *ret_step,
                         GError **error)
{
    Step step = {0};
    int r = image_name_parse(path, NULL, &step.name, error);
    if (r == 0) {
        step.format = step.name.format;
        if (options->format)
            r = image_format_parse(options->format, &step.format, error);
    }
    if (r < 0) {
        g_prefix_error(error, "%s: ", path);
        step_clear(&step);
        return r;
    }
    *ret_step = step;
    return 0;
}

static int open_all(Fiber *self, Opening *o, const char *path, GError **error)
{
    Step step;
    int r = open_top_step(path, o->options, &step, error);
    while (r == 0 && step.name.path) {
        Step next = {0};
        if (o->nodes->len == CHAIN_MAX_LAYERS)
            r = error_set(error, -E2BIG,
                          "%s: the chain has more than %u layers; make it shorter with qemu-img "
                          "commit or rebase",
                          path, CHAIN_MAX_LAYERS);
        else
            r = open_image(self, o, &step, &next, error);
        step_clear(&step);
        step = next;
    }
    if (r == 0)
        r = open_writable_top(self, o, error);
    else
        step_clear(&step);
    return r;
}

static void close_all(Fiber *self, Opening *o)
{
    for (guint i = 0; i < o->nodes->len; i++)
        node_unref_close(self, o->nodes->pdata[i]);
    file_close(self, o->top_file);
}

// Each node's reference passes from the array to the merged map above it; the top's to the caller.
static Node *join_nodes(Fiber *self, Opening *o)
{
    for (guint i = o->nodes->len - 1; i > 0; i--) {
        chain_set_backing(self, o->nodes->pdata[i - 1], o->nodes->pdata[i], o->options->memory);
        node_unref_close(self, o->nodes->pdata[i]);
    }
    return o->nodes->pdata[0];
}

static void fill_info(Opening *o, ChainInfo *ret_info)
{
    if (!ret_info)
        return;
    ret_info->n_layers = o->nodes->len;
    ret_info->top_format = o->top_format;
    g_ptr_array_add(o->notices, NULL);
    ret_info->notices = (char **)g_ptr_array_steal(o->notices, NULL);
}

int chain_open(Fiber *self, const char *path, const ChainOpenOptions *options, Node **ret_node,
               ChainInfo *ret_info, GError **error)
{
    g_assert(options->memory);
    Opening o = {
        .options = options,
        .nodes = g_ptr_array_new(),
        .files = g_ptr_array_new(),
        .notices = g_ptr_array_new_with_free_func(g_free),
    };
    int r = open_all(self, &o, path, error);
    if (r < 0) {
        close_all(self, &o);
    } else {
        *ret_node = join_nodes(self, &o);
        fill_info(&o, ret_info);
    }
    g_ptr_array_unref(o.nodes);
    g_ptr_array_unref(o.files);
    g_ptr_array_unref(o.notices);
    return r;
}

void chain_info_clear(ChainInfo *info)
{
    g_strfreev(info->notices);
    *info = (ChainInfo){0};
}
