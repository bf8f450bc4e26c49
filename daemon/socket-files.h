// SPDX-License-Identifier: LGPL-2.1-or-later
// Unix sockets that were made here, and are removed at the end while they are still the same ones:
// somebody may have put another socket there meanwhile. Main thread, except socket_files_remove().
#pragma once

#include <glib.h>
#include <sys/types.h>

typedef struct SocketFiles SocketFiles;

// Who may connect.
typedef struct SocketAccess {
    mode_t mode; // 0: as the umask says
    uid_t owner; // -1: as they are; likewise:
    gid_t group;
} SocketAccess;

SocketFiles *socket_files_new(void);
// Removes them too. Accepts NULL.
void socket_files_free(SocketFiles *files);

// Listens at `path` (nbds_listen_unix()); the descriptor, owned, or a negative errno with a
// sentence.
int socket_files_listen(SocketFiles *files, const char *path, const SocketAccess *access,
                        GError **error);
// From now on, for who connects. -errno with a sentence.
int socket_files_set_access(const SocketFiles *files, const SocketAccess *access, GError **error);
// Any thread, while no other uses `files`; accepts NULL.
void socket_files_remove(const SocketFiles *files);
