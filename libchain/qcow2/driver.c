// SPDX-License-Identifier: LGPL-2.1-or-later
// The driver of qcow2: from a file to a view, in the steps of driver.h. On the file's loop.
#include "chain-core/driver.h"

#include <string.h>

#include "chain-core/qcow2.h"

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

const Driver qcow2_driver = {
    .name = "qcow2",
    .probe = probe,
    .has_backing = true,
    .has_snapshots = true,
    .open = open_image,
    .load = load,
    .drop = drop,
};
