// SPDX-License-Identifier: LGPL-2.1-or-later
// Remembers what it bound by device and inode.
#include "socket-files.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbd/listen.h"

typedef struct SocketFile {
    char *path;
    dev_t device;
    ino_t inode;
} SocketFile;

struct SocketFiles {
    GArray *files; // SocketFile
};

SocketFiles *socket_files_new(void)
{
    SocketFiles *files = g_new0(SocketFiles, 1);
    files->files = g_array_new(false, false, sizeof(SocketFile));
    return files;
}

void socket_files_free(SocketFiles *files)
{
    if (!files)
        return;
    socket_files_remove(files);
    for (guint i = 0; i < files->files->len; i++)
        g_free(g_array_index(files->files, SocketFile, i).path);
    g_array_unref(files->files);
    g_free(files);
}

int socket_files_listen(SocketFiles *files, const char *path, const SocketAccess *access,
                        GError **error)
{
    int fd = nbds_listen_unix(path, access->mode, access->owner, access->group, error);
    struct stat st;
    if (fd >= 0 && stat(path, &st) == 0) {
        SocketFile file = {g_strdup(path), st.st_dev, st.st_ino};
        g_array_append_val(files->files, file);
    }
    return fd;
}

static bool is_there(const SocketFile *file)
{
    struct stat st;
    return lstat(file->path, &st) == 0 && st.st_dev == file->device && st.st_ino == file->inode;
}

int socket_files_set_access(const SocketFiles *files, const SocketAccess *access, GError **error)
{
    for (guint i = 0; i < files->files->len; i++) {
        const SocketFile *file = &g_array_index(files->files, SocketFile, i);
        if (is_there(file) && (chown(file->path, access->owner, access->group) < 0 ||
                               (access->mode && chmod(file->path, access->mode) < 0))) {
            g_set_error(
                error, G_FILE_ERROR, g_file_error_from_errno(errno),
                "cannot change who may use '%s' (only root gives files away, others to groups "
                "that they are in): %s",
                file->path, g_strerror(errno));
            return -errno;
        }
    }
    return 0;
}

void socket_files_remove(const SocketFiles *files)
{
    for (guint i = 0; files && i < files->files->len; i++) {
        const SocketFile *file = &g_array_index(files->files, SocketFile, i);
        if (is_there(file))
            unlink(file->path);
    }
}
