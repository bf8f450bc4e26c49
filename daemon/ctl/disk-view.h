// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's disks as people see them: put together from what it tells of nodes, edges, exports
// and jobs. A disk is a JSON object, with members that do not change:
//
//     name, node, size, format, read-only, clients, in-flight, uris, allocated (of all its layers),
//     exclusive (of those that no other disk has), bitmaps, jobs (ids), layers: from the head down,
//     each {node, filename, format, size, allocated, point (its name, or null), shared (names of
//     other disks), snapshots (names of internal ones)}
//     limits: of its exports that have some, each {export, group, limits, text}
//     is-remembered, problem (why it is not open, or null), points: oldest first, each {name, node,
//     filename, created, in-chain}, checkpoints: as the daemon tells them
#pragma once

#include "ctl.h"

// All disks, or the one of that name (an array of one; CTL_NOT_FOUND). A new reference; NULL:
// `error`.
json_t *disk_view_load(Ctl *ctl, const char *name, GError **error);
// The same for one: the object.
json_t *disk_view_load_one(Ctl *ctl, const char *name, GError **error);

// What people call its layer number `i`: "head", "@mon", "base", "-2". Owned.
char *disk_view_layer_title(const json_t *disk, size_t i);
// The member of `points` of that name; NULL: there is none. Borrowed.
const json_t *disk_view_point(const json_t *disk, const char *name);
