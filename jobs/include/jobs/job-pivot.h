// SPDX-License-Identifier: LGPL-2.1-or-later
// The moment at which guests are taken from one node to another.
#pragma once

#include <glib.h>

#include "chain-core/fiber.h"

// What has to be durable before guests write where they are taken: which image is the disk from
// then on. Called on the nodes' loop while guests wait, when both show the same and the new one is
// durable; if it fails they stay where they are. `before` NULL: nothing has.
typedef struct JobPivot {
    int (*before)(Fiber *self, void *arg, GError **error);
    void *arg;
} JobPivot;
