// SPDX-License-Identifier: LGPL-2.1-or-later
// Files that look like images which chaind does not open: of other programs, compressed, or in an
// archive. Only for words: what a file looks like never decides how it is read. In a fiber.
#pragma once

#include <glib.h>

#include "chain-core/file.h"

// 0 when `file` looks like none of them, also when it cannot be read. Otherwise -EINVAL with a
// sentence: what it is, and the command that converts or unpacks it.
int foreign_image_check(Fiber *self, File *file, GError **error);
