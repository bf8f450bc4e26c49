// SPDX-License-Identifier: LGPL-2.1-or-later
// The beginning and the end of what files add to a loop. Loop thread.
#include "io/io-loop.h"

#include "io/file-private.h"

void io_loop_init(IoLoop *io, const LoopBackend *loop_backend, const IoBackend *backend,
                  const LoopConfig *config)
{
    *io = (IoLoop){.backend = backend};
    loop_init(&io->loop, loop_backend, config);
}

void io_loop_done(IoLoop *io)
{
    while (io->free_transfers) {
        FileTransfer *x = io->free_transfers;
        io->free_transfers = x->next;
        g_free(x);
    }
    loop_done(&io->loop);
}
