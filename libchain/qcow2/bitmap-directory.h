// SPDX-License-Identifier: LGPL-2.1-or-later
// The bitmap directory of an image: what its file says of its persistent dirty bitmaps. In a fiber
// on the image's loop.
#pragma once

#include "qcow2/image.h"

// An entry, and the clusters that go with it.
typedef struct StoredBitmap {
    Qcow2BitmapEntry entry;
    bool is_damaged; // what its table names may belong to others: never freed
} StoredBitmap;

// An array of them, which owns their names.
GArray *bitmap_directory_new(void);
void bitmap_directory_add(GArray *directory, const StoredBitmap *stored); // copies the name

// Does the directory mean anything? The autoclear bit says so; without it, it is to be ignored.
bool bitmap_directory_is_valid(const Qcow2Image *image);

// All entries, returned owned. -EINVAL when the directory is garbage, or has a name twice.
int bitmap_directory_load(Fiber *self, Qcow2Image *image, GArray **ret_directory);

// As it lies in a file; returned owned.
GByteArray *bitmap_directory_encode(const GArray *directory);

// Sets the in-use mark of each bitmap, in place, durable on return: from then on other programs
// know that what the bitmaps say may be wrong. -EINVAL when the directory is garbage; nothing is
// written then.
int bitmap_directory_mark_in_use(Fiber *self, Qcow2Image *image);
