// SPDX-License-Identifier: LGPL-2.1-or-later
// A name is often reserved with an empty file, which is replaced. Anything else that is there may
// be what somebody still needs, and the command may yet be refused for another reason.
#include "new-image.h"

#include <errno.h>
#include <string.h>

#include "chain-core/driver.h"
#include "chain-core/file.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/raw.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/error.h"

const QmpType qmp_new_image_mode = {
    .name = "NewImageMode",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"existing", "absolute-paths", NULL},
};

bool qmp_args_mode_is_existing(const json_t *args)
{
    const char *mode = qmp_args_str(args, "mode");
    return mode && g_str_equal(mode, "existing");
}

// -- on a loop of disks ---------------------------------------------------------------------------

typedef struct Creation {
    const NewImage *image;
    char *backing_name; // owned
    const char *backing_format;
    int result;
    GError *error;
} Creation;

static bool may_have_backing(const Driver *driver)
{
    return driver_option_find(driver->options, "backing", strlen("backing"));
}

static bool remove_if_empty(Fiber *self, const char *path)
{
    File *file;
    if (file_open(self, path, 0, &file, NULL) < 0)
        return false;
    bool is_empty = file_size(file) == 0;
    file_close(self, file);
    return is_empty && file_unlink(self, path, NULL) == 0;
}

static int create_raw(Fiber *self, const NewImage *image, GError **error)
{
    File *file;
    int r = file_open(self, image->path, FILE_WRITABLE | FILE_CREATE, &file, error);
    if (r < 0)
        return r;
    r = file_truncate(self, file, image->size_bytes);
    if (r == 0)
        r = file_flush(self, file);
    file_close(self, file);
    if (r == 0)
        return file_sync_dir(self, image->path, error);
    file_unlink(self, image->path, NULL);
    return qmp_fail(error, "'%s' cannot be made: %s", image->path, g_strerror(-r));
}

static int create(Fiber *self, const Creation *c, GError **error)
{
    const NewImage *image = c->image;
    if (!may_have_backing(driver_find(image->format)))
        return create_raw(self, image, error);
    const Qcow2CreateOptions options = {
        .size_bytes = image->size_bytes,
        .backing_name = c->backing_name,
        .backing_format = c->backing_format,
    };
    return qcow2_create(self, image->path, &options, error);
}

static void create_on_loop(Fiber *self, void *arg)
{
    Creation *c = arg;
    c->result = create(self, c, &c->error);
    if (c->result == -EEXIST && remove_if_empty(self, c->image->path)) {
        g_clear_error(&c->error);
        c->result = create(self, c, &c->error);
    }
}

// -- names ----------------------------------------------------------------------------------------

// What lies on another machine, all of it, perhaps in a raw node; owned, or NULL.
static char *remote_name(const NamedNode *named)
{
    while (named && named->driver == &raw_driver && named->config &&
           !json_object_get(named->config->values, "offset") &&
           !json_object_get(named->config->values, "size"))
        named = named_node_lower(named);
    return named && named->driver->is_remote && named->config
               ? named->driver->exact_name(named->config->values, NULL)
               : NULL;
}

// How the header of an image at `path` names it; owned, or NULL.
static char *header_name(const NamedNode *below, const char *path)
{
    return named_node_header_name(below, path) ?: remote_name(below);
}

// What a server shows is a disk, in whatever it is kept there.
static const char *header_format(const NamedNode *below)
{
    return below->driver->is_remote ? raw_driver.name : below->driver->name;
}

// -- control --------------------------------------------------------------------------------------

static int check(const NewImage *image, GError **error)
{
    const Driver *driver = driver_find(image->format);
    if (driver && driver->make && !driver->is_remote)
        return qmp_fail(error, "Format driver '%s' does not support image creation", driver->name);
    if (driver && image->below && !may_have_backing(driver))
        return qmp_fail(error, "Backing file not supported for file format '%s'", driver->name);
    if (!driver || !driver->open)
        return qmp_fail(error, "Unknown file format '%s'", image->format);
    if (!image->below)
        return 0;
    if (g_str_equal(named_node_file_name(image->below), image->path))
        return qmp_fail(error, "Error: Trying to create an image with the same filename as the "
                               "backing file");
    g_autofree char *name = header_name(image->below, image->path);
    if (!name)
        return qmp_fail(error,
                        "Node '%s' is no file that an image's header could name; make the image "
                        "with blockdev-create, and use blockdev-snapshot, blockdev-mirror or "
                        "blockdev-backup",
                        image->below->name);
    return 0;
}

int new_image_create(Fiber *self, Loop *loop, const NewImage *image, GError **error)
{
    int r = check(image, error);
    if (r < 0)
        return r;
    g_autofree char *name = image->below ? header_name(image->below, image->path) : NULL;
    Creation c = {
        .image = image,
        .backing_name = name,
        .backing_format = image->below ? header_format(image->below) : NULL,
    };
    r = remote_call_fiber_reserve(self, loop, create_on_loop, &c);
    if (r < 0)
        return qmp_fail(error, "'%s': no memory for a fiber's stack", image->path);
    if (c.result == -EEXIST) {
        g_clear_error(&c.error);
        return qmp_fail(error,
                        "'%s' exists already and is not empty: choose another name, or take "
                        "it as it is with \"mode\": \"existing\"",
                        image->path);
    }
    if (c.error)
        g_propagate_error(error, c.error);
    return c.result;
}

static void remove_on_loop(Fiber *self, void *arg)
{
    file_unlink(self, arg, NULL);
}

void new_image_remove(Fiber *self, Loop *loop, const char *path)
{
    remote_call_fiber_reserve(self, loop, remove_on_loop, (void *)path);
}
