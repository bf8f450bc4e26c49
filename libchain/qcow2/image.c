// SPDX-License-Identifier: LGPL-2.1-or-later
// What all parts of an image need of it: its names, its size, which clusters may be data, the
// header's feature bits, and marking it corrupt. Opening and closing it is open.c. On the file's
// loop.

#include "qcow2/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "chain-core/mutant.h"
#include "qcow2/header-write.h"

const char *qcow2_image_backing_name(const Qcow2Image *image)
{
    return image->header.backing_name;
}

const char *qcow2_image_backing_format(const Qcow2Image *image)
{
    return image->header.backing_format;
}

const char *qcow2_image_data_file_name(const Qcow2Image *image)
{
    // Without the feature bit the name means nothing.
    bool is_used = image->header.incompatible & QCOW2_INCOMPAT_DATA_FILE;
    return is_used ? image->header.data_file_name : NULL;
}

void qcow2_image_set_data_file(Qcow2Image *image, File *file)
{
    image->data_file = file;
    image->writeback.parts.data_file = file;
}

File *qcow2_image_file(Qcow2Image *image)
{
    return image->file;
}

int image_remeasure(Fiber *self, Qcow2Image *image, File *file)
{
    int r = file_refresh_size(self, file);
    if (r == 0 && file == image->file)
        image->allocator.tail =
            MAX(image->allocator.tail, image_clusters_for(image, file_size(image->file)));
    return r;
}

bool image_range_is_sane(const Qcow2Image *image, ClusterRange range)
{
    if (range.first >= image->allocator.tail || range.n > image->allocator.tail - range.first)
        return false;
    for (uint64_t i = 0; i < range.n; i++)
        if (metadata_set_contains(&image->metadata, range.first + i))
            return false;
    return true;
}

bool image_host_is_sane(Qcow2Image *image, HostOff cluster)
{
    uint64_t c = image_cluster_of(image, cluster);
    if (cluster.v & (image->geometry.cluster_bytes - 1))
        return false;
    return c < image->allocator.tail &&
           !(image->writable && metadata_set_contains(&image->metadata, c));
}

int image_change_header(Fiber *self, Qcow2Image *image, HeaderEditFn *edit, const void *arg)
{
    bool is_locked = !MUTANT("one-header-change-at-a-time");
    if (is_locked)
        fiber_mutex_lock(self, &image->header_mutex);
    Qcow2Header next;
    bool is_unknown = false;
    qcow2_header_copy(&image->header, &next);
    edit(&next, arg);
    int r = header_write(self, image->file, &image->header, &next, &is_unknown);
    if (is_unknown && !MUTANT("unknown-header-ends-write-back"))
        writeback_end(&image->writeback);
    if (r == 0) {
        Qcow2Header old = image->header;
        image->header = next;
        next = old;
    }
    qcow2_header_clear(&next);
    if (is_locked)
        fiber_mutex_unlock(self, &image->header_mutex);
    return r;
}

typedef struct FeatureChange {
    uint64_t incompatible_set, autoclear_cleared;
} FeatureChange;

static void edit_features(Qcow2Header *header, const void *arg)
{
    const FeatureChange *change = arg;
    header->incompatible |= change->incompatible_set;
    header->autoclear &= ~change->autoclear_cleared;
}

int image_change_features(Fiber *self, Qcow2Image *image, uint64_t incompatible_set,
                          uint64_t autoclear_cleared)
{
    FeatureChange change = {incompatible_set, autoclear_cleared};
    return image_change_header(self, image, edit_features, &change);
}

void image_tell(const Qcow2Image *image, const char *format, ...)
{
    if (!image->events || !image->events->notice)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    image->events->notice(image->events, sentence);
}

static void mark_fiber(Fiber *self, void *arg)
{
    Qcow2Image *image = arg;
    // A failure leaves the image unmarked on disk; it still answers -EIO here.
    image_change_features(self, image, QCOW2_INCOMPAT_CORRUPT, 0);
    fiber_wait_group_done(&image->fibers);
}

// `sentence`: of what was found. Takes it.
static int mark(Qcow2Image *image, char *sentence)
{
    image->corrupt = true;
    writeback_end(&image->writeback);
    if (image->events && image->events->corrupt)
        image->events->corrupt(image->events, sentence);
    g_free(sentence);
    if (image->writable && image->header.version >= 3) {
        fiber_wait_group_add(&image->fibers, 1);
        if (fiber_spawn(image->loop, "mark corrupt", mark_fiber, image, NULL) < 0)
            fiber_wait_group_done(&image->fibers);
    }
    return -EIO;
}

static const char *consequence(const Qcow2Image *image)
{
    return image->writable ? "writes to it fail from now on" : "parts of it cannot be read";
}

int image_mark_corrupt(Qcow2Image *image, const char *what, ...)
{
    if (image->corrupt || image->is_shared)
        return -EIO;
    va_list args;
    va_start(args, what);
    g_autofree char *found = g_strdup_vprintf(what, args);
    va_end(args);
    return mark(image,
                g_strdup_printf("%s is corrupt: %s; %s, repair it with 'qemu-img check -r all'",
                                image->name, found, consequence(image)));
}

int image_mark_cut_off(Qcow2Image *image, HostOff off, uint64_t bytes, const char *what, ...)
{
    if (image->corrupt || image->is_shared)
        return -EIO;
    va_list args;
    va_start(args, what);
    g_autofree char *found = g_strdup_vprintf(what, args);
    va_end(args);
    if (!qcow2_header_could_hold(&image->header, off.v))
        return image_mark_corrupt(image, "%s at host offset %#" PRIx64 ", outside the file", found,
                                  off.v);
    uint64_t missing = qcow2_missing_bytes(file_size(image->file), off.v, bytes);
    return mark(image, g_strdup_printf("%s: %s at host offset %#" PRIx64 ": " QCOW2_CUT_OFF "; %s",
                                       image->name, found, off.v, missing, consequence(image)));
}
