// SPDX-License-Identifier: LGPL-2.1-or-later
// Objects that say who may connect, for others. Control loop.
#pragma once

#include "daemon/daemon.h"

// Borrowed; NULL with a sentence.
TlsAuthz *object_authz_find(const Daemon *daemon, const char *id, GError **error);
