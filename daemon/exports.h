// SPDX-License-Identifier: LGPL-2.1-or-later
// The disks that the command line names, opened and visible to clients. Main thread; the work is
// done on each export's loop.
#pragma once

#include <glib.h>

#include "nbd/server.h"
#include "nodes.h"
#include "options.h"

typedef struct Exports Exports;

// Opens every disk of `options` as a node of `nodes` and exports it. All or nothing: NULL with one
// sentence that names the file.
Exports *exports_open(const Options *options, Nodes *nodes, NbdsServer *server, GError **error);

// Takes all exports away, at the same time: each ends its requests, flushes its disk and closes it,
// whatever the others do. A disk that is not done after `timeout_us` is named in the log. 0; -EIO
// when a flush failed, which was logged with the disk's name; -ENOMEM when a disk could not even be
// asked to close: then its export is still there. Accepts NULL.
int exports_close(Exports *exports, gint64 timeout_us);

unsigned exports_count(const Exports *exports);
const char *exports_name(const Exports *exports, unsigned i);
// "20 GiB qcow2, 4 layers, head, read-only"
const char *exports_summary(const Exports *exports, unsigned i);
