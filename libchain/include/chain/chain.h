/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libchain: backing chains of disk images (qcow2 and raw), read and written as one disk. Every
 * function blocks until it is done and may be called from any thread, also several at a time on one
 * chain. Results are 0, or a negative errno. A chain runs on a thread of its own.
 *
 * Stable: structs given to the library begin zeroed ({0}), and their `reserved` stays zero.
 */
#ifndef LIBCHAIN_CHAIN_H
#define LIBCHAIN_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIBCHAIN_API __attribute__((visibility("default")))

typedef struct LibChain LibChain;

typedef struct LibChainOpenOptions {
    const char *format;   /* of the top image: "qcow2", "raw", or NULL: qcow2 by its magic only */
    const char *snapshot; /* internal snapshot of the top image, by id or name; read-only */
    bool read_only;
    bool direct;      /* past the page cache */
    bool force_share; /* without locks, read-only: what others write may show half-way */
    /*
     * For images that nobody vouches for, since an image can name any file of the host. The first
     * refuses images that keep their data in another file. The second lists folders (ends with
     * NULL): backing and data files must lie below one of them with all links followed, also when
     * links change meanwhile; NULL: they may lie anywhere. Neither concerns `path` itself.
     */
    bool no_data_files;
    const char *const *allowed_dirs;
    uint64_t map_memory_bytes; /* bound on cached tables and maps; 0: 32 MiB */
    uint64_t reserved[7];
} LibChainOpenOptions;

/*
 * Opens the image at `path` (or a json: name) and all images below it. `options` may be NULL. On
 * failure `*ret_error` (unless NULL) is one sentence: file, reason, remedy; free() it.
 */
LIBCHAIN_API int libchain_open(const char *path, const LibChainOpenOptions *options,
                               LibChain **ret_chain, char **ret_error);
/*
 * Flushes, then closes and frees the chain, also when the flush failed: that is the result. No
 * other call may be under way. -EAGAIN is the exception: there was no memory to begin with it, and
 * the chain is still open; call again. NULL is fine.
 */
LIBCHAIN_API int libchain_close(LibChain *chain);

typedef struct LibChainInfo {
    uint64_t size_bytes;
    uint32_t preferred_bytes; /* good size of a request, a power of 2 */
    unsigned n_layers;        /* 1: no backing image */
    bool read_only;
    const char *format; /* of the top image */
    const char *const
        *notices; /* sentences worth logging about what opening did; NULL-terminated */
} LibChainInfo;
/* Strings live as long as the chain. */
LIBCHAIN_API void libchain_get_info(const LibChain *chain, LibChainInfo *ret_info);

/* A range that does not lie inside the disk is -EINVAL; a write to a read-only chain is -EROFS. */
typedef enum LibChainFlags {
    LIBCHAIN_FUA = 1 << 0,       /* durable on return */
    LIBCHAIN_NO_UNMAP = 1 << 1,  /* zero: keep the space allocated */
    LIBCHAIN_FAST_ZERO = 1 << 2, /* zero: -ENOTSUP, data untouched, unless it is fast */
} LibChainFlags;
LIBCHAIN_API int libchain_read(LibChain *chain, uint64_t off, void *buf, size_t len);
LIBCHAIN_API int libchain_write(LibChain *chain, uint64_t off, const void *buf, size_t len,
                                unsigned flags);
LIBCHAIN_API int libchain_zero(LibChain *chain, uint64_t off, uint64_t len, unsigned flags);
/* Contents of the range are undefined afterwards until written: old, or zeros. */
LIBCHAIN_API int libchain_discard(LibChain *chain, uint64_t off, uint64_t len, unsigned flags);
/* What completed before the call is durable when it returns 0. */
LIBCHAIN_API int libchain_flush(LibChain *chain);

typedef enum LibChainExtentKind {
    LIBCHAIN_UNALLOCATED,    /* no layer has anything; reads as zeros */
    LIBCHAIN_ZERO,           /* a layer says: zeros */
    LIBCHAIN_ZERO_ALLOCATED, /* zeros, with space reserved in the layer's file */
    LIBCHAIN_DATA,           /* plain bytes of a layer's file */
    LIBCHAIN_DATA_ENCODED,   /* data that only reading gives (compressed) */
} LibChainExtentKind;
typedef struct LibChainExtent {
    uint64_t len; /* at least 1; the next extent may be of the same kind */
    LibChainExtentKind kind;
    unsigned depth;   /* the layer it was found in; 0 is the top */
    const char *file; /* DATA: the host file, as long as the chain; else NULL */
    uint64_t host_off;
} LibChainExtent;
/* What the chain has from `off` on, looking no further than `len` ≥ 1 bytes. */
LIBCHAIN_API int libchain_map(LibChain *chain, uint64_t off, uint64_t len,
                              LibChainExtent *ret_extent);

#ifdef __cplusplus
}
#endif
#endif
