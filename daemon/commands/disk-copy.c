// SPDX-License-Identifier: LGPL-2.1-or-later
// On a file system with reflinks the image of a point in time is copied in a moment, whatever its
// size: nobody writes it, and its blocks are shared. The copy is named by an intent before it is
// made, and is nobody's then. Control loop.
#include "disk-copy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "chain-core/loop.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"

static const QmpType copy_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"disk", &qmp_str, .doc = "the disk"},
                            {"point", &qmp_str, .doc = "the point in time"},
                            {"target", &qmp_str,
                             .doc = "the file of the copy, which must not exist, on the same "
                                    "file system"},
                            {0}},
};
static const QmpType copy_info = {
    .name = "DiskCopyInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"target", &qmp_str, .doc = "the file of the copy"},
                                   {"size", &qmp_int, .doc = "its size in bytes"},
                                   {0}},
};

typedef struct Reflink {
    const char *from, *to;
    bool is_made;
    int64_t size_bytes;
} Reflink;

static int share(Reflink *link, int from, int to)
{
    if (ioctl(to, FICLONE, from) < 0 || fsync(to) < 0)
        return -errno;
    link->size_bytes = lseek(to, 0, SEEK_END);
    return disk_files_sync_directory_of(link->to);
}

// On a worker.
static int reflink(void *arg)
{
    Reflink *link = arg;
    int from = open(link->from, O_RDONLY | O_CLOEXEC);
    int to = from < 0 ? -1 : open(link->to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r = to < 0 ? -errno : 0;
    link->is_made = to >= 0;
    if (r == 0)
        r = share(link, from, to);
    if (to >= 0)
        close(to);
    if (from >= 0)
        close(from);
    return r;
}

static bool cannot_share(int r)
{
    return r == -EOPNOTSUPP || r == -EXDEV || r == -EINVAL || r == -ENOTTY;
}

static int explain(int r, const Reflink *link, GError **error)
{
    if (cannot_share(r))
        return qmp_disk_refuse(error, r,
                               "'%s' cannot share blocks with '%s': that takes one file system "
                               "with reflinks, such as XFS or Btrfs; disk-backup copies anywhere",
                               link->to, link->from);
    return qmp_disk_refuse(error, r, "'%s' cannot be made of '%s': %s", link->to, link->from,
                           g_strerror(-r));
}

// What lies below it is named in its header, from where it is.
static int check(Fiber *self, const Point *point, const char *target, GError **error)
{
    g_autofree char *here = g_path_get_dirname(point->layer->file);
    g_autofree char *there = g_path_get_dirname(target);
    if (point->layer->is_merging)
        return qmp_fail(error, "the point '%s' is on its way out: its layer is being merged",
                        point->name);
    if (!g_path_is_absolute(point->layer->file))
        return qmp_fail(error, "'%s' is no file of this machine", point->layer->file);
    if (point->layer->below && !g_str_equal(here, there))
        return qmp_fail(error,
                        "'%s' stands on another image: its copy has to lie beside it, in '%s'; or "
                        "shorten the chain with disk-flatten first",
                        point->layer->file, here);
    if (disk_files_exist(self, target))
        return qmp_fail(error, "'%s' exists already: choose another name", target);
    return 0;
}

// While the intent is there the copy goes at the next start.
static int end_intent(Fiber *self, const Catalogue *catalogue, int64_t intent, GError **error)
{
    DatabaseChange *change = database_change_new();
    catalogue_end_intent(change, intent);
    return database_write(self, catalogue->database, change, error);
}

static int copy_as(Fiber *self, Daemon *daemon, const Point *point, const char *target,
                   json_t **ret_reply, GError **error)
{
    Reflink link = {.from = point->layer->file, .to = target};
    int64_t intent = catalogue_intend(self, daemon->catalogue, "make",
                                      json_pack("{s:[s]}", "files", target), error);
    if (intent < 0)
        return -EIO;
    stop_point("disk-copy-point: it is intended");
    int r = loop_work(self, reflink, &link);
    stop_point("disk-copy-point: it is made");
    r = r < 0 ? explain(r, &link, error) : end_intent(self, daemon->catalogue, intent, error);
    if (r < 0) {
        json_t *files = link.is_made ? json_pack("[s]", target) : json_array();
        disk_files_remove_intended(self, daemon, intent, files);
        json_decref(files);
        return r;
    }
    *ret_reply = json_pack("{s:s, s:I}", "target", target, "size", (json_int_t)link.size_bytes);
    return 0;
}

static int copy(Fiber *self, const QmpCall *call, const Catalogue *catalogue, const json_t *args,
                json_t **ret_reply, GError **error)
{
    g_autofree char *target = g_canonicalize_filename(qmp_args_str(args, "target"), NULL);
    Disk *disk;
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r < 0)
        return r;
    const Point *point = disk_get_point(disk, qmp_args_str(args, "point"), error);
    if (!point)
        return -ENOENT;
    r = check(self, point, target, error);
    return r == 0 ? copy_as(self, call->daemon, point, target, ret_reply, error) : r;
}

static int disk_copy_point(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = copy(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-copy-point", &copy_args, &copy_info,
     "Makes a file of its own of a point in time, in a moment and without taking space: its blocks "
     "are shared (reflinks). With disk-snapshot before, and disk-delete-point by a commit after "
     "it, "
     "that is a backup of a disk that is in use. The file is nobody's then.",
     disk_copy_point},
    {0},
};

const QmpFamily qmp_disk_copy_family = {.title = "Points in time of disks as files",
                                        .commands = commands};
