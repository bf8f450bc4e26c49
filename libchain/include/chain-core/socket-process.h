// SPDX-License-Identifier: LGPL-2.1-or-later
// The process at the other end of a unix socket, as the kernel noted it when it connected. Any
// thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct SocketProcess {
    uid_t uid;
    gid_t gid;
    pid_t pid;
    GArray *groups; // gid_t: further ones
} SocketProcess;

// Owned. NULL: `fd` is no unix socket, or it is not known.
SocketProcess *socket_process_find(int fd);
void socket_process_free(SocketProcess *process); // accepts NULL
// "uid 1000 (pid 812)"; owned.
char *socket_process_text(const SocketProcess *process);
// Is its user one of `uids` (uid_t), or in one of `gids` (gid_t)? NULL: none of them. Root, and our
// own user, always are: they can do what we can.
bool socket_process_is_one_of(const SocketProcess *process, const GArray *uids, const GArray *gids);
