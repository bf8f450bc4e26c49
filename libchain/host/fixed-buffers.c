// SPDX-License-Identifier: LGPL-2.1-or-later
// Small direct reads through registered memory. It is registered when the first one comes: a
// loop without direct I/O pins nothing. Loop thread.
#include "host/fixed-buffers.h"

#include <string.h>
#include <sys/mman.h>

#include "host/host-ring.h"

struct FixedBuffer {
    LoopOp op;
    FixedBuffers *owner;
    FileTransfer *transfer;
    uint8_t *bytes;
};

static void give_back(FixedBuffer *b)
{
    b->owner->free[b->owner->n_free++] = b; // the warmest is taken first
}

static void transferred(LoopOp *op, int result)
{
    FixedBuffer *b = (FixedBuffer *)op;
    FileTransfer *x = b->transfer;
    if (result > 0)
        memcpy(x->iov[x->first_iov].iov_base, b->bytes, (size_t)result);
    give_back(b);
    x->op.done(&x->op, result);
}

static bool prepare(FixedBuffers *buffers, HostRing *ring)
{
    struct iovec iov = {.iov_len = (size_t)FIXED_BUFFERS * FIXED_BUFFER_BYTES};
    iov.iov_base =
        mmap(NULL, iov.iov_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (iov.iov_base == MAP_FAILED)
        return false;
    if (io_uring_register_buffers(&ring->uring, &iov, 1) < 0) {
        munmap(iov.iov_base, iov.iov_len);
        return false;
    }
    buffers->memory = iov.iov_base;
    buffers->all = g_new0(FixedBuffer, FIXED_BUFFERS);
    for (size_t i = FIXED_BUFFERS; i-- > 0;) {
        FixedBuffer *b = &buffers->all[i];
        b->op.done = transferred;
        b->owner = buffers;
        b->bytes = buffers->memory + i * FIXED_BUFFER_BYTES;
        give_back(b);
    }
    return true;
}

bool fixed_buffers_try_read(FixedBuffers *buffers, HostRing *ring, FileTransfer *x, int fd)
{
    const struct iovec *iov = &x->iov[x->first_iov];
    if (x->n_left_iov != 1 || iov->iov_len > FIXED_BUFFER_BYTES || buffers->is_refused)
        return false;
    if (!buffers->memory && !prepare(buffers, ring)) {
        buffers->is_refused = true;
        return false;
    }
    if (!buffers->n_free)
        return false;
    FixedBuffer *b = buffers->free[--buffers->n_free];
    b->transfer = x;
    struct io_uring_sqe *sqe = host_ring_get_sqe(ring, &b->op);
    io_uring_prep_read_fixed(sqe, fd, b->bytes, (unsigned)iov->iov_len, x->off, 0);
    return true;
}

void fixed_buffers_done(FixedBuffers *buffers)
{
    if (buffers->memory)
        munmap(buffers->memory, (size_t)FIXED_BUFFERS * FIXED_BUFFER_BYTES);
    g_free(buffers->all);
}
