// SPDX-License-Identifier: LGPL-2.1-or-later
// The streams of compressed clusters (qcow2 specification, "Compressed Clusters"). Pure: CPU work
// of tens of microseconds and more a cluster, so it goes to a worker.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "format/qcow2-header.h"

// The cluster of `n_out` bytes that the stream in `in` shows; what follows the stream is ignored.
// -EIO: a broken stream; -ENOMEM.
int qcow2_inflate(Qcow2Compression type, const uint8_t *in, size_t n_in, uint8_t *out,
                  size_t n_out);

// Some clusters, one behind the other.
typedef struct Qcow2DeflateRun {
    Qcow2Compression type;
    const uint8_t *in;
    uint32_t n, cluster_bytes;
    uint8_t *out;   // n * cluster_bytes
    uint32_t *lens; // n, of the streams, which follow each other in `out`
} Qcow2DeflateRun;

// Compresses the first ones, up to one that does not become smaller. How many; -ENOMEM.
int qcow2_deflate(const Qcow2DeflateRun *run);
