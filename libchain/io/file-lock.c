// SPDX-License-Identifier: LGPL-2.1-or-later
// What a file holds against other programs, and whether it may be written. On the file's loop.
#include <errno.h>

#include "base/error.h"
#include "io/file-private.h"

// With the mutex.
static int change(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    unsigned held_now = file->is_inactive ? held & FILE_PERM_CONSISTENT_READ : held;
    unsigned unshared_now = file->is_inactive ? 0 : unshared;
    int r = file->takes_no_locks ? 0 : file->ops->lock(self, file, held_now, unshared_now, error);
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

void file_lock_only(Fiber *self, File *file, unsigned held, unsigned unshared)
{
    fiber_mutex_lock(self, &file->lock_mutex);
    change(self, file, file->held & held, file->unshared & unshared, NULL);
    fiber_mutex_unlock(self, &file->lock_mutex);
}

// Without any locks (of a file that is shared by intent) there are none to change. Of a file that
// is a node, or lies in one, others may be users, too: the nodes know whether one of them writes.
static int lock_for(Fiber *self, File *file, bool is_writable, GError **error)
{
    unsigned writing = FILE_PERM_WRITE | FILE_PERM_RESIZE;
    if (!(file->held | file->unshared))
        return 0;
    if (is_writable)
        return file_lock_also(self, file, writing, 0, error);
    if (!file->mode_fn)
        file_lock_only(self, file, ~writing, ~0u);
    return 0;
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

// The mode of its node may have changed since it was looked at.
static bool may_be_written(const File *file)
{
    return file->is_writable || (file->ops->may_be_written && file->ops->may_be_written(file));
}

static int reopen_kept(Fiber *self, File *file, bool is_writable, GError **error)
{
    if (is_writable && !may_be_written(file))
        return error_set(error, -EACCES, "%s: its node is read-only; reopen that one first",
                         file->path);
    int r = lock_for(self, file, is_writable, error);
    if (r == 0 && is_writable)
        file->is_writable = file->host_may_write = true;
    return r;
}

static int reopen(Fiber *self, File *file, bool is_writable, GError **error)
{
    if (file->keeps_mode)
        return reopen_kept(self, file, is_writable, error);
    int r = lock_for(self, file, is_writable, error);
    if (r < 0)
        return r;
    r = file_set_mode(self, file, is_writable, error);
    if (r < 0)
        lock_for(self, file, !is_writable, NULL);
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

int file_look_anew(Fiber *self, File *file, GError **error)
{
    file->extent_start = file->extent_end = 0; // where its holes were
    int r = file_refresh_size(self, file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", file->path, g_strerror(-r));
    if (file->is_writable)
        file_forget(file);
    else
        file_remember(self, file);
    return 0;
}

int file_set_active(Fiber *self, File *file, bool is_active, GError **error)
{
    bool was_inactive = file->is_inactive;
    if (!is_active)
        file_forget(file);
    file->is_inactive = !is_active;
    int r = file_lock_also(self, file, 0, 0, error);
    if (r == 0 && is_active)
        r = file_look_anew(self, file, error);
    if (r < 0)
        file->is_inactive = was_inactive;
    return r;
}

bool file_is_inactive(const File *file)
{
    return file->is_inactive;
}
