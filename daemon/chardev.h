// SPDX-License-Identifier: LGPL-2.1-or-later
// A character device: what a monitor speaks through, under a name. Sockets, listening or connected,
// standard input and output, or nothing at all. Who connects before a monitor is there waits.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "daemon/qmp/peer.h"
#include "inherited-fds.h"
#include "socket-files.h"

typedef struct Chardev {
    char *id;   // NULL: --qmp made it
    char *kind; // "socket", "stdio", "null"
    char *name; // of a socket: "unix:/run/qmp.sock", "tcp:127.0.0.1:4444", "fd:3"
    bool is_server;
    GArray *sockets; // int, owned until they are served
    SocketFiles *files;
    bool is_used;     // a monitor speaks through it, to the end
    QmpPolicy policy; // of that monitor
} Chardev;

// Opens what `backend` says, a ChardevBackend that was checked (commands/chardevs.c): sockets are
// bound or connected. `id` may be NULL. Sockets in the file system are for this user only, TCP is
// for loopback addresses only: who can connect controls the daemon. NULL with a sentence, QEMU's
// where it has one. Blocking.
Chardev *chardev_open(InheritedFds *fds, const char *id, const json_t *backend, GError **error);
// Closes what was not served, and removes files. Accepts NULL.
void chardev_close(Chardev *chardev);
