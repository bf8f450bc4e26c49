// SPDX-License-Identifier: LGPL-2.1-or-later
// What files add to a loop: how its back end opens files and changes names, and the transfers that
// wait for use. Every loop of this program is one; a back end's own loop struct starts with it. For
// libchain/io and the back ends. Loop thread.
#pragma once

#include "chain-core/file.h"
#include "loop/loop-private.h"

typedef struct FileTransfer FileTransfer;

// file_open() and the operations on names, with their contracts. `*ret_file` starts with a File
// that file_init() filled.
typedef struct IoBackend {
    int (*file_open)(Fiber *self, Loop *loop, const char *path, FileOpenFlags flags,
                     File **ret_file, GError **error);
    int (*file_rename)(Fiber *self, const char *from, const char *to, GError **error);
    int (*file_unlink)(Fiber *self, const char *path, GError **error);
    int (*file_sync_dir)(Fiber *self, const char *path_in_dir, GError **error);
} IoBackend;

typedef struct IoLoop {
    Loop loop;
    const IoBackend *backend;
    FileTransfer *free_transfers; // a burst's are not kept for ever
    unsigned n_free_transfers;
    unsigned n_buffered_writes; // file_n_buffered_writes(); the back end counts
} IoLoop;

// loop_init() and loop_done() are part of these.
void io_loop_init(IoLoop *io, const LoopBackend *loop_backend, const IoBackend *backend,
                  const LoopConfig *config);
void io_loop_done(IoLoop *io);

static inline IoLoop *io_loop_of(Loop *loop)
{
    return (IoLoop *)loop;
}
