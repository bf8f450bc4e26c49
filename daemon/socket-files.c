// SPDX-License-Identifier: LGPL-2.1-or-later
// Remembers what it bound by device and inode.
#include "socket-files.h"

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

int socket_files_listen(SocketFiles *files, const char *path, mode_t mode, GError **error)
{
    int fd = nbds_listen_unix(path, mode, (uid_t)-1, (gid_t)-1, error);
    struct stat st;
    if (fd >= 0 && stat(path, &st) == 0) {
        SocketFile file = {g_strdup(path), st.st_dev, st.st_ino};
        g_array_append_val(files->files, file);
    }
    return fd;
}

void socket_files_remove(const SocketFiles *files)
{
    for (guint i = 0; files && i < files->files->len; i++) {
        const SocketFile *file = &g_array_index(files->files, SocketFile, i);
        struct stat st;
        if (lstat(file->path, &st) == 0 && st.st_dev == file->device && st.st_ino == file->inode)
            unlink(file->path);
    }
}
