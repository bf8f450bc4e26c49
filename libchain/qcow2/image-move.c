// SPDX-License-Identifier: LGPL-2.1-or-later
// An image goes to another loop, or to another way to its file. Its slices of tables go along,
// dirty ones too: nothing is written, so nothing can fail. On the image's loop.

#include "qcow2/image.h"

#include <assert.h>

void image_detach(Fiber *self, Qcow2Image *image)
{
    if (image->is_detached)
        return;
    image->is_detached = true;
    // Others that need memory may start a write-back as long as the cache knows what is dirty: from
    // here to its leaving nothing suspends.
    fiber_wait_group_wait(self, &image->fibers);
    assert(!image->writeback.running);
    image->moving = table_cache_take_image(image->cache, image, &image->writeback.parts.dirty);
    table_cache_unref(self, g_steal_pointer(&image->cache));
    cow_buffers_unref(g_steal_pointer(&image->cow_buffers));
    file_detach(self, image->file);
    if (image->data_file)
        file_detach(self, image->data_file);
}

void image_attach(Qcow2Image *image, Loop *loop)
{
    if (!image->is_detached)
        return;
    image->is_detached = false;
    image->loop = image->writeback.loop = image->freed.loop = loop;
    image->cache = table_cache_ref(loop, image->memory);
    image->cow_buffers = cow_buffers_ref(loop);
    table_cache_put_image(image->cache, g_steal_pointer(&image->moving),
                          &image->writeback.parts.dirty);
    file_attach(image->file, loop);
    if (image->data_file)
        file_attach(image->data_file, loop);
}

File *image_exchange_file(Qcow2Image *image, File *file)
{
    File *old = image->file;
    assert(image->is_detached);
    image->file = image->metadata.file = image->writeback.parts.file = file;
    return old;
}
