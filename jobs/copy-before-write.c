// SPDX-License-Identifier: LGPL-2.1-or-later
// copy-before-write as a node of its own: the filter of a backup (filter-copy-before.h) without the
// copy in the background. What guests are about to change is saved in a scratch image, and who
// reads the moment at which the node was made reads it through a snapshot-access node, at whatever
// speed: no guest waits for a reader.
//
// The granules are small, since a guest that changes one waits for as much to be copied: a page, if
// the scratch image has no larger clusters. On the node's loop.
#include "jobs/node-drivers.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/dirty-bitmap.h"
#include "copy-range.h"
#include "filter-copy-before.h"
#include "job-copy.h"

typedef struct Saver {
    Node *node;
    CopyNodes nodes;
    RangeLock lock;
    Port port;
    Bitmap *unsaved, *readable;
    const NodeEvents *events;
} Saver;

static int find_unsaved(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    const Saver *s = arg;
    bool is_unsaved;
    len = bitmap_run_at(s->unsaved, off, len, &is_unsaved);
    *ret_extent = (CopyExtent){.len = len};
    CopyRange range = {.image = copy_range_image_of(s->node->backing)};
    return is_unsaved ? copy_range_find(self, &range, off, len, ret_extent) : 0;
}

static void saving_broke(void *arg, int error)
{
    const Saver *s = arg;
    const char *target = s->nodes.target->name;
    if (!s->events || !s->events->notice)
        return;
    g_autofree char *sentence =
        g_strdup_printf("%s: what clients were about to change could not be saved to %s%s: %s; "
                        "they go on, and what there was before cannot be read any more",
                        s->node->name, target, error == -ETIMEDOUT ? " within cbw-timeout" : "",
                        g_strerror(-error));
    s->events->notice(s->events, sentence);
}

static void saver_free(Fiber *self, void *arg)
{
    Saver *s = arg;
    port_done(self, &s->port);
    bitmap_free(s->unsaved);
    bitmap_free(s->readable);
    g_free(s);
}

static const CopyBeforeOps saver_ops = {
    .find = find_unsaved, .broken = saving_broke, .closed = saver_free};

// -- the port -------------------------------------------------------------------------------------

// Only saves enter here, within requests of others: those are parked, and saves that guests do not
// wait for any more end by themselves, which a drain waits for.
static int saver_park(Fiber *self, Port *port, GError **error)
{
    return 0;
}

static void saver_attach(Port *port, Loop *loop)
{
}

static void saver_resume(Port *port)
{
}

static const PortMoveOps port_move_ops = {
    .park = saver_park, .attach = saver_attach, .resume = saver_resume};

// -- making one -----------------------------------------------------------------------------------

static int fail(GError **error, int r, const char *sentence)
{
    g_set_error_literal(error, G_FILE_ERROR, g_file_error_from_errno(-r), sentence);
    return r;
}

static int check_nodes(const Node *source, const Node *target, GError **error)
{
    if (source == target)
        return fail(error, -EINVAL, "Source and target cannot be the same");
    if (target->read_only)
        return fail(error, -EACCES, "Block node is read-only");
    if (target->size_bytes >= source->size_bytes)
        return 0;
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                "Source and target image have different sizes: all of '%s' may have to be saved, "
                "and '%s' is smaller",
                source->name, target->name);
    return -EINVAL;
}

static int find_bitmap(const DriverOptions *options, const DirtyBitmap **ret_bitmap, GError **error)
{
    const char *node_name = driver_value_str(options->values, "bitmap.node", NULL);
    const char *name = driver_value_str(options->values, "bitmap.name", NULL);
    *ret_bitmap = NULL;
    if (!node_name)
        return 0;
    const Node *node = options->find_node ? options->find_node(options->find_arg, node_name) : NULL;
    if (!node) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NODEV, "Node '%s' not found", node_name);
        return -ENODEV;
    }
    *ret_bitmap = dirty_bitmap_find(node, name);
    if (*ret_bitmap)
        return dirty_bitmap_check(*ret_bitmap, DIRTY_BITMAP_USE_READ, error);
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOENT, "Dirty bitmap '%s' not found", name);
    return -ENOENT;
}

static int choose_granularity(const json_t *values, const Node *source, const Node *target,
                              uint32_t *ret_bits, GError **error)
{
    enum { PAGE_BITS = 12 };
    uint64_t least = driver_value_int(values, "min-cluster-size", 0);
    uint32_t least_bits = least ? (uint32_t)__builtin_ctzll(least) : 0;
    if (least & (least - 1))
        return fail(error, -EINVAL,
                    "Cannot create block-copy-state: min-cluster-size needs to be a power of 2");
    if (least > UINT64_C(1) << BITMAP_MAX_GRANULARITY_BITS)
        return fail(error, -EINVAL, "Cannot create block-copy-state: min-cluster-size too large");
    *ret_bits = job_copy_granularity_bits(source->size_bytes, target, MAX(least_bits, PAGE_BITS));
    return 0;
}

