// SPDX-License-Identifier: LGPL-2.1-or-later
// Makes new qcow2 images and overlays. In a fiber.
#pragma once

#include <glib.h>

#include "chain-core/file.h"
#include "chain-core/units.h"

typedef struct Qcow2CreateOptions {
    uint64_t size_bytes;    // rounded up to 512
    unsigned version;       // 2 or 3; 0 = 3
    uint64_t cluster_bytes; // power of 2, 512 B … 2 MiB; 0 = 64 KiB
    uint64_t refcount_bits; // 1, 2, 4 … 64; 0 = 16
    bool zstd;              // compression type
    bool extended_l2;       // needs cluster_bytes ≥ 16 KiB
    bool lazy_refcounts;
    bool preallocate_metadata; // with a backing file only if extended_l2
    bool reserve_data;         // with that: the host's space for all data is taken
    // Where data lies instead, open and writable: it keeps its content, and is made as long as the
    // disk if it is shorter. NULL: in the image.
    File *data_file;
    const char *data_name;      // as to be recorded
    bool raw_data;              // data_file by itself shows what the image does
    const char *backing_name;   // as to be recorded; NULL: none
    const char *backing_format; // required with backing_name
} Qcow2CreateOptions;

// Creates `path`, which must not exist. The header is written last, after all else is durable, so a
// crash leaves no file that opens as something else. On failure the file is removed again.
int qcow2_create(Fiber *self, const char *path, const Qcow2CreateOptions *options, GError **error);
// The same in an open, writable file, or a block device that is large enough, which loses its
// content. On failure it has none that opens.
int qcow2_create_in(Fiber *self, File *file, const Qcow2CreateOptions *options, GError **error);
