// SPDX-License-Identifier: LGPL-2.1-or-later
// What an open image records as lying below it. One write of the header (docs/ordering.md §11). On
// the image's loop.
#include <errno.h>

#include "base/error.h"
#include "chain-core/qcow2.h"
#include "qcow2/image.h"
#include "qcow2/mapping.h"
#include "qcow2/open.h"

typedef struct BackingName {
    const char *name, *format;
} BackingName;

static void set_backing(Qcow2Header *header, const void *arg)
{
    const BackingName *backing = arg;
    g_free(header->backing_name);
    g_free(header->backing_format);
    header->backing_name = g_strdup(backing->name);
    header->backing_format = g_strdup(backing->format);
}

int qcow2_set_backing_name(Fiber *self, Node *node, const char *name, const char *format,
                           GError **error)
{
    if (!g_str_equal(node->ops->driver, "qcow2"))
        return error_set(error, -ENOTSUP, "%s: a %s image records no backing file", node->name,
                         node->ops->driver);
    if (node->read_only)
        return error_set(error, -EROFS, "%s: it is read-only", node->name);
    Qcow2Image *image = ((Qcow2View *)node)->image;
    int r = image_begin_change(self, image); // §7: no marks of others over what changes
    if (r == 0)
        r = image_change_header(self, image, set_backing,
                                &(BackingName){.name = name, .format = format});
    if (r < 0)
        return error_set(error, r, "%s: cannot record '%s' as its backing file: %s", node->name,
                         name ?: "", g_strerror(-r));
    return 0;
}
