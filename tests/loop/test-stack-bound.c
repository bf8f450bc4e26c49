// SPDX-License-Identifier: LGPL-2.1-or-later
// However many fibers are asked for, over however many loops: their stacks leave the rest of the
// process enough of vm.max_map_count.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "../node/on-loop.h"
#include "chain-core/fiber-sync.h"

enum { NO_LIMIT = 1 << 30 };

static FiberQueue waiting;

static void wait(Fiber *self, void *arg)
{
    fiber_queue_wait(self, &waiting, false, "one of many");
}

static unsigned long max_map_count(void)
{
    unsigned long n = 0;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "r");
    if (!f || fscanf(f, "%lu", &n) != 1)
        fail_msg("no vm.max_map_count");
    fclose(f);
    return n;
}

static unsigned long count_maps(void)
{
    unsigned long n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    assert_non_null(f);
    for (int c; (c = getc(f)) != EOF;)
        n += c == '\n';
    fclose(f);
    return n;
}

static void spawn_all(Fiber *self, void *arg)
{
    unsigned long n = 0, before = count_maps();
    int r;
    while ((r = fiber_spawn(fiber_loop(self), "one of many", wait, NULL, NULL)) == 0)
        n++;
    unsigned long maps = count_maps();
    print_message("# %lu fibers, %lu of at most %lu mappings\n", n, maps, max_map_count());
    assert_int_equal(r, -ENOMEM);
    assert_true(n >= 1000);
    assert_true(maps - before <= max_map_count() / 2 + 16);
    // What else needs mappings still gets them.
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *other = mmap(NULL, 3 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(other, MAP_FAILED);
    assert_int_equal(mprotect((char *)other + page, page, PROT_NONE), 0);
    munmap(other, 3 * page);
    fiber_queue_wake_all(&waiting);
}

static void stacks_leave_half_of_the_mappings(void **state)
{
    on_loop_with(&(LoopConfig){.max_fibers = NO_LIMIT}, spawn_all, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stacks_leave_half_of_the_mappings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
