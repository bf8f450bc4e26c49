// SPDX-License-Identifier: LGPL-2.1-or-later
// The disks that the command line names, opened and visible to clients. Main thread; the work is
// done on each export's loop.
#pragma once

#include <glib.h>

#include "chain-core/map-memory.h"
#include "loops.h"
#include "nbd/server.h"
#include "options.h"

typedef struct Exports Exports;

// Opens every disk of `options` and exports it, spread over `loops`. All or nothing: NULL with one
// sentence that names the file.
Exports *exports_open(const Options *options, const Loops *loops, NbdsServer *server,
                      MapMemory *memory, GError **error);

// After nbds_server_stop(): flushes each disk, takes its export away and closes it. 0, or -EIO when
// a flush failed, which was logged with the disk's name. Accepts NULL.
int exports_close(Exports *exports);

unsigned exports_count(const Exports *exports);
const char *exports_name(const Exports *exports, unsigned i);
// "20 GiB qcow2, 4 layers, read-only"
const char *exports_summary(const Exports *exports, unsigned i);
