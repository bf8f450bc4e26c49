// SPDX-License-Identifier: LGPL-2.1-or-later
// The later steps of opening an image, after qcow2_image_open(): its tables before the first view,
// its marks before the first guest write. For this folder. In a fiber on the image's loop.
#pragma once

#include <errno.h>

#include "qcow2/image.h"

// Reads and checks what lies outside the views: snapshot table, refcount table; repairs a dirty
// image that is to be written. Before the first view is made.
int image_load(Fiber *self, Qcow2Image *image, GError **error);

// For image_load() and changes of the mode (mode.h): reads and checks what `image->writable` needs;
// repairs a dirty image that is writable. After a failure, or for another mode,
// image_drop_tables(); the snapshots stay unless the image was repaired.
int image_load_tables(Fiber *self, Qcow2Image *image, GError **error);
void image_drop_tables(Qcow2Image *image);
// Reads the header of an image that is not written, and what lies outside of the views, anew, for
// another program may have written them. Only its head is open. On failure the header is as it was,
// and it can be tried again. -ESTALE: it lies over another file now, keeps its data elsewhere, or
// has other clusters.
int image_reload(Fiber *self, Qcow2Image *image, GError **error);
// Does the header let it be written? 0, or -EUCLEAN.
int image_check_not_corrupt(const Qcow2Image *image, GError **error);

// Why the image cannot be opened for writing: the cluster, `what` it is, lies past the end of the
// file. Returns -EUCLEAN.
int image_fail_cut_off(const Qcow2Image *image, GError **error, HostOff cluster, const char *what);

// The writes that come before the first guest write (docs/ordering.md §7).
int image_claim(Fiber *self, Qcow2Image *image);

// To be called first by each request that changes what guests see: 0, or why it must not.
static inline int image_begin_change(Fiber *self, Qcow2Image *image)
{
    if (G_UNLIKELY(image->corrupt))
        return -EIO;
    return G_LIKELY(image->is_claimed) ? 0 : image_claim(self, image);
}
