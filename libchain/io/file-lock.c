// SPDX-License-Identifier: LGPL-2.1-or-later
// What a file holds against other programs, and whether it may be written. On the file's loop.
#include <errno.h>

#include "base/error.h"
#include "io/file-private.h"

// With the mutex.
static int change(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    int r = file->takes_no_locks ? 0 : file->ops->lock(self, file, held, unshared, error);
    if (r == 0 && !file->takes_no_locks) {
        file->held = held;
        file->unshared = unshared;
    }
    return r;
}

int file_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    fiber_mutex_lock(self, &file->lock_mutex);
    int r = change(self, file, held, unshared, error);
    fiber_mutex_unlock(self, &file->lock_mutex);
    return r;
}

int file_lock_also(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    fiber_mutex_lock(self, &file->lock_mutex);
    int r = change(self, file, file->held | held, file->unshared | unshared, error);
    fiber_mutex_unlock(self, &file->lock_mutex);
    return r;
}

// Without any locks (of a file that is shared by intent) there are none to change.
static int lock_for(Fiber *self, File *file, bool is_writable, GError **error)
{
    unsigned writing = FILE_PERM_WRITE | FILE_PERM_RESIZE;
    unsigned held = is_writable ? file->held | writing : file->held & ~writing;
    return file->held | file->unshared ? file_lock(self, file, held, file->unshared, error) : 0;
}

void file_take_no_locks(File *file)
{
    file->takes_no_locks = true;
}

// -- the mode -------------------------------------------------------------------------------------

void file_keep_mode(File *file)
{
    file->keeps_mode = true;
}

void file_set_mode_fn(File *file, FileModeFn *fn, void *arg)
{
    file->mode_fn = fn;
    file->mode_arg = arg;
}

int file_set_mode(Fiber *self, File *file, bool is_writable, GError **error)
{
    bool was_writable = file->is_writable;
    int r = 0;
    if (is_writable && !file->host_may_write)
        r = file->ops->make_writable(self, file, error);
    if (r < 0)
        return r;
    file->host_may_write |= is_writable;
    if (!is_writable && was_writable && file->ops->make_read_only) {
        file->ops->make_read_only(self, file);
        file->host_may_write = false;
    }
    file->is_writable = is_writable;
    if (file->mode_fn && is_writable != was_writable)
        file->mode_fn(file, file->mode_arg);
    return 0;
}

static int reopen(Fiber *self, File *file, bool is_writable, GError **error)
{
    unsigned held = file->held;
    if (file->keeps_mode && is_writable && !file->is_writable)
        return error_set(error, -EACCES, "%s: its node is read-only; reopen that one first",
                         file->path);
    int r = lock_for(self, file, is_writable, error);
    if (r < 0 || file->keeps_mode)
        return r;
    r = file_set_mode(self, file, is_writable, error);
    if (r < 0)
        file_lock(self, file, held, file->unshared, NULL);
    return r;
}

int file_reopen(Fiber *self, File *file, bool is_writable, GError **error)
{
    int r = is_writable ? file_check_unchanged(self, file, error) : 0;
    if (r == 0)
        r = reopen(self, file, is_writable, error);
    if (r < 0)
        return r;
    if (is_writable)
        file_forget(file);
    else
        file_remember(self, file);
    return 0;
}
