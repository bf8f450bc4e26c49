// SPDX-License-Identifier: LGPL-2.1-or-later
// An overlay that is put over a named node (a snapshot), in control's table. It is said before the
// graph changes, so that nobody else does the same, and taken back if nothing comes of it. Control
// loop, with the graph lock held.
#pragma once

#include "named-node.h"

void node_overlay_begin(NamedNode *overlay, NamedNode *below);
void node_overlay_abort(NamedNode *overlay);
// Done: whoever else used `below` uses the overlay. Unless it `stays` by itself it goes with them;
// if there is nobody it stays in any case.
void node_overlay_end(NamedNode *overlay, bool stays);
