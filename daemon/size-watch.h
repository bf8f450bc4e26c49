// SPDX-License-Identifier: LGPL-2.1-or-later
// Has somebody look when another program may have changed the size of a file that is served. The
// kernel tells (inotify), so nothing wakes up while nothing happens; a file that is written all the
// time is looked at every few seconds. What the kernel does not know of (another machine's writes
// to a network file system, devices) is not noticed. Control loop.
#pragma once

#include "chain-core/fiber.h"

typedef struct SizeWatch SizeWatch;

// `fn` is called in a fiber of the control loop when the file at `path` of `key` may have changed.
typedef void SizeWatchFn(Fiber *self, void *arg, void *key);
SizeWatch *size_watch_new(SizeWatchFn *fn, void *arg);
void size_watch_free(SizeWatch *watch); // empty; the loop may have ended

// A file that cannot be watched is served all the same. A key may have several files.
void size_watch_add(Fiber *self, SizeWatch *watch, const char *path, void *key);
void size_watch_remove(SizeWatch *watch, const void *key); // also one that has none
