// SPDX-License-Identifier: LGPL-2.1-or-later
// An overlay that is put over a named node (a snapshot), or left out (a commit), in control's
// table. What is put over is said before the graph changes, so that nobody else does the same, and
// taken back if nothing comes of it. Control loop, with the graph lock held.
#pragma once

#include "nodes.h"

void node_overlay_begin(NamedNode *overlay, NamedNode *below);
void node_overlay_abort(NamedNode *overlay);
// Done: whoever else used `below` uses the overlay. Unless it `stays` by itself it goes with them;
// if there is nobody it stays in any case.
void node_overlay_end(NamedNode *overlay, bool stays);

// Done: whoever used `top`, but for jobs and the image's internal snapshots, uses `below` instead.
// It is closed with its last user, unless it was added by itself.
void node_overlay_leave(NamedNode *top, NamedNode *below);
// The end is undone: whoever uses the overlay uses what lies below it, and it has nothing below
// itself. It stays as if it had been added by itself.
void node_overlay_undo(NamedNode *overlay);
