// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and actions of dirty bitmaps. Control loop.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_bitmaps_family;

// A bitmap of the node at hand, by its name, or any, by node and name; and a list of them.
extern const QmpType bitmap_ref_type, bitmap_refs_type;
// What query-named-block-nodes tells of a bitmap.
extern const QmpType bitmap_infos_type;
