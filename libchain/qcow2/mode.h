// SPDX-License-Identifier: LGPL-2.1-or-later
// An open image becomes writable, or read-only again: its files, its locks, its tables. The head
// view (view.c) stands above. In a fiber on the image's loop.
#pragma once

#include "qcow2/image.h"

// From read-only to writable, all tables read and checked. When the image was not closed cleanly it
// is repaired, and *ret_is_repaired: what was known of its tables is gone, so nothing reads it
// then. Else reads may be under way. On failure it is as before.
int image_begin_writing(Fiber *self, Qcow2Image *image, bool *ret_is_repaired, GError **error);

// Makes durable all that was written, releases what was freed, and brings that to the disk, too.
// Nobody writes it meanwhile; reads may be under way.
int image_finish_writing(Fiber *self, Qcow2Image *image);

// After that, without a head, or with nothing written: the reverse of image_begin_writing().
int image_end_writing(Fiber *self, Qcow2Image *image, GError **error);
