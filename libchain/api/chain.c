// SPDX-License-Identifier: LGPL-2.1-or-later
// The installed API of a chain: each call runs in a fiber on the chain's own loop. Any thread.
#include "chain/chain.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "api/loop-thread.h"
#include "api/text.h"
#include "chain-core/chain.h"
#include "chain-core/port.h"
#include "chain-core/remote-call.h"

enum { MAP_MEMORY_BYTES = 32 << 20, MAX_PIECE_BYTES = 32 << 20 };

struct LibChain {
    LoopThread thread;
    MapMemory *memory;
    Port port;
    Node *node; // constant facts of it are read by any thread
    ChainInfo info;
    NodeEvents events;
    GPtrArray *notices; // char * of its opening, then NULL; unchanged once open
};

// -- opening ----------------------------------------------------------------------------------

static LibChain *chain_of(const NodeEvents *events)
{
    return (LibChain *)((char *)events - offsetof(LibChain, events));
}

static void keep_notice(const NodeEvents *events, const char *sentence)
{
    LibChain *chain = chain_of(events);
    if (!chain->node)
        g_ptr_array_add(chain->notices, g_strdup(sentence));
}

typedef struct OpenCall {
    LibChain *chain;
    const char *path;
    LayerOptions options;
    int result;
    GError *error;
} OpenCall;

static void open_on_loop(Fiber *self, void *arg)
{
    OpenCall *call = arg;
    LibChain *chain = call->chain;
    call->result =
        chain_open(self, call->path, &call->options, &chain->node, &chain->info, &call->error);
    if (call->result < 0)
        return;
    g_ptr_array_add(chain->notices, NULL);
    port_init(&chain->port, chain->node, "libchain");
}

static void chain_free(LibChain *chain)
{
    if (chain->thread.loop)
        loop_thread_stop(&chain->thread);
    g_ptr_array_unref(chain->notices);
    map_memory_free(chain->memory);
    g_free(chain);
}

int libchain_open(const char *path, const LibChainOpenOptions *options, LibChain **ret_chain,
                  char **ret_error)
{
    static const LibChainOpenOptions defaults;
    if (!options)
        options = &defaults;
    LibChain *chain = g_new0(LibChain, 1);
    chain->events = (NodeEvents){.notice = keep_notice};
    chain->notices = g_ptr_array_new_with_free_func(g_free);
    chain->memory = map_memory_new(options->map_memory_bytes ?: MAP_MEMORY_BYTES);
    OpenCall call = {.chain = chain,
                     .path = path,
                     .options = {.format = options->format,
                                 .snapshot = options->snapshot,
                                 .read_only = options->read_only,
                                 .direct = options->direct,
                                 .force_share = options->force_share,
                                 .allowed_dirs = options->allowed_dirs,
                                 .no_data_files = options->no_data_files,
                                 .memory = chain->memory,
                                 .events = &chain->events}};
    int r = loop_thread_start(&chain->thread, &call.error);
    if (r == 0)
        r = remote_call(chain->thread.loop, open_on_loop, &call);
    if (r == 0)
        r = call.result;
    if (r < 0) {
        text_take_error(call.error, ret_error);
        chain_free(chain);
        return r;
    }
    *ret_chain = chain;
    return 0;
}

typedef struct CloseCall {
    LibChain *chain;
    int result;
} CloseCall;

static void close_on_loop(Fiber *self, void *arg)
{
    CloseCall *call = arg;
    LibChain *chain = call->chain;
    call->result = chain->node->read_only ? 0 : node_flush(self, chain->node);
    port_done(self, &chain->port);
    node_unref_close(self, chain->node);
}

int libchain_close(LibChain *chain)
{
    if (!chain)
        return 0;
    CloseCall call = {.chain = chain};
    if (remote_call_reserve(chain->thread.loop, close_on_loop, &call) < 0)
        return -EAGAIN;
    chain_free(chain);
    return call.result;
}

void libchain_get_info(const LibChain *chain, LibChainInfo *ret_info)
{
    *ret_info = (LibChainInfo){
        .size_bytes = chain->node->size_bytes,
        .preferred_bytes = chain->node->preferred_bytes,
        .n_layers = chain->info.n_layers,
        .read_only = chain->node->read_only,
        .format = chain->info.top_format,
        .notices = (const char *const *)chain->notices->pdata,
    };
}

// -- requests ---------------------------------------------------------------------------------

typedef struct Request {
    LibChain *chain;
    RequestKind kind;
    uint64_t off, len;
    void *buf;
    const void *data;
    NodeIoFlags flags;
    LibChainExtent *ret_extent;
    int (*fn)(Fiber *self, Node *node, const struct Request *request);
    int result;
} Request;

