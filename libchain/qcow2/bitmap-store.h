// SPDX-License-Identifier: LGPL-2.1-or-later
// Storing the persistent dirty bitmaps of an image. In a fiber on the image's loop.
#pragma once

#include "chain-core/dirty-bitmap.h"
#include "qcow2/image.h"

extern const DirtyBitmapStore qcow2_bitmap_store; // of views

// Brings the persistent bitmaps of `node`, the image's writable head, to its file, so that the file
// can be closed, or be read only from now on; no guest writes meanwhile. Nothing to do where none
// has changed and no mark was set. Durable on return. When it fails the file says that they are in
// use, and the owner hears why.
int bitmap_store_all(Fiber *self, Qcow2Image *image, Node *node);
