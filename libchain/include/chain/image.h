/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libchain: making and checking single qcow2 images. Blocking, any thread; the same conventions as
 * chain.h.
 */
#ifndef LIBCHAIN_IMAGE_H
#define LIBCHAIN_IMAGE_H

#include "chain/chain.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct LibChainCreateOptions {
    uint64_t size_bytes;        /* rounded up to 512 */
    const char *backing_name;   /* as to be recorded, relative to the new image; NULL: none */
    const char *backing_format; /* "qcow2" or "raw"; required with backing_name */
    unsigned version;           /* 2 or 3; 0: 3 */
    uint32_t cluster_bytes;     /* 512 to 2 MiB, a power of 2; 0: 64 KiB */
    unsigned refcount_bits;     /* 1, 2, 4 … 64; 0: 16 */
    bool zstd;                  /* compression type */
    bool extended_l2;
    bool lazy_refcounts;
    bool preallocate_metadata;
    uint64_t reserved[8];
} LibChainCreateOptions;
/* `path` must not exist. A failure or a crash leaves nothing behind that opens as an image. */
LIBCHAIN_API int libchain_create(const char *path, const LibChainCreateOptions *options,
                                 char **ret_error);

typedef enum LibChainFix {
    LIBCHAIN_FIX_LEAKS = 1 << 0,
    LIBCHAIN_FIX_ERRORS = 1 << 1, /* everything else that can be repaired */
} LibChainFix;
typedef struct LibChainCheck {
    uint64_t n_corruptions, n_leaks, n_check_errors; /* found, before any repair */
    uint64_t n_corruptions_fixed, n_leaks_fixed;
    uint64_t n_allocated_clusters, n_total_clusters;
    uint64_t image_end_bytes;
    char **messages; /* a sentence per finding, NULL-terminated; libchain_check_clear() */
} LibChainCheck;
/* 0 when the check could run, whatever it found. With `fix` 0 nothing is written. */
LIBCHAIN_API int libchain_check(const char *path, unsigned fix, LibChainCheck *ret_check,
                                char **ret_error);
LIBCHAIN_API void libchain_check_clear(LibChainCheck *check);

#ifdef __cplusplus
}
#endif
#endif
