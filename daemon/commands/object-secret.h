// SPDX-License-Identifier: LGPL-2.1-or-later
// What secrets are for others. Control loop.
#pragma once

#include "daemon/daemon.h"

// The bytes of a secret, which end with a NUL more; owned. NULL with a sentence.
char *object_secret_read(Fiber *self, const Daemon *daemon, const char *id, GError **error);