static Saver *saver_new(const DriverOptions *options, Node *source, const DirtyBitmap *bitmap,
                        uint32_t granularity_bits)
{
    Saver *s = g_new0(Saver, 1);
    s->events = options->events;
    s->nodes = (CopyNodes){
        .source = source,
        .target = options->target,
        .port = &s->port,
        .lock = &s->lock,
        .skips_zeros = !chain_backing(copy_range_image_of(options->target)) &&
                       !copy_range_has_hidden_backing(options->target),
    };
    s->unsaved = bitmap_new(source->size_bytes, granularity_bits);
    if (bitmap)
        bitmap_merge(s->unsaved, dirty_bitmap_bits(bitmap));
    else
        bitmap_set(s->unsaved, 0, source->size_bytes);
    s->readable = bitmap_clone(s->unsaved);
    port_init(&s->port, source, "copy-before-write");
    s->port.is_background = true;
    s->port.perms = node_perms_of(NODE_USER_VIEW, false);
    s->port.move_ops = &port_move_ops;
    return s;
}

static Node *filter_new(Fiber *self, const DriverOptions *options, Saver *s)
{
    enum { NS_PER_S = 1000000000, TIMEOUT_S = 20 };
    const json_t *values = options->values;
    const char *on_error = driver_value_str(values, "on-cbw-error", "break-snapshot");
    Node *source = s->nodes.source;
    CopyEngineConfig sizes = {
        .size_bytes = source->size_bytes,
        .granularity_bits = bitmap_granularity_bits(s->unsaved),
    };
    job_copy_choose_sizes(&sizes, s->nodes.target);
    CopyBeforeConfig config = {
        .name = options->name,
        .nodes = &s->nodes,
        .unsaved = s->unsaved,
        .readable = s->readable,
        .max_save_bytes = sizes.chunk_bytes,
        .timeout_ns = driver_value_int(values, "cbw-timeout", TIMEOUT_S) * NS_PER_S,
        .breaks_guests = g_str_equal(on_error, "break-guest-write"),
        .ops = &saver_ops,
        .arg = s,
    };
    s->node = filter_copy_before_new(&config);
    s->node->read_only = !options->is_writable || source->read_only;
    s->node->preferred_bytes = source->preferred_bytes;
    node_set_backing(self, s->node, source);
    return s->node;
}

static int check_timeout(const json_t *values, GError **error)
{
    return driver_value_int(values, "cbw-timeout", 0) > UINT32_MAX
               ? fail(error, -EINVAL, "Parameter 'cbw-timeout' expects uint32_t")
               : 0;
}

static int make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                GError **error)
{
    const DirtyBitmap *bitmap;
    uint32_t granularity_bits;
    int r = check_timeout(options->values, error);
    if (r == 0)
        r = check_nodes(child, options->target, error);
    if (r == 0)
        r = find_bitmap(options, &bitmap, error);
    if (r == 0)
        r = choose_granularity(options->values, child, options->target, &granularity_bits, error);
    if (r == 0)
        *ret_node = filter_new(self, options, saver_new(options, child, bitmap, granularity_bits));
    return r;
}

static char *exact_name(const json_t *values, const char *below)
{
    return g_strdup(below);
}

// -- options --------------------------------------------------------------------------------------

static const char *const on_error_values[] = {"break-guest-write", "break-snapshot", NULL};

static const DriverOption bitmap_members[] = {
    {.name = "node", .type = DRIVER_OPTION_STR, .is_required = true, .doc = "Whose bitmap."},
    {.name = "name", .type = DRIVER_OPTION_STR, .is_required = true, .doc = "Its name."},
    {0},
};
static const DriverOption options[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The node to filter: its name, or what to make one of."},
    {.name = "target",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "Where to save what clients are about to change: a scratch image, at least as large."},
    {.name = "bitmap",
     .type = DRIVER_OPTION_OBJECT,
     .members = bitmap_members,
     .doc = "Only what is dirty there now is saved, and can be read by snapshot-access."},
    {.name = "on-cbw-error",
     .type = DRIVER_OPTION_ENUM,
     .values = on_error_values,
     .doc = "When something cannot be saved: \"break-snapshot\", which is the default: clients go "
            "on, and reads by snapshot-access fail from then on; \"break-guest-write\", which is "
            "QEMU's default: the client's request fails."},
    {.name = "cbw-timeout",
     .type = DRIVER_OPTION_INT,
     .doc = "For how many seconds a client's request waits at most for that; then it is as if it "
            "had failed. 20 unless said; 0: no limit, which is QEMU's default."},
    {.name = "min-cluster-size",
     .type = DRIVER_OPTION_INT,
     .doc = "In units of at least so many bytes it is saved, a power of two; a page or a cluster "
            "of the target, whichever is larger, unless said."},
    {0},
};

const Driver copy_before_write_driver = {
    .name = "copy-before-write",
    .options = options,
    .keeps_below = true,
    .stays_as_made = true,
    .make = make,
    .exact_name = exact_name,
};
