// SPDX-License-Identifier: LGPL-2.1-or-later
// The file of an image that a command makes, and opens then: an overlay, the target of a job.
// Control loop; the file is made on a loop of disks.
#pragma once

#include "daemon/named-node.h"
#include "daemon/qmp/type.h"

extern const QmpType qmp_new_image_mode; // NewImageMode
// What a member "mode" of that type says: is the file there already?
bool qmp_args_mode_is_existing(const json_t *args);

typedef struct NewImage {
    const char *path, *format;
    uint64_t size_bytes;
    const NamedNode *below; // the image that its header is to name; NULL: none
} NewImage;

// Refuses what a format cannot do, and a file that is there and not empty: nothing is overwritten.
int new_image_create(Fiber *self, Loop *loop, const NewImage *image, GError **error);
// Of a file that was made for nothing. At worst it stays, empty.
void new_image_remove(Fiber *self, Loop *loop, const char *path);
