// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests of whole chains: an empty folder for each test, images in it made by shell commands,
// and chains that are opened, looked at and closed on a loop.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../node/on-loop.h"
#include "chain-core/chain.h"

static char *dir;

static void shell(const char *format, ...) G_GNUC_PRINTF(1, 2);
static inline void shell(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *there = g_strdup_printf("cd '%s' && { %s; } >out 2>&1", dir, command);
    if (system(there) != 0)
        fail_msg("failed: %s", command);
}

static inline char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

typedef struct OpenTest {
    const char *path;
    LayerOptions options;
    FiberFn *with; // called with the open chain in `node`
    Node *node;
    ChainInfo info;
    int result;
    char *message; // of the error, or NULL
    void *arg;
} OpenTest;

static inline void open_and_close(Fiber *self, void *arg)
{
    OpenTest *t = arg;
    GError *error = NULL;
    MapMemory *memory = map_memory_new(8 << 20);
    t->options.memory = memory;
    t->result = chain_open(self, t->path, &t->options, &t->node, &t->info, &error);
    if (t->result < 0) {
        assert_non_null(error);
        t->message = g_strdup(error->message);
        g_error_free(error);
    } else {
        assert_null(error);
        if (t->with)
            t->with(self, t);
        node_unref_close(self, t->node);
    }
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_SLICES), 0);
    map_memory_free(memory);
}

static inline void open_test_clear(OpenTest *t)
{
    g_clear_pointer(&t->message, g_free);
}

static inline void assert_opens(const char *path, const char *format, unsigned n_layers,
                                FiberFn *with)
{
    OpenTest t = {.path = path, .options = {.format = format, .read_only = true}, .with = with};
    on_loop(open_and_close, &t);
    if (t.result < 0)
        fail_msg("%s: %s", path, t.message);
    assert_int_equal(t.info.n_layers, n_layers);
    open_test_clear(&t);
}

static inline void assert_refused(const char *path, const char *format, const char *const *words)
{
    OpenTest t = {.path = path, .options = {.format = format, .read_only = true}};
    on_loop(open_and_close, &t);
    if (t.result >= 0)
        fail_msg("%s was opened", path);
    for (; *words; words++) {
        if (!strstr(t.message, *words))
            fail_msg("'%s' does not speak of '%s'", t.message, *words);
    }
    assert_null(strchr(t.message, '\n'));
    open_test_clear(&t);
}
#define REFUSED(path, format, ...)                                                                 \
    assert_refused(path, format, (const char *const[]){__VA_ARGS__, NULL})

static inline void assert_reads(Fiber *self, Node *node, uint64_t off, int byte)
{
    uint8_t buf[512];
    assert_int_equal(node_read(self, node, guest_off(off), buf, sizeof buf), 0);
    for (size_t i = 0; i < sizeof buf; i++)
        assert_int_equal(buf[i], byte);
}

static inline void reads_11_at_0(Fiber *self, void *arg)
{
    assert_reads(self, ((OpenTest *)arg)->node, 0, 0x11);
}

// A base with 0x11 at 0, under the given name.
static inline void make_base(const char *name)
{
    g_autofree char *quoted = g_shell_quote(name);
    shell("qemu-img create -q -f qcow2 %s 1M && qemu-io -c 'write -P 0x11 0 64k' %s", quoted,
          quoted);
}

// qemu-img no longer leaves the backing format out, so it is cut out of the header: its extension
// becomes one of an unknown type, which readers must skip.
static inline void cut_out_recorded_format(const char *path)
{
    static const uint8_t type[4] = {0xe2, 0x79, 0x2a, 0xca};
    gsize len;
    g_autofree char *data = NULL;
    assert_true(g_file_get_contents(path, &data, &len, NULL));
    char *at = memmem(data, 4096, type, sizeof type);
    assert_non_null(at);
    at[0] = 0x12;
    assert_true(g_file_set_contents(path, data, (gssize)len, NULL));
}

static inline int make_dir(void **state)
{
    dir = g_dir_make_tmp("chaind-test-chain-XXXXXX", NULL);
    return dir ? 0 : -1;
}

static inline int remove_dir(void **state)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", dir);
    int r = system(command);
    g_free(dir);
    return r;
}
