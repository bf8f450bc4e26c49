// SPDX-License-Identifier: LGPL-2.1-or-later
// The bitmap directory of an image: its persistent dirty bitmaps. In a fiber on the image's loop.
#pragma once

#include "qcow2/image.h"

// Does the directory mean anything? The autoclear bit says so; without it, it is to be ignored.
bool bitmap_directory_is_valid(const Qcow2Image *image);

// Sets the in-use mark of each bitmap, in place, durable on return: from then on other programs
// know that what the bitmaps say may be wrong. *ret_n is how many there are. -EINVAL when the
// directory is garbage; nothing is written then.
int bitmap_directory_mark_in_use(Fiber *self, Qcow2Image *image, uint32_t *ret_n);
