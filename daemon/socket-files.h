// SPDX-License-Identifier: LGPL-2.1-or-later
// Unix sockets that were made here, and are removed at the end while they are still the same ones:
// somebody may have put another socket there meanwhile. Main thread, except socket_files_remove().
#pragma once

#include <glib.h>
#include <sys/types.h>

typedef struct SocketFiles SocketFiles;

SocketFiles *socket_files_new(void);
// Removes them too. Accepts NULL.
void socket_files_free(SocketFiles *files);

// Listens at `path` (nbds_listen_unix()); the descriptor, owned, or a negative errno with a
// sentence.
int socket_files_listen(SocketFiles *files, const char *path, mode_t mode, GError **error);
// Any thread, while no other uses `files`; accepts NULL.
void socket_files_remove(const SocketFiles *files);
