// SPDX-License-Identifier: LGPL-2.1-or-later
// Files of disks: where new ones go, and how those leave that nobody needs. Control loop; what
// blocks is done by a worker.
#pragma once

#include "catalogue.h"

typedef struct Daemon Daemon;

// A name for a file in `directory` that nobody has, and no layer either, whose file may be gone:
// STEM.SUFFIX, or STEM.N.SUFFIX, from `number` on; owned.
typedef struct NewFile {
    const char *directory, *stem, *suffix;
    int64_t number;
} NewFile;
char *disk_files_choose(Fiber *self, const Catalogue *catalogue, const NewFile *file);
// Removes those of `files` (an array of paths) that are no layer's and in which no open node lies,
// then the intent `id` that says so is over; that is durable on return. What cannot be removed is
// logged, and stays.
void disk_files_remove_intended(Fiber *self, Daemon *daemon, int64_t id, const json_t *files);
// The name of this file is durable on return. Blocks: on a worker.
int disk_files_sync_directory_of(const char *path);
// Is there such a file?
bool disk_files_exist(Fiber *self, const char *path);
// How much of the host's space it takes; 0 where there is none.
uint64_t disk_files_allocated(Fiber *self, const char *path);
