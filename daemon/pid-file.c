// SPDX-License-Identifier: LGPL-2.1-or-later
// A lock on the file, held as long as the process runs, tells whether the number in it is that of
// a running one.
#include "pid-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct PidFile {
    char *path;
    int fd; // holds the lock
};

// True when `fd` is locked, and still what `path` names: its owner may have removed it meanwhile.
static bool try_own(int fd, const char *path)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat ours, there;
    return fcntl(fd, F_OFD_SETLK, &lock) == 0 && fstat(fd, &ours) == 0 && stat(path, &there) == 0 &&
           ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

PidFile *pid_file_new(const char *path, GError **error)
{
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    int fd = open(absolute, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "cannot create PID file '%s': %s", path, g_strerror(errno));
        return NULL;
    }
    ssize_t len = (ssize_t)strlen(text);
    if (!try_own(fd, absolute) || ftruncate(fd, 0) < 0 || write(fd, text, (size_t)len) != len) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "cannot create PID file '%s': it is another process's, or cannot be written",
                    path);
        close(fd);
        return NULL;
    }
    PidFile *file = g_new0(PidFile, 1);
    file->path = g_steal_pointer(&absolute);
    file->fd = fd;
    return file;
}

void pid_file_free(PidFile *file)
{
    if (!file)
        return;
    unlink(file->path);
    close(file->fd);
    g_free(file->path);
    g_free(file);
}
