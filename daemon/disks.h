// SPDX-License-Identifier: LGPL-2.1-or-later
// The disks that the command line names as FILE: each becomes a node with an export on it. And the
// end of all nodes and exports, whoever made them. Control loop.
#pragma once

#include "exports.h"
#include "options.h"

// Opens every disk of `options` and exports it. All or nothing: a negative errno with one sentence
// that names the file.
int disks_open(Fiber *self, const Options *options, Nodes *nodes, Exports *exports, GError **error);

// Takes all exports and nodes away, at the same time: each export ends its requests, and its node
// is flushed and closed, whatever the others do. A disk that is not done after `timeout_ns` is
// named in the log. 0; -EIO when a flush failed, which was logged with the disk's name; -ENOMEM
// when a disk could not even be asked to close: then it is still there.
int disks_close_all(Fiber *self, Nodes *nodes, Exports *exports, uint64_t timeout_ns);
