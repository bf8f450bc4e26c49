// SPDX-License-Identifier: LGPL-2.1-or-later
// Opens a chain from the top down (each image names the next), then joins it from the bottom up, so
// that no edge ever appears below a finished chain. Each file is locked before its first byte is
// read. A top that is to be written is first only looked at, through a second descriptor, and
// opened for good when all below it is open: a chain that is refused has not been touched. In a
// fiber.
#include "chain-core/chain.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>

#include "base/error.h"
#include "base/shell-word.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"
#include "chain/allowed-dirs.h"
#include "chain/foreign-image.h"
#include "chain/image-name.h"

// What other programs may do meanwhile; as QEMU's block drivers ask for it.
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
    char *recorded;     // what that image's header calls it; NULL: a json: name did
} Step;

static void step_clear(Step *step)
{
    image_name_clear(&step->name);
    g_free(step->overlay);
    g_free(step->recorded);
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
    if (!writable || (r != -EACCES && r != -EROFS && r != -EPERM))
        return NULL;
    File *file;
    if (file_open(self, path, 0, &file, NULL) < 0)
        return NULL;
    file_close(self, file);
    return g_strdup("--read-only opens it without writing");
}

static int open_file(Fiber *self, const Opening *o, const char *path, bool writable,
                     File **ret_file, GError **error)
{
    FileOpenFlags flags = (writable ? FILE_WRITABLE : 0) | (o->options->direct ? FILE_DIRECT : 0);
    int r = file_open(self, path, flags, ret_file, error);
    if (r == 0)
        file_set_event_fn(*ret_file, o->options->file_event, o->options->file_event_arg);
    g_autofree char *remedy = r < 0 ? open_remedy(self, path, writable, r) : NULL;
    if (remedy)
        add_remedy(error, remedy);
    return r;
}

// qemu-img rebase, which records the format of the image of `step` in its overlay. Owned.
static char *record_command(const Step *step, const char *format)
{
    g_autofree char *name = shell_word(step->recorded), *overlay = shell_word(step->overlay);
    return g_strdup_printf("qemu-img rebase -u -F %s -b %s %s", format, name, overlay);
}

static int refuse_as_qcow2(Fiber *self, const Step *step, File *file, GError **error)
{
    const char *path = file_path(file);
    int r = foreign_image_check(self, file, error);
    if (r < 0)
        return r;
    if (step->recorded) {
        g_autofree char *command = record_command(step, "raw");
        return error_set(error, -EINVAL,
                         "%s: not a qcow2 image, though %s records it as one; if it is a raw one, "
                         "record that: %s",
                         path, step->overlay, command);
    }
    if (step->overlay || step->format)
        return error_set(error, -EINVAL,
                         "%s: not a qcow2 image, though that is the format given; if it is a raw "
                         "one, give raw",
                         path);
    return error_set(error, -EINVAL,
                     "%s: not a qcow2 image; if it is a raw one, say so with --format raw", path);
}

// A guest may have written it there, or the format is wrong: nobody but the user can tell.
static void warn_of_qcow2_magic(Opening *o, const Step *step, const char *path)
{
    g_autofree char *remedy = NULL;
    if (step->recorded) {
        g_autofree char *command = record_command(step, "qcow2");
        remedy =
            g_strdup_printf("%s records it as raw; if that is wrong: %s", step->overlay, command);
    } else {
        remedy = g_strdup("that is the format given; if it is wrong, leave it out");
    }
    g_ptr_array_add(o->notices, g_strdup_printf("%s: read as raw, though it begins like a qcow2 "
                                                "image: %s",
                                                path, remedy));
}

