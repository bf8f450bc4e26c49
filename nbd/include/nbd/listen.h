// SPDX-License-Identifier: LGPL-2.1-or-later
// Listening sockets for an NBD server. Blocking (address lookup, bind); the control path only.
#pragma once

#include <glib.h>
#include <sys/types.h>

// Binds a unix socket at `path` (≤ 107 bytes), replacing a socket there that nobody listens on.
// `mode` 0 leaves it to the umask; `owner`, `group` -1 leave them. Returns the descriptor, owned,
// or -errno with a sentence.
int nbds_listen_unix(const char *path, mode_t mode, uid_t owner, gid_t group, GError **error);

// Binds `host` ("", "*" or NULL: every address) on `port` (name or number; "0" picks one) for each
// address the host has, IPv4 and IPv6. Appends the descriptors (int), owned, to `ret_fds`. 0 when
// at least one could be bound, or -errno with a sentence.
int nbds_listen_tcp(const char *host, const char *port, GArray *ret_fds, GError **error);
