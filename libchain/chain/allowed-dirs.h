// SPDX-License-Identifier: LGPL-2.1-or-later
// Keeps the files that an image names inside the folders that its user allowed: an image that
// nobody vouches for could name any file of the host (CVE-2015-5163, -1850, -1851). In a fiber.
#pragma once

#include <glib.h>

#include "chain-core/file.h"

// Before it is opened: does `path`, with all links followed, lie below one of `dirs`
// (NULL-terminated; NULL: everything is allowed)? 0, -EACCES, or why it cannot be found out, with a
// sentence. `ret_id` is what file_identity() must say of it once it is open.
int allowed_dirs_check(Fiber *self, const char *const *dirs, const char *path, uint64_t ret_id[2],
                       GError **error);
// After: is `file` the one that was checked? -EACCES with a sentence when another has taken its
// place meanwhile.
int allowed_dirs_confirm(const char *const *dirs, const File *file, const uint64_t id[2],
                         GError **error);
