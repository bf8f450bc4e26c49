// SPDX-License-Identifier: LGPL-2.1-or-later
// Monitors' sockets are bound before anything is opened, as those of NBD are: a wrong path costs
// nothing. Only the daemon's user may connect: who can write to such a socket controls the daemon,
// and can have it open any file that it may open.
#include "monitors.h"

#include <unistd.h>

#include "socket-files.h"

enum { SOCKET_MODE = 0600 };

typedef struct MonitorSocket {
    int fd; // -1: it is the server's
    char *name;
} MonitorSocket;

struct Monitors {
    GArray *sockets; // MonitorSocket
    SocketFiles *files;
};

static void socket_clear(gpointer p)
{
    MonitorSocket *socket = p;
    if (socket->fd >= 0)
        close(socket->fd);
    g_free(socket->name);
}

static int open_path(Monitors *monitors, const char *path, GError **error)
{
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    int fd = socket_files_listen(monitors->files, absolute, SOCKET_MODE, error);
    if (fd < 0)
        return fd;
    MonitorSocket socket = {.fd = fd, .name = g_steal_pointer(&absolute)};
    g_array_append_val(monitors->sockets, socket);
    return 0;
}

Monitors *monitors_open(const Options *options, GError **error)
{
    Monitors *monitors = g_new0(Monitors, 1);
    monitors->files = socket_files_new();
    monitors->sockets = g_array_new(false, false, sizeof(MonitorSocket));
    g_array_set_clear_func(monitors->sockets, socket_clear);
    for (char **path = options->qmp_paths; *path; path++) {
        if (open_path(monitors, *path, error) < 0) {
            monitors_free(monitors);
            return NULL;
        }
    }
    return monitors;
}

void monitors_remove_files(const Monitors *monitors)
{
    if (monitors)
        socket_files_remove(monitors->files);
}

void monitors_free(Monitors *monitors)
{
    if (!monitors)
        return;
    socket_files_free(monitors->files);
    g_array_unref(monitors->sockets);
    g_free(monitors);
}

int monitors_serve(Monitors *monitors, QmpServer *server, GError **error)
{
    for (guint i = 0; i < monitors->sockets->len; i++) {
        MonitorSocket *socket = &g_array_index(monitors->sockets, MonitorSocket, i);
        int fd = socket->fd;
        socket->fd = -1;
        int r = qmp_server_add_listener(server, fd, socket->name);
        if (r < 0) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                        "'%s' cannot be served: no memory for a fiber's stack", socket->name);
            return r;
        }
    }
    return 0;
}
