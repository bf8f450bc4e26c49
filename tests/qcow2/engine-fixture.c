// SPDX-License-Identifier: LGPL-2.1-or-later
// Test code only.

#include "engine-fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/raw.h"

void engine_fixture_init(EngineFixture *f, uint64_t map_memory_bytes)
{
    f->dir = g_dir_make_tmp("chain-engine-XXXXXX", NULL);
    assert_non_null(f->dir);
    f->memory = map_memory_new(map_memory_bytes);
}

void engine_fixture_done(EngineFixture *f)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    map_memory_free(f->memory);
    g_free(f->dir);
}

static bool shell(EngineFixture *f, bool must, const char *format, va_list args)
{
    g_autofree char *what = g_strdup_vprintf(format, args);
    g_autofree char *line = g_strdup_printf("cd '%s' && (%s) >out 2>&1", f->dir, what);
    if (system(line) == 0)
        return true;
    if (must) {
        g_autofree char *path = g_build_filename(f->dir, "out", NULL), *out = NULL;
        g_file_get_contents(path, &out, NULL, NULL);
        fail_msg("failed: %s\n%s", what, out ? out : "");
    }
    return false;
}

void engine_shell(EngineFixture *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    shell(f, true, format, args);
    va_end(args);
}

bool engine_shell_ok(EngineFixture *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool ok = shell(f, false, format, args);
    va_end(args);
    return ok;
}

typedef struct Start {
    Loop *loop;
    FiberFn *fn;
    void *arg;
} Start;

static void start_fiber(Fiber *self, void *arg)
{
    Start *s = arg;
    s->fn(self, s->arg);
    loop_stop(s->loop);
}

void engine_run(FiberFn *fn, void *arg)
{
    GError *error = NULL;
    Loop *loop = loop_new(&(LoopConfig){0}, &error);
    if (!loop)
        fail_msg("%s", error->message);
    Start s = {loop, fn, arg};
    assert_int_equal(fiber_spawn(loop, "test", start_fiber, &s, NULL), 0);
    loop_run(loop);
    loop_free(loop);
}

Node *engine_open(Fiber *self, EngineFixture *f, const char *name, const char *snapshot,
                  bool read_only, Node *backing)
{
    g_autofree char *path = g_build_filename(f->dir, name, NULL);
    GError *error = NULL;
    File *file;
    if (file_open(self, path, read_only ? 0 : FILE_WRITABLE, &file, &error) < 0)
        fail_msg("%s", error->message);
    Qcow2OpenOptions options = {.read_only = read_only, .memory = f->memory};
    Qcow2Image *image;
    if (qcow2_image_open(self, file, &options, &image, &error) < 0)
        fail_msg("%s", error->message);
    Node *node;
    if (qcow2_view_new(self, image, snapshot, &node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    if (backing) {
        node_set_backing(self, node, backing);
        node_unref_close(self, backing);
    }
    return node;
}

Node *engine_open_raw(Fiber *self, EngineFixture *f, const char *name)
{
    g_autofree char *path = g_build_filename(f->dir, name, NULL);
    GError *error = NULL;
    File *file;
    if (file_open(self, path, 0, &file, &error) < 0)
        fail_msg("%s", error->message);
    Node *node;
    if (raw_node_new(self, file, &node, &error) < 0)
        fail_msg("%s", error->message);
    return node;
}

uint64_t engine_random(uint64_t *state, uint64_t bound)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return (x * UINT64_C(0x2545f4914f6cdd1d) >> 11) % bound;
}
