// SPDX-License-Identifier: LGPL-2.1-or-later
// Who is at the other end of a socket (NbdsPeer). Any thread.
#pragma once

#include "nbd/server.h"

// What the kernel says now; owned. TLS's identity is the caller's to set.
NbdsPeer *nbds_peer_new(int fd);
void nbds_peer_free(NbdsPeer *peer); // accepts NULL
