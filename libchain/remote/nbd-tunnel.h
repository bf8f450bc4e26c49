// SPDX-License-Identifier: LGPL-2.1-or-later
// TLS between libnbd and a server. libnbd verifies no server to whom somebody else connected it, so
// TLS is ours: libnbd gets a socket that speaks plain NBD, and two fibers pass on what comes on
// either side. On its loop.
#pragma once

#include "chain-core/loop.h"
#include "remote/nbd-address.h"

typedef struct NbdTunnel NbdTunnel;

// Takes `fd`, a socket that is connected to a server. STARTTLS and the handshake of TLS, with what
// `address` has for it, for `timeout_ns` at the longest. `*ret_fd` is libnbd's end, owned by the
// caller. It runs. Negative with a sentence.
int nbd_tunnel_open(Fiber *self, int fd, const NbdAddress *address, uint64_t timeout_ns,
                    NbdTunnel **ret_tunnel, int *ret_fd, GError **error);
// While nothing is on its way: stops it, and lets it go on, on any loop.
void nbd_tunnel_pause(Fiber *self, NbdTunnel *tunnel);
int nbd_tunnel_resume(NbdTunnel *tunnel, Loop *loop); // nothing happens to one that runs
// Once libnbd's end is shut down: what it has sent is passed on, but not for long. Accepts NULL.
void nbd_tunnel_close(Fiber *self, NbdTunnel *tunnel);