static void request_on_loop(Fiber *self, void *arg)
{
    Request *request = arg;
    Port *port = &request->chain->port;
    Node *node = port_enter(self, port, request->kind);
    request->result = request->fn(self, node, request);
    port_leave(port, request->kind);
}

static int run_request(Request request)
{
    uint64_t size = request.chain->node->size_bytes;
    if (request.off > size || request.len > size - request.off)
        return -EINVAL;
    int r = remote_call(request.chain->thread.loop, request_on_loop, &request);
    return r < 0 ? r : request.result;
}

static NodeIoFlags node_flags(unsigned flags)
{
    return (flags & LIBCHAIN_FUA ? NODE_IO_FUA : 0) |
           (flags & LIBCHAIN_NO_UNMAP ? NODE_IO_NO_UNMAP : 0) |
           (flags & LIBCHAIN_FAST_ZERO ? NODE_IO_FAST_ZERO : 0);
}

static int do_read(Fiber *self, Node *node, const Request *request)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < request->len; at += MAX_PIECE_BYTES)
        r = node_read(self, node, guest_off(request->off + at), (uint8_t *)request->buf + at,
                      MIN(request->len - at, MAX_PIECE_BYTES));
    return r;
}

int libchain_read(LibChain *chain, uint64_t off, void *buf, size_t len)
{
    return run_request(
        (Request){.chain = chain, .off = off, .len = len, .buf = buf, .fn = do_read});
}

static int do_write(Fiber *self, Node *node, const Request *request)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < request->len; at += MAX_PIECE_BYTES)
        r = node_write(self, node, guest_off(request->off + at),
                       (const uint8_t *)request->data + at, MIN(request->len - at, MAX_PIECE_BYTES),
                       request->flags);
    return r;
}

int libchain_write(LibChain *chain, uint64_t off, const void *buf, size_t len, unsigned flags)
{
    return run_request((Request){.chain = chain,
                                 .kind = REQUEST_WRITE,
                                 .off = off,
                                 .len = len,
                                 .data = buf,
                                 .flags = node_flags(flags),
                                 .fn = do_write});
}

static int do_zero(Fiber *self, Node *node, const Request *request)
{
    return node_zero(self, node, guest_off(request->off), request->len, request->flags);
}

int libchain_zero(LibChain *chain, uint64_t off, uint64_t len, unsigned flags)
{
    return run_request((Request){.chain = chain,
                                 .kind = REQUEST_ZERO,
                                 .off = off,
                                 .len = len,
                                 .flags = node_flags(flags),
                                 .fn = do_zero});
}

static int do_discard(Fiber *self, Node *node, const Request *request)
{
    return node_discard(self, node, guest_off(request->off), request->len, request->flags);
}

int libchain_discard(LibChain *chain, uint64_t off, uint64_t len, unsigned flags)
{
    return run_request((Request){.chain = chain,
                                 .kind = REQUEST_DISCARD,
                                 .off = off,
                                 .len = len,
                                 .flags = node_flags(flags),
                                 .fn = do_discard});
}

static int do_flush(Fiber *self, Node *node, const Request *request)
{
    return node_flush(self, node);
}

int libchain_flush(LibChain *chain)
{
    return run_request((Request){.chain = chain, .kind = REQUEST_FLUSH, .fn = do_flush});
}

static int do_map(Fiber *self, Node *node, const Request *request)
{
    static const LibChainExtentKind kinds[] = {
        [NODE_EXTENT_BELOW] = LIBCHAIN_UNALLOCATED,
        [NODE_EXTENT_ZERO] = LIBCHAIN_ZERO,
        [NODE_EXTENT_ZERO_ALLOCATED] = LIBCHAIN_ZERO_ALLOCATED,
        [NODE_EXTENT_DATA] = LIBCHAIN_DATA,
        [NODE_EXTENT_OPAQUE] = LIBCHAIN_DATA_ENCODED,
    };
    NodeExtent extent;
    int r = node_status(self, node, guest_off(request->off), request->len, &extent);
    if (r < 0)
        return r;
    *request->ret_extent =
        (LibChainExtent){.len = extent.len, .kind = kinds[extent.kind], .depth = extent.depth};
    if (extent.kind == NODE_EXTENT_DATA) {
        request->ret_extent->file = file_path(extent.file);
        request->ret_extent->host_off = extent.host.v;
    }
    return 0;
}

int libchain_map(LibChain *chain, uint64_t off, uint64_t len, LibChainExtent *ret_extent)
{
    if (len == 0)
        return -EINVAL;
    return run_request(
        (Request){.chain = chain, .off = off, .len = len, .ret_extent = ret_extent, .fn = do_map});
}
