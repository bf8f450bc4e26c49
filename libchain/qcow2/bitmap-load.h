// SPDX-License-Identifier: LGPL-2.1-or-later
// Loading the persistent dirty bitmaps of an image. In a fiber on the image's loop.
#pragma once

#include "qcow2/image.h"

// Puts the image's bitmaps on `node`, its head, and remembers in image->bitmaps what the file says
// of them. Enabled is what has the flag "auto"; what is marked in use, or does not make sense, is
// inconsistent, and the owner hears why. A directory that cannot be read is as good as none.
// Changes nothing in the file.
void bitmap_load_all(Fiber *self, Qcow2Image *image, Node *node);
