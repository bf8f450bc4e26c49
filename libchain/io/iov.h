// SPDX-License-Identifier: LGPL-2.1-or-later
// Arithmetic on iovec arrays. Pure.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

static inline size_t iov_bytes(const struct iovec *iov, unsigned n_iov)
{
    size_t sum = 0;
    for (unsigned i = 0; i < n_iov; i++)
        sum += iov[i].iov_len;
    return sum;
}

// Takes the first `n` bytes away; returns how many entries are used up (they are left as they are).
static inline unsigned iov_advance(struct iovec *iov, unsigned n_iov, size_t n)
{
    unsigned used = 0;
    while (used < n_iov && n >= iov[used].iov_len)
        n -= iov[used++].iov_len;
    if (n) {
        iov[used].iov_base = (uint8_t *)iov[used].iov_base + n;
        iov[used].iov_len -= n;
    }
    return used;
}
