// SPDX-License-Identifier: LGPL-2.1-or-later
// Keeps the files that an image names inside the folders that its user allowed: an image that
// nobody vouches for could name any file of the host (CVE-2015-5163, -1850, -1851). In a fiber.
#pragma once

#include <glib.h>

#include "chain-core/file.h"

typedef struct AllowedFile {
    uint64_t id[2]; // what file_identity() must say of it once it is open
    int fd;         // holds the file that was checked, so that no other gets its identity; or -1
} AllowedFile;

// Before it is opened: does `path`, with all links followed, lie below one of `dirs`
// (NULL-terminated; NULL: everything is allowed)? 0, -EACCES, or why it cannot be found out, with a
// sentence. Pair with allowed_file_release().
int allowed_dirs_check(Fiber *self, const char *const *dirs, const char *path,
                       AllowedFile *ret_allowed, GError **error);
// After: is `file` the one that was checked? -EACCES with a sentence when another has taken its
// place meanwhile.
int allowed_dirs_confirm(const char *const *dirs, const File *file, const AllowedFile *allowed,
                         GError **error);
void allowed_file_release(AllowedFile *allowed);
