// SPDX-License-Identifier: LGPL-2.1-or-later
// The installed API for single images: each call has a loop of its own for as long as it takes. Any
// thread. Repair holds the locks of a writer, a mere check those of a reader.
#include "chain/image.h"

#include <errno.h>

#include "api/loop-thread.h"
#include "api/text.h"
#include "base/error.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/remote-call.h"

typedef struct ImageCall {
    const char *path;
    const LibChainCreateOptions *create;
    unsigned fix;
    LibChainCheck *ret_check;
    int result;
    GError *error;
} ImageCall;

static int run_call(ImageCall *call, FiberFn *fn, char **ret_error)
{
    LoopThread thread;
    int r = loop_thread_start(&thread, &call->error);
    if (r == 0) {
        r = remote_call(thread.loop, fn, call);
        loop_thread_stop(&thread);
    }
    if (r == 0)
        r = call->result;
    if (r < 0)
        text_take_error(call->error, ret_error);
    return r;
}

static void create_on_loop(Fiber *self, void *arg)
{
    ImageCall *call = arg;
    const LibChainCreateOptions *from = call->create;
    Qcow2CreateOptions options = {
        .size_bytes = from->size_bytes,
        .version = from->version,
        .cluster_bytes = from->cluster_bytes,
        .refcount_bits = from->refcount_bits,
        .zstd = from->zstd,
        .extended_l2 = from->extended_l2,
        .lazy_refcounts = from->lazy_refcounts,
        .preallocate_metadata = from->preallocate_metadata,
        .backing_name = from->backing_name,
        .backing_format = from->backing_format,
    };
    call->result = qcow2_create(self, call->path, &options, &call->error);
}

int libchain_create(const char *path, const LibChainCreateOptions *options, char **ret_error)
{
    ImageCall call = {.path = path, .create = options};
    return run_call(&call, create_on_loop, ret_error);
}

static void copy_result(const Qcow2CheckResult *from, LibChainCheck *to)
{
    *to = (LibChainCheck){
        .n_corruptions = from->n_corruptions,
        .n_leaks = from->n_leaks,
        .n_check_errors = from->n_check_errors,
        .n_corruptions_fixed = from->n_corruptions_fixed,
        .n_leaks_fixed = from->n_leaks_fixed,
        .n_allocated_clusters = from->n_allocated_clusters,
        .n_total_clusters = from->n_total_clusters,
        .image_end_bytes = from->image_end_offset,
    };
    guint n = from->messages ? from->messages->len : 0;
    to->messages = g_new0(char *, n + 1);
    for (guint i = 0; i < n; i++)
        to->messages[i] = g_strdup(from->messages->pdata[i]);
}

// A file may have grown between its opening and its lock.
static int measure(Fiber *self, File *file, GError **error)
{
    int r = file_refresh_size(self, file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", file_path(file), g_strerror(-r));
    return 0;
}

static int check(Fiber *self, ImageCall *call)
{
    bool writable = call->fix != 0;
    unsigned held = FILE_PERM_CONSISTENT_READ | (writable ? FILE_PERM_WRITE | FILE_PERM_RESIZE : 0);
    unsigned fix = (call->fix & LIBCHAIN_FIX_LEAKS ? QCOW2_CHECK_FIX_LEAKS : 0) |
                   (call->fix & LIBCHAIN_FIX_ERRORS ? QCOW2_CHECK_FIX_ERRORS : 0);
    File *file;
    Qcow2CheckResult result = {0};
    int r = file_open(self, call->path, writable ? FILE_WRITABLE : 0, &file, &call->error);
    if (r < 0)
        return r;
    r = file_lock(self, file, held, FILE_PERM_WRITE | FILE_PERM_RESIZE, &call->error);
    if (r == 0)
        r = measure(self, file, &call->error);
    if (r == 0)
        r = qcow2_check(self, file, fix, &result, &call->error);
    if (r == 0)
        copy_result(&result, call->ret_check);
    qcow2_check_result_clear(&result);
    file_close(self, file);
    return r;
}

static void check_on_loop(Fiber *self, void *arg)
{
    ImageCall *call = arg;
    call->result = check(self, call);
}

int libchain_check(const char *path, unsigned fix, LibChainCheck *ret_check, char **ret_error)
{
    ImageCall call = {.path = path, .fix = fix, .ret_check = ret_check};
    return run_call(&call, check_on_loop, ret_error);
}

void libchain_check_clear(LibChainCheck *check)
{
    g_strfreev(check->messages);
    *check = (LibChainCheck){0};
}