// Finds the format where it was not said, and checks the one that was. Nothing but the magic of
// qcow2 is ever believed, and not on a device: a guest writes what it likes into a raw image
// (CVE-2008-2004).
static int find_format(Fiber *self, Opening *o, const Step *step, File *file,
                       const char **ret_format, GError **error)
{
    static const uint8_t magic[4] = {'Q', 'F', 'I', 0xfb};
    const char *path = file_path(file);
    if (!step->format && file_is_block_device(file))
        return error_set(error, -EINVAL,
                         "%s: a device's format is not guessed from its content; say it with "
                         "--format raw (or qcow2)",
                         path);
    uint8_t head[8]; // magic and version
    bool is_raw = step->format && g_str_equal(step->format, "raw");
    int r = file_read(self, file, host_off(0), head, sizeof head);
    if (r < 0 && !is_raw)
        return error_set(error, r, "%s: cannot read its first bytes: %s", path, g_strerror(-r));
    bool has_magic = r == 0 && memcmp(head, magic, sizeof magic) == 0;
    bool is_qcow1 = has_magic && head[7] == 1;
    if (!is_raw && (!has_magic || is_qcow1))
        return refuse_as_qcow2(self, step, file, error);
    if (is_raw && has_magic && !step->name.is_part)
        warn_of_qcow2_magic(o, step, path);
    *ret_format = is_raw ? "raw" : "qcow2";
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

// For files that an image names: only where that is allowed.
static int open_named_file(Fiber *self, const Opening *o, const char *path, bool writable,
                           File **ret_file, GError **error)
{
    AllowedFile allowed;
    File *file = NULL;
    int r = allowed_dirs_check(self, o->options->allowed_dirs, path, &allowed, error);
    if (r == 0)
        r = open_file(self, o, path, writable, &file, error);
    if (r == 0)
        r = allowed_dirs_confirm(o->options->allowed_dirs, file, &allowed, error);
    allowed_file_release(&allowed);
    if (r == 0)
        *ret_file = file;
    else
        file_close(self, file);
    return r;
}

// Where the image keeps its data, if that is in another file: its owned path, or NULL.
static int find_data_file(const Opening *o, Qcow2Image *image, char **ret_path, GError **error)
{
    const char *name = qcow2_image_data_file_name(image);
    if (!name)
        return 0;
    const char *path = file_path(qcow2_image_file(image));
    if (o->options->no_data_files)
        return error_set(error, -EACCES,
                         "%s: it keeps its data in another file ('%s'), which is not allowed here; "
                         "qemu-img convert makes an image that does not",
                         path, name);
    if (!*name || strchr(name, '/') || g_str_equal(name, "..") || g_str_equal(name, "."))
        return error_set(error, -EINVAL,
                         "%s: its data file '%s' is not a plain name of a file in the same folder; "
                         "move it there and record the name: qemu-img amend -o data_file=NAME "
                         "IMAGE",
                         path, name);
    *ret_path = image_name_beside(path, name);
    return 0;
}

// For an image that is only looked at.
static int check_data_file(Fiber *self, const Opening *o, Qcow2Image *image, GError **error)
{
    g_autofree char *data_path = NULL;
    int r = find_data_file(o, image, &data_path, error);
    if (r < 0 || !data_path)
        return r;
    AllowedFile checked;
    r = allowed_dirs_check(self, o->options->allowed_dirs, data_path, &checked, error);
    allowed_file_release(&checked);
    return r;
}

static int open_data_file(Fiber *self, const Opening *o, Qcow2Image *image, bool writable,
                          GError **error)
{
    g_autofree char *data_path = NULL;
    int r = find_data_file(o, image, &data_path, error);
    if (r < 0 || !data_path)
        return r;
    File *file = NULL;
    r = open_named_file(self, o, data_path, writable, &file, error);
    if (r < 0)
        file = NULL;
    else
        r = lock_file(self, o, file, writable, error);
    if (r < 0) {
        file_close(self, file);
        g_prefix_error(error, "%s: its data file: ", file_path(qcow2_image_file(image)));
        return r;
    }
    qcow2_image_set_data_file(image, file);
    return 0;
}

// What the header says comes next: name and format.
static int parse_recorded(const char *backing, const char *recorded, const char *path, Step *next,
                          GError **error)
{
    int r = image_name_parse(backing, path, &next->name, error);
    if (r == 0 && recorded)
        r = image_format_parse(recorded, &next->format, error);
    if (r == 0 && !next->format)
        next->format = next->name.format;
    if (r == 0 && next->name.format && next->format != next->name.format &&
        !g_str_equal(next->format, next->name.format))
        r = error_set(error, -EINVAL, "it is recorded both as %s and as %s", next->format,
                      next->name.format);
    if (r < 0)
        g_prefix_error(error, "%s: its backing file '%s': ", path, backing);
    return r;
}

// A json: name that says itself what lies below: nothing, or the image that it describes.
static int take_replaced_backing(Step *step, const char *path, Step *next, GError **error)
{
    if (!step->name.backing)
        return 0;
    next->name = *step->name.backing;
    g_clear_pointer(&step->name.backing, g_free);
    next->format = next->name.format;
    if (next->format)
        return 0;
    return error_set(error, -EINVAL,
                     "%s: the json: name says that %s lies below it, but not its format; give its "
                     "\"backing\" a \"driver\": qcow2 or raw",
                     path, next->name.path);
}

// Which image comes next, if any. Without a recorded format it might be anything.
static int find_next(const Qcow2Image *image, Step *step, const char *path, Step *ret_next,
                     GError **error)
{
    const char *backing = qcow2_image_backing_name(image);
    bool is_replaced = step->name.is_backing_cut || step->name.backing;
    if (!is_replaced && (!backing || !*backing))
        return 0;
    Step next = {0};
    int r = is_replaced
                ? take_replaced_backing(step, path, &next, error)
                : parse_recorded(backing, qcow2_image_backing_format(image), path, &next, error);
    if (r == 0 && next.name.path && !next.format) {
        g_autofree char *quoted_name = shell_word(backing);
        g_autofree char *quoted_path = shell_word(path);
        r = error_set(error, -EINVAL,
                      "%s: the format of its backing file '%s' is not recorded; record it: "
                      "qemu-img rebase -u -F qcow2 -b %s %s (or -F raw)",
                      path, backing, quoted_name, quoted_path);
    }
    if (r < 0) {
        step_clear(&next);
        return r;
    }
    if (next.name.path)
        next.overlay = g_strdup(path);
    if (next.name.path && !is_replaced)
        next.recorded = g_strdup(backing);
    *ret_next = next;
    return 0;
}

// Takes `file`.
static int open_view(Fiber *self, Opening *o, File *file, bool writable, const char *snapshot,
                     Qcow2Image **ret_image, Node **ret_node, GError **error)
{
    Qcow2OpenOptions options = {
        .read_only = !writable,
        .shared = o->options->force_share,
        .memory = o->options->memory,
        .events = o->options->events,
    };
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
    for (const char *const *n = qcow2_image_notices(image); n && *n; n++)
        g_ptr_array_add(o->notices, g_strdup(*n));
    *ret_image = image;
    *ret_node = node;
    return 0;
}

// Takes `file`, which is locked.
static int open_qcow2(Fiber *self, Opening *o, Step *step, File *file, Step *ret_next,
                      GError **error)
{
    const char *snapshot = step->overlay ? NULL : o->options->snapshot;
    Qcow2Image *image;
    Node *node;
    int r = open_view(self, o, file, false, snapshot, &image, &node, error);
    if (r < 0)
        return r;
    r = find_next(image, step, file_path(file), ret_next, error);
    qcow2_image_unref_close(self, image);
    if (r < 0)
        node_unref_close(self, node);
    else
        g_ptr_array_add(o->nodes, node);
    return r;
}

// Takes `file`, which is locked and stays open for open_writable_top().
static int look_at_writable_top(Fiber *self, Opening *o, Step *step, File *file, Step *ret_next,
                                GError **error)
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
    r = check_data_file(self, o, image, error);
    if (r == 0)
        r = find_next(image, step, step->name.path, ret_next, error);
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

static int open_raw(Fiber *self, Opening *o, const ImageName *name, File *file, GError **error)
{
    Node *node;
    int r = name->is_part
                ? raw_node_new_part(self, file, name->part_offset, name->part_bytes, &node, error)
                : raw_node_new(self, file, &node, error);
    if (r < 0)
        return r;
    if (o->options->force_share)
        raw_node_set_shared(node);
    g_ptr_array_add(o->nodes, node);
    return 0;
}

// Opens the image of `step` as the next node of the chain. `ret_next` is all zero at the base.
static int open_image(Fiber *self, Opening *o, Step *step, Step *ret_next, GError **error)
{
    bool writable = step_is_writable(o, step);
    File *file;
    int r = step->overlay ? open_named_file(self, o, step->name.path, writable, &file, error)
                          : open_file(self, o, step->name.path, writable, &file, error);
    if (r < 0) {
        if (step->overlay)
            g_prefix_error(error, "%s: its backing file: ", step->overlay);
        if (step->overlay && r == -ENOENT)
            add_remedy(error, "if it was moved, record where to: qemu-img rebase -u -F FORMAT -b "
                              "NAME IMAGE");
        return r;
    }
    const char *format = NULL;
    r = refuse_loop(o, step, file, error); // before its locks, which our own would conflict with
    if (r == 0)
        r = lock_file(self, o, file, writable, error);
    if (r == 0)
        r = find_format(self, o, step, file, &format, error);
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
        return open_raw(self, o, &step->name, file, error);
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
        if (r == 0 && step.name.format && !g_str_equal(step.format, step.name.format))
            r = error_set(error, -EINVAL, "the name says %s, and the format asked for is %s",
                          step.name.format, step.format);
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
    Step step = {0};
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
