// SPDX-License-Identifier: LGPL-2.1-or-later
// The driver of qcow2: from a file to a view, in the steps of driver.h. On the file's loop.
#include "chain-core/driver.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/qcow2.h"
#include "qcow2/info.h"
#include "qcow2/view.h"

typedef struct Qcow2DriverImage {
    DriverImage head; // first
    Qcow2Image *image;
    const char *snapshot;
} Qcow2DriverImage;

static bool probe(const uint8_t *head, size_t len)
{
    static const uint8_t magic[4] = {'Q', 'F', 'I', 0xfb};
    return len >= 8 && memcmp(head, magic, sizeof magic) == 0 && head[7] != 1; // that is qcow
}

static int open_image(Fiber *self, File *file, const DriverOptions *options,
                      DriverImage **ret_image, GError **error)
{
    Qcow2OpenOptions open = {
        .read_only = !options->is_writable,
        .shared = options->is_shared,
        .is_inactive = options->is_inactive,
        .memory = options->memory,
        .events = options->events,
    };
    Qcow2Image *image;
    int r = qcow2_image_open(self, file, &open, &image, error);
    if (r < 0)
        return r;
    Qcow2DriverImage *made = g_new0(Qcow2DriverImage, 1);
    made->head = (DriverImage){
        .driver = &qcow2_driver,
        .file = file,
        .backing_name = qcow2_image_backing_name(image),
        .backing_format = qcow2_image_backing_format(image),
        .data_name = qcow2_image_data_file_name(image),
    };
    made->image = image;
    made->snapshot = options->snapshot;
    *ret_image = &made->head;
    return 0;
}

static void drop(Fiber *self, DriverImage *image)
{
    qcow2_image_unref_close(self, ((Qcow2DriverImage *)image)->image);
    g_free(image);
}

static int load(Fiber *self, DriverImage *image, File *data, Node **ret_node, GError **error)
{
    Qcow2DriverImage *opened = (Qcow2DriverImage *)image;
    if (data)
        qcow2_image_set_data_file(opened->image, data);
    int r = qcow2_view_new(self, opened->image, opened->snapshot, ret_node, error);
    drop(self, image);
    return r;
}

// -- another file node ----------------------------------------------------------------------------

typedef struct Qcow2Change {
    DriverChange head; // first
    Qcow2Image *image;
    File *file; // a reference: the new one, and then the old one
} Qcow2Change;

static void change_commit(DriverChange *change)
{
    Qcow2Change *c = (Qcow2Change *)change;
    c->file = image_exchange_file(c->image, c->file);
}

static void change_drop(Fiber *self, DriverChange *change)
{
    file_close(self, ((Qcow2Change *)change)->file);
    g_free(change);
}

static const Node *without_filters(const Node *node)
{
    while (node->ops->is_filter)
        node = node->backing;
    return node;
}

// What the image keeps in memory is true of one file only, however that is reached.
static int reopen(Fiber *self, Node *node, const DriverReopen *wanted, DriverChange **ret_change,
                  GError **error)
{
    Qcow2Image *image = view_of(node)->image;
    if (without_filters(wanted->below) != without_filters(wanted->was_below))
        return error_set(error, -ENOTSUP,
                         "Cannot change the option 'file': the image in %s is in use, and that is "
                         "another file; filters can be put between them",
                         file_path(image->file));
    Qcow2Change *change = g_new(Qcow2Change, 1);
    *change = (Qcow2Change){
        .head = {node->size_bytes, change_commit, change_drop},
        .image = image,
        .file = file_ref(wanted->file),
    };
    *ret_change = &change->head;
    return 0;
}

// -- options --------------------------------------------------------------------------------------

static const char *const overlap_check_values[] = {"none", "constant", "cached", "all", NULL};

static const DriverOption overlap_check_members[] = {
    {.name = "template", .type = DRIVER_OPTION_ENUM, .values = overlap_check_values},
    {.name = "main-header", .type = DRIVER_OPTION_BOOL},
    {.name = "active-l1", .type = DRIVER_OPTION_BOOL},
    {.name = "active-l2", .type = DRIVER_OPTION_BOOL},
    {.name = "refcount-table", .type = DRIVER_OPTION_BOOL},
    {.name = "refcount-block", .type = DRIVER_OPTION_BOOL},
    {.name = "snapshot-table", .type = DRIVER_OPTION_BOOL},
    {.name = "inactive-l1", .type = DRIVER_OPTION_BOOL},
    {.name = "inactive-l2", .type = DRIVER_OPTION_BOOL},
    {.name = "bitmap-directory", .type = DRIVER_OPTION_BOOL},
    {0},
};

#define INERT_CACHE "Accepted, does nothing: one bound on the memory of all tables holds."
#define INERT_DISCARD "Accepted, does nothing: freed clusters are reused, not punched one by one."

static const DriverOption option_table[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "Where the image is: a node's name, or what to make one of."},
    {.name = "backing",
     .type = DRIVER_OPTION_CHILD,
     .may_be_null = true,
     .doc = "What lies below, instead of what the image's header says; null: nothing."},
    {.name = "data-file",
     .type = DRIVER_OPTION_CHILD,
     .doc = "The external data file, instead of what the image's header says."},
    {.name = "snapshot",
     .type = DRIVER_OPTION_STR,
     .doc = "An internal snapshot, by id or name, read-only. Where \"file\" is a qcow2 node, it is "
            "one "
            "of that node's image, also while that is written. Not in QEMU."},
    {.name = "lazy-refcounts",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = "Accepted, does nothing: refcounts never lag behind."},
    {.name = "pass-discard-request",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_DISCARD},
    {.name = "pass-discard-snapshot",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_DISCARD},
    {.name = "pass-discard-other",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_DISCARD},
    {.name = "discard-no-unref",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_DISCARD},
    {.name = "overlap-check",
     .type = DRIVER_OPTION_ENUM_OR_OBJECT,
     .values = overlap_check_values,
     .members = overlap_check_members,
     .change = DRIVER_OPTION_IDLE,
     .doc = "Accepted, does nothing: every write is checked against all metadata."},
    {.name = "cache-size",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_CACHE},
    {.name = "l2-cache-size",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_CACHE},
    {.name = "l2-cache-entry-size",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_CACHE},
    {.name = "refcount-cache-size",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_CACHE},
    {.name = "cache-clean-interval",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_IDLE,
     .doc = INERT_CACHE},
    {0},
};

const Driver qcow2_driver = {
    .name = "qcow2",
    .options = option_table,
    .info = qcow2_info,
    .probe = probe,
    .has_snapshots = true,
    .open_beside = qcow2_snapshot_view_new,
    .open = open_image,
    .load = load,
    .drop = drop,
    .reopen = reopen,
};
