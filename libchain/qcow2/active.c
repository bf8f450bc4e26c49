// SPDX-License-Identifier: LGPL-2.1-or-later
// An image that another program may write for a while: nothing of it is remembered then, and it is
// read anew when that is over. Whether the other program is let in is for the nodes of its files.
// On the image's loop, drained.
#include "qcow2/view.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/dirty-bitmap.h"
#include "qcow2/bitmap-load.h"
#include "qcow2/open.h"

// Others may change what the image says of them.
static void drop_stored_bitmaps(Qcow2Image *image, const Node *node)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    for (guint i = bitmaps ? bitmaps->len : 0; i-- > 0;)
        if (dirty_bitmap_is_persistent(bitmaps->pdata[i]))
            dirty_bitmap_drop(bitmaps->pdata[i]);
    g_clear_pointer(&image->bitmaps, g_array_unref);
}

static void set_inactive(Qcow2View *view, bool is_inactive)
{
    view->image->is_inactive = view->image->is_shared = is_inactive;
    view_set_identity(view);
}

static int leave(Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    if (image->is_shared)
        return 0; // others have always been free to write it
    if (view->snapshot || image->views->len > 1)
        return error_set(error, -EBUSY,
                         "%s: it cannot be left to other programs while one of its internal "
                         "snapshots is open; close that first",
                         view->node.name);
    drop_stored_bitmaps(image, &view->node);
    set_inactive(view, true);
    return 0;
}

static int read_anew(Fiber *self, Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    uint64_t old_bytes = view->node.size_bytes;
    int r = image_reload(self, image, error);
    if (r < 0)
        return r;
    view->node.size_bytes = image->header.size_bytes;
    view->node.preferred_bytes = image->geometry.cluster_bytes;
    r = view_reload_l1(self, view, error);
    if (r == 0 && old_bytes != view->node.size_bytes)
        r = dirty_bitmaps_resize(&view->node, view->node.size_bytes);
    if (r < 0) {
        view->node.size_bytes = old_bytes;
        return r;
    }
    bitmap_load_all(self, image, &view->node);
    return 0;
}

static int take_back(Fiber *self, Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    if (!image->is_inactive)
        return 0;
    int r = file_look_anew(self, image->file, error);
    if (r == 0 && image->data_file)
        r = file_look_anew(self, image->data_file, error);
    if (r < 0)
        return r;
    set_inactive(view, false);
    r = read_anew(self, view, error);
    if (r < 0)
        set_inactive(view, true);
    return r;
}

int view_set_active(Fiber *self, Node *node, bool is_active, GError **error)
{
    Qcow2View *view = view_of(node);
    return is_active ? take_back(self, view, error) : leave(view, error);
}
