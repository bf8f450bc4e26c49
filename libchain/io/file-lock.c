// SPDX-License-Identifier: LGPL-2.1-or-later
// What a file holds against other programs, and whether it may be written. On the file's loop.
#include "io/file-private.h"

// With the mutex.
static int change(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    int r = file->ops->lock(self, file, held, unshared, error);
    if (r == 0) {
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

int file_reopen(Fiber *self, File *file, bool is_writable, GError **error)
{
    unsigned held = file->held;
    int r = lock_for(self, file, is_writable, error);
    if (r == 0 && is_writable && !file->host_may_write) {
        r = file->ops->make_writable(self, file, error);
        if (r == 0)
            file->host_may_write = true;
        else
            file_lock(self, file, held, file->unshared, NULL);
    }
    if (r == 0)
        file->is_writable = is_writable;
    return r;
}
