// SPDX-License-Identifier: LGPL-2.1-or-later
// Whether another program changed a file that nobody may change: by its size, the time of the last
// write, and how it begins. Our own changes end before a file is remembered, and it is forgotten
// before they begin. On the file's loop.
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "io/file-private.h"

enum { HEAD_BYTES = 4096 };

static uint64_t hash(const uint8_t *data, size_t len)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); // FNV-1a
    for (size_t i = 0; i < len; i++)
        h = (h ^ data[i]) * UINT64_C(0x100000001b3);
    return h;
}

static int take(Fiber *self, File *file, FileStamp *ret_stamp)
{
    FileStamp stamp = {0};
    int r = file->ops->get_stamp ? file->ops->get_stamp(self, file, &stamp) : -ENOTSUP;
    if (r < 0)
        return r;
    g_autofree uint8_t *head = g_malloc(HEAD_BYTES);
    size_t len = MIN(stamp.size, HEAD_BYTES);
    r = file_read(self, file, host_off(0), head, len);
    stamp.head = hash(head, len);
    if (r == 0)
        *ret_stamp = stamp;
    return r;
}

void file_remember(Fiber *self, File *file)
{
    file->is_remembered = take(self, file, &file->stamp) == 0;
    file->is_change_told = false;
}

void file_forget(File *file)
{
    file->is_remembered = false;
}

// What of it; NULL: nothing.
static const char *changed_part(const FileStamp *was, const FileStamp *is)
{
    return was->size != is->size           ? "its size"
           : was->head != is->head         ? "its first bytes"
           : was->mtime_ns != is->mtime_ns ? "the time of its last write"
                                           : NULL;
}

static void tell(File *file)
{
    if (!file->is_change_told)
        file_tell(file, FILE_EVENT_CHANGED, 0, 0);
    file->is_change_told = true;
}

int file_check_unchanged(Fiber *self, File *file, GError **error)
{
    FileStamp now;
    if (!file->is_remembered ||
        take(self, file, &now) < 0) // what fails here fails for clients, too
        return 0;
    const char *part = changed_part(&file->stamp, &now);
    if (!part || !file->is_remembered)
        return 0;
    tell(file);
    return error_set(error, -ESTALE,
                     "%s was changed by another program since it was opened (%s is another): what "
                     "is built on it now would be damaged; restore it and open it again, or, if it "
                     "was only touched, say so with blockdev-reopen",
                     file->path, part);
}

int file_accept_change(Fiber *self, File *file, GError **error)
{
    FileStamp now;
    if (!file->is_remembered || take(self, file, &now) < 0)
        return 0;
    if (now.size != file->stamp.size || now.head != file->stamp.head)
        return file_check_unchanged(self, file, error);
    file->stamp = now;
    file->is_change_told = false;
    return 0;
}
