// SPDX-License-Identifier: LGPL-2.1-or-later
// The blocking API where memory runs out. (What it does otherwise is tested as it is installed.)
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <glib.h>
#include <glib/gstdio.h>

#include "chain-core/fiber.h"
#include "chain/chain.h"
#include "chain/image.h"

static bool no_stack;

int __real_fiber_spawn_reserve(Loop *loop, const char *name, FiberFn *fn, void *arg);
int __wrap_fiber_spawn_reserve(Loop *loop, const char *name, FiberFn *fn, void *arg);
int __wrap_fiber_spawn_reserve(Loop *loop, const char *name, FiberFn *fn, void *arg)
{
    return no_stack ? -ENOMEM : __real_fiber_spawn_reserve(loop, name, fn, arg);
}

static void a_close_without_memory_loses_nothing_and_can_be_called_again(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chain-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "a.qcow2", NULL);
    LibChainCreateOptions create = {.size_bytes = 1 << 20};
    assert_int_equal(libchain_create(path, &create, NULL), 0);
    LibChain *chain;
    assert_int_equal(libchain_open(path, NULL, &chain, NULL), 0);
    assert_int_equal(libchain_write(chain, 0, "precious", 8, 0), 0);
    no_stack = true;
    assert_int_equal(libchain_close(chain), -EAGAIN);
    no_stack = false;
    assert_int_equal(libchain_close(chain), 0);

    char buf[8];
    assert_int_equal(libchain_open(path, NULL, &chain, NULL), 0);
    assert_int_equal(libchain_read(chain, 0, buf, sizeof buf), 0);
    assert_memory_equal(buf, "precious", sizeof buf);
    assert_int_equal(libchain_close(chain), 0);
    g_remove(path);
    g_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_close_without_memory_loses_nothing_and_can_be_called_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
