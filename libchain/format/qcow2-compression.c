// SPDX-License-Identifier: LGPL-2.1-or-later
// zlib streams are raw deflate with a window of 4 KiB, zstd ones are frames. Levels are the
// libraries' defaults. A stream that is as long as its cluster would save nothing: the output has
// room for one byte less. Pure; any thread.
#include "format/qcow2-compression.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <zlib.h>
#include <zstd.h>

enum { WINDOW_BITS = -12, MEMORY_LEVEL = 9 };

// -- inflating ------------------------------------------------------------------------------------

static int inflate_zlib(const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    z_stream z = {.next_in = (Bytef *)in, .avail_in = n_in, .next_out = out, .avail_out = n_out};
    if (inflateInit2(&z, WINDOW_BITS) != Z_OK)
        return -ENOMEM;
    int r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    // The stream may be followed by padding up to the sector's end.
    bool is_done = (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0;
    return is_done ? 0 : -EIO;
}

static int inflate_zstd(const uint8_t *data, size_t n_in, uint8_t *buf, size_t n_out)
{
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    if (!ctx)
        return -ENOMEM;
    // Clusters are at most 2 MiB; a frame that asks for a window far beyond that is refused.
    ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, 23);
    ZSTD_inBuffer in = {data, n_in, 0};
    ZSTD_outBuffer out = {buf, n_out, 0};
    int r = 0;
    while (r == 0 && out.pos < out.size) {
        size_t before_in = in.pos, before_out = out.pos;
        size_t left = ZSTD_decompressStream(ctx, &out, &in);
        if (ZSTD_isError(left) || (in.pos == before_in && out.pos == before_out))
            r = -EIO;
    }
    ZSTD_freeDCtx(ctx);
    return r;
}

int qcow2_inflate(Qcow2Compression type, const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    return type == QCOW2_COMPRESSION_ZSTD ? inflate_zstd(in, n_in, out, n_out)
                                          : inflate_zlib(in, n_in, out, n_out);
}

// -- deflating ------------------------------------------------------------------------------------

// One cluster: the length of its stream; 0: it does not become smaller.
typedef size_t DeflateFn(void *context, const uint8_t *in, size_t n_in, uint8_t *out);

static size_t deflate_zlib(void *context, const uint8_t *in, size_t n_in, uint8_t *out)
{
    z_stream *z = context;
    deflateReset(z);
    z->next_in = (Bytef *)in;
    z->avail_in = n_in;
    z->next_out = out;
    z->avail_out = n_in - 1;
    return deflate(z, Z_FINISH) == Z_STREAM_END ? n_in - 1 - z->avail_out : 0;
}

static size_t deflate_zstd(void *context, const uint8_t *in, size_t n_in, uint8_t *out)
{
    size_t len = ZSTD_compress2(context, out, n_in - 1, in, n_in);
    return ZSTD_isError(len) ? 0 : len;
}

static int deflate_each(const Qcow2DeflateRun *run, DeflateFn *fn, void *context)
{
    uint8_t *out = run->out;
    uint32_t i = 0;
    for (; i < run->n; i++) {
        size_t len = fn(context, run->in + (size_t)i * run->cluster_bytes, run->cluster_bytes, out);
        if (!len)
            break;
        run->lens[i] = len;
        out += len;
    }
    return i;
}

int qcow2_deflate(const Qcow2DeflateRun *run)
{
    int r;
    if (run->type == QCOW2_COMPRESSION_ZSTD) {
        ZSTD_CCtx *zstd = ZSTD_createCCtx();
        if (!zstd)
            return -ENOMEM;
        r = deflate_each(run, deflate_zstd, zstd);
        ZSTD_freeCCtx(zstd);
        return r;
    }
    z_stream zlib = {0};
    if (deflateInit2(&zlib, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, MEMORY_LEVEL,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    r = deflate_each(run, deflate_zlib, &zlib);
    deflateEnd(&zlib);
    return r;
}
