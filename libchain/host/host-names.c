// SPDX-License-Identifier: LGPL-2.1-or-later
// Operations on names of the host: one blocking call each, on a worker. In a fiber.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "host/host-loop.h"

typedef struct NameCall {
    const char *path, *to;
} NameCall;

static int rename_call(void *arg)
{
    NameCall *c = arg;
    return rename(c->path, c->to) < 0 ? -errno : 0;
}

int host_file_rename(Fiber *self, const char *from, const char *to, GError **error)
{
    NameCall c = {from, to};
    int r = loop_work(self, rename_call, &c);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "cannot rename %s to %s: %s",
                    from, to, g_strerror(-r));
    return r;
}

static int unlink_call(void *arg)
{
    NameCall *c = arg;
    return unlink(c->path) < 0 ? -errno : 0;
}

int host_file_unlink(Fiber *self, const char *path, GError **error)
{
    NameCall c = {path, NULL};
    int r = loop_work(self, unlink_call, &c);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "cannot remove %s: %s", path,
                    g_strerror(-r));
    return r;
}

static int sync_dir_call(void *arg)
{
    NameCall *c = arg;
    int fd = open(c->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return r == -EINVAL ? 0 : r; // this file system has nothing to sync
}

int host_file_sync_dir(Fiber *self, const char *path_in_dir, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path_in_dir);
    NameCall c = {dir, NULL};
    int r = loop_work(self, sync_dir_call, &c);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "cannot sync the directory %s: %s", dir, g_strerror(-r));
    return r;
}
