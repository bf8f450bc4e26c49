// SPDX-License-Identifier: LGPL-2.1-or-later
// Looks now and then whether another program changed the size of a file that is served: one fiber
// for each loop, while there is something to watch. What it finds is an event of the file. On the
// loop.
#pragma once

#include "chain-core/node.h"

typedef struct SizeWatch SizeWatch;

SizeWatch *size_watch_new(void);
void size_watch_free(SizeWatch *watch); // empty

// Takes no reference.
void size_watch_add(SizeWatch *watch, Node *node);
void size_watch_remove(SizeWatch *watch, Node *node); // also one that is not watched
