// SPDX-License-Identifier: LGPL-2.1-or-later
// The file is found as opening it would find it, but only as a place (O_PATH: nothing is opened).
// Then the kernel goes from the allowed folder down to where that place is said to be, through no
// link and never out of the folder, and must arrive at the same file. What is opened later under
// the name is compared with it, so that swapping files or links in between gains nothing. Blocking
// calls, on a worker.
#include "chain/allowed-dirs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

typedef struct Check {
    const char *const *dirs;
    const char *path;
    struct stat found;
    bool is_allowed;
    int fd; // of the file, when it is allowed
} Check;

// Where an open descriptor is, without links; owned, or NULL.
static char *place_of(int fd)
{
    g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
    return g_file_read_link(link, NULL);
}

// Does `below`, gone down from `dir` without links, lead to the file that was found?
static bool leads_to(int dir, const char *below, const struct stat *found)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
    int fd = (int)syscall(SYS_openat2, dir, below, &how, sizeof how);
    if (fd < 0)
        return false;
    struct stat st;
    bool same = fstat(fd, &st) == 0 && st.st_dev == found->st_dev && st.st_ino == found->st_ino;
    close(fd);
    return same;
}

static bool is_below(const char *dir_path, const char *place, const struct stat *found)
{
    int dir = open(dir_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return false;
    bool below = false;
    g_autofree char *top = place_of(dir);
    size_t len = top ? strlen(top) : 0;
    if (len == 1) // the root: its slash is also the first one of all places
        len = 0;
    if (top && strncmp(place, top, len) == 0 && place[len] == '/')
        below = leads_to(dir, place + len + 1, found);
    close(dir);
    return below;
}

static int check_work(void *arg)
{
    Check *c = arg;
    int fd = open(c->path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fstat(fd, &c->found) < 0 ? -errno : 0;
    g_autofree char *place = r == 0 ? place_of(fd) : NULL;
    for (const char *const *dir = c->dirs; place && *dir && !c->is_allowed; dir++)
        c->is_allowed = is_below(*dir, place, &c->found);
    if (c->is_allowed)
        c->fd = fd;
    else
        close(fd);
    return r;
}

static int refuse(const char *const *dirs, const char *path, GError **error)
{
    g_autofree char *all = g_strjoinv("', '", (char **)dirs);
    return error_set(error, -EACCES,
                     "%s: not below the folders that are allowed for files named by images ('%s'); "
                     "move it there, or allow its folder",
                     path, all);
}

// As file_identity() has it.
static void identify(const struct stat *st, uint64_t ret_id[2])
{
    bool is_device = S_ISBLK(st->st_mode);
    ret_id[0] = is_device ? UINT64_MAX : st->st_dev;
    ret_id[1] = is_device ? st->st_rdev : st->st_ino;
}

int allowed_dirs_check(Fiber *self, const char *const *dirs, const char *path,
                       AllowedFile *ret_allowed, GError **error)
{
    ret_allowed->fd = -1;
    if (!dirs)
        return 0;
    Check check = {.dirs = dirs, .path = path, .fd = -1};
    int r = loop_work(self, check_work, &check);
    if (r < 0)
        return error_set(error, r, "%s: %s", path, g_strerror(-r));
    identify(&check.found, ret_allowed->id);
    ret_allowed->fd = check.fd;
    return check.is_allowed ? 0 : refuse(dirs, path, error);
}

int allowed_dirs_confirm(const char *const *dirs, const File *file, const AllowedFile *allowed,
                         GError **error)
{
    uint64_t now[2];
    file_identity(file, now);
    return !dirs || memcmp(now, allowed->id, sizeof now) == 0
               ? 0
               : refuse(dirs, file_path(file), error);
}

void allowed_file_release(AllowedFile *allowed)
{
    if (allowed->fd >= 0)
        close(allowed->fd);
    allowed->fd = -1;
}
