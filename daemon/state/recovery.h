// SPDX-License-Identifier: LGPL-2.1-or-later
// What a crash has left: changes that were begun come to their end, or are taken back, by what the
// headers of images say.
#pragma once

#include "chain-core/fiber.h"

typedef struct Daemon Daemon;

// Before any disk is opened, with the catalogue's lock. Control loop.
void disks_recover(Fiber *self, Daemon *daemon);
// At the end, before nodes are closed.
void disks_stop(Daemon *daemon);
