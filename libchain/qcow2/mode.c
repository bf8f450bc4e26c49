// SPDX-License-Identifier: LGPL-2.1-or-later
// While an image is read-only it has no refcounts, no set of metadata and nothing to write back;
// they are read when it becomes writable, as if it were opened then, and dropped when all is
// written. The marks before the first guest write (docs/ordering.md §7) are made anew each time.

#include "qcow2/mode.h"

#include <errno.h>

#include "base/error.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"

static int reopen_files(Fiber *self, Qcow2Image *image, bool is_writable, GError **error)
{
    int r = file_reopen(self, image->file, is_writable, error);
    if (r == 0 && image->data_file) {
        r = file_reopen(self, image->data_file, is_writable, error);
        if (r < 0 && is_writable)
            file_reopen(self, image->file, false, NULL);
    }
    return r;
}

int image_begin_writing(Fiber *self, Qcow2Image *image, bool *ret_is_repaired, GError **error)
{
    if (image->is_shared)
        return error_set(error, -EINVAL,
                         "%s: it was opened for sharing with programs that write it, and cannot be "
                         "written here",
                         image->name);
    if (image->corrupt)
        return error_set(error, -EUCLEAN,
                         "%s: it was found corrupt; repair it with 'qemu-img check -r all'",
                         image->name);
    int r = image_check_not_corrupt(image, error);
    if (r == 0)
        r = reopen_files(self, image, true, error);
    if (r < 0)
        return r;
    bool is_dirty = image->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    if (is_dirty)
        table_cache_forget_image(image->cache, image, &image->writeback.parts.dirty);
    image->writable = true;
    image->claim_failed = false;
    image_drop_tables(image);
    r = image_load_tables(self, image, error);
    if (r < 0) {
        image_end_writing(self, image, NULL);
        image->is_loaded = !is_dirty;
        return r;
    }
    *ret_is_repaired = is_dirty;
    return 0;
}

int image_finish_writing(Fiber *self, Qcow2Image *image)
{
    const Writeback *w = &image->writeback;
    int r;
    // A write-back makes frees durable. Once they are released, with the last pin from before,
    // refcounts have changed.
    do {
        r = writeback_run_all(self, &image->writeback); // what is not written would be lost
        freed_wait(self, &image->freed);
    } while (r == 0 && (w->parts.dirty.n || freed_is_pending(&image->freed)));
    fiber_wait_group_wait(self, &image->fibers);
    return r;
}

int image_end_writing(Fiber *self, Qcow2Image *image, GError **error)
{
    image->writable = false;
    image_drop_tables(image);
    metadata_set_init(&image->metadata, image->file, image->header.cluster_bits);
    allocator_init(image);
    return reopen_files(self, image, false, error);
}
