// SPDX-License-Identifier: LGPL-2.1-or-later
// A file that another program makes longer between its opening and its lock. In the simulation,
// over many orders of events.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/sim.h"

#define PATH "/disk.raw"
enum { OLD_BYTES = 4096, NEW_BYTES = 8192, N_SEEDS = 300 };

typedef struct Race {
    File *writer; // has the lock of a writer until it closes
    int result;
    uint64_t size_bytes;
    FiberWaitGroup fibers;
} Race;

static void grow_and_close(Fiber *self, void *arg)
{
    Race *race = arg;
    uint8_t more[NEW_BYTES - OLD_BYTES];
    memset(more, 0x11, sizeof more);
    assert_int_equal(file_write(self, race->writer, host_off(OLD_BYTES), more, sizeof more), 0);
    file_close(self, race->writer);
    fiber_wait_group_done(&race->fibers);
}

static void open_chain(Fiber *self, void *arg)
{
    Race *race = arg;
    g_autoptr(GError) error = NULL;
    MapMemory *memory = map_memory_new(1 << 20);
    LayerOptions options = {.format = "raw", .read_only = true, .memory = memory};
    Node *node;
    race->result = chain_open(self, PATH, &options, &node, NULL, &error);
    if (race->result == 0) {
        race->size_bytes = node->size_bytes;
        node_unref_close(self, node);
    }
    map_memory_free(memory);
    fiber_wait_group_done(&race->fibers);
}

static void race_fiber(Fiber *self, void *arg)
{
    Race *race = arg;
    unsigned perms = FILE_PERM_WRITE | FILE_PERM_RESIZE;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &race->writer, NULL), 0);
    assert_int_equal(file_lock(self, race->writer, perms, perms, NULL), 0);
    fiber_wait_group_add(&race->fibers, 2);
    assert_int_equal(fiber_spawn(fiber_loop(self), "grow", grow_and_close, race, NULL), 0);
    assert_int_equal(fiber_spawn(fiber_loop(self), "open", open_chain, race, NULL), 0);
    fiber_wait_group_wait(self, &race->fibers);
}

static void a_file_that_grew_before_it_was_locked_has_its_new_size(void **state)
{
    unsigned n_opened = 0;
    uint8_t old[OLD_BYTES] = {0};
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        assert_int_equal(sim_write_file(sim, PATH, old, sizeof old), 0);
        Race race = {0};
        assert_true(sim_run(sim, race_fiber, &race));
        if (race.result == 0)
            assert_int_equal(race.size_bytes, NEW_BYTES);
        else
            assert_int_equal(race.result, -EAGAIN);
        n_opened += race.result == 0;
        sim_free(sim);
    }
    assert_in_range(n_opened, 10, N_SEEDS - 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_that_grew_before_it_was_locked_has_its_new_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
