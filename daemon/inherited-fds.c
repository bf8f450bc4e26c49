// SPDX-License-Identifier: LGPL-2.1-or-later
// A set of numbers, which only shrinks.
#include "inherited-fds.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/qmp/error.h"

struct InheritedFds {
    GMutex mutex;
    GHashTable *numbers; // of nobody yet
};

InheritedFds *inherited_fds_new(void)
{
    InheritedFds *fds = g_new0(InheritedFds, 1);
    g_mutex_init(&fds->mutex);
    fds->numbers = g_hash_table_new(NULL, NULL);
    GDir *dir = g_dir_open("/proc/self/fd", 0, NULL);
    for (const char *name; dir && (name = g_dir_read_name(dir));) {
        int fd = (int)g_ascii_strtoll(name, NULL, 10);
        if (fd > STDERR_FILENO)
            g_hash_table_add(fds->numbers, GINT_TO_POINTER(fd));
    }
    if (dir)
        g_dir_close(dir);
    GHashTableIter iter; // the directory's own is closed by now
    gpointer fd;
    g_hash_table_iter_init(&iter, fds->numbers);
    while (g_hash_table_iter_next(&iter, &fd, NULL))
        if (fcntl(GPOINTER_TO_INT(fd), F_GETFD) < 0)
            g_hash_table_iter_remove(&iter);
    return fds;
}

void inherited_fds_free(InheritedFds *fds)
{
    if (!fds)
        return;
    g_mutex_clear(&fds->mutex);
    g_hash_table_unref(fds->numbers);
    g_free(fds);
}

static bool remove_number(InheritedFds *fds, int fd)
{
    g_mutex_lock(&fds->mutex);
    bool was_there = g_hash_table_remove(fds->numbers, GINT_TO_POINTER(fd));
    g_mutex_unlock(&fds->mutex);
    return was_there;
}

static bool is_stream_socket(int fd)
{
    int type = 0;
    socklen_t len = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
}

int inherited_fds_take(InheritedFds *fds, const char *text, GError **error)
{
    guint64 number;
    if (!g_ascii_string_to_unsigned(text, 10, 0, INT_MAX, &number, NULL))
        return qmp_fail(error, "Unable to parse FD number %s", text);
    int fd = (int)number;
    if (!is_stream_socket(fd))
        return qmp_fail(error, "File descriptor '%s' is not a socket", text);
    if (!remove_number(fds, fd))
        return qmp_fail(error,
                        "File descriptor '%s' is in use, or is none that the process was started "
                        "with",
                        text);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

void inherited_fds_forget(InheritedFds *fds, int first, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        remove_number(fds, first + (int)i);
}
