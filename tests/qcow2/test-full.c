// SPDX-License-Identifier: LGPL-2.1-or-later
// A host without space, on the simulation: a write that needs space fails itself, what was answered
// can be made durable, failed writes keep nothing, and a discard makes room.
#include "host.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image"
enum {
    CLUSTER = 4096,
    REQUEST = 256 << 10,
    SPACE_BYTES = 8 << 20,
    DISK_BYTES = 64 << 20,
    N_WRITERS = 32,
    N_OF_WRITER = DISK_BYTES / REQUEST / N_WRITERS, // requests; each writer has an area of its own
};

typedef struct Full {
    Sim *sim;
    FiberFn *fn;
    Node *node;
    uint8_t shows[DISK_BYTES / REQUEST]; // of each request's place: the byte that was acknowledged
    unsigned n_writers, n_refused;
    FiberWaitGroup group;
} Full;

static void open_fiber(Fiber *self, void *arg)
{
    Full *f = arg;
    g_autoptr(GError) error = NULL;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &f->node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    f->fn(self, f);
    node_unref_close(self, f->node);
    map_memory_free(memory);
}

static void run(Full *f, FiberFn *fn)
{
    f->fn = fn;
    assert_true(sim_run(f->sim, open_fiber, f));
}

static Full full_make(const char *options, uint64_t seed, bool no_punch)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
    Full f = {.sim = sim_new(&(SimConfig){.seed = seed,
                                          .short_transfers = seed % 2,
                                          .no_punch = no_punch,
                                          .space_bytes = SPACE_BYTES})};
    host_shell(dir, "qemu-img create -q -f qcow2 -o %s i.qcow2 64M", options);
    assert_int_equal(sim_import_file(f.sim, PATH, path), 0);
    host_remove_dir(g_steal_pointer(&dir));
    return f;
}

static void check_fiber(Fiber *self, void *arg)
{
    Qcow2CheckResult *result = arg;
    File *file;
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, result, NULL), 0);
    file_close(self, file);
}

static void full_check(Full *f)
{
    Qcow2CheckResult result;
    assert_true(sim_run(f->sim, check_fiber, &result));
    if (result.n_corruptions || result.n_leaks || result.n_check_errors)
        fail_msg("%s", (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
}

static size_t request_len(uint64_t place)
{
    return REQUEST - place % 7 * 9 * CLUSTER;
}

static void assert_shows(Fiber *self, Full *f)
{
    g_autofree uint8_t *buf = g_malloc(REQUEST);
    for (uint64_t i = 0; i < G_N_ELEMENTS(f->shows); i++) {
        assert_int_equal(node_read(self, f->node, guest_off(i * REQUEST), buf, REQUEST), 0);
        for (unsigned k = 0; f->shows[i] && k < request_len(i); k++)
            if (buf[k] != f->shows[i])
                fail_msg("%#lx shows %#x, not %#x", i * REQUEST + k, buf[k], f->shows[i]);
    }
}

// Its area in an order that jumps about, so that tables and blocks are needed all the time.
static void writer(Fiber *self, void *arg)
{
    Full *f = arg;
    unsigned number = f->n_writers++;
    g_autofree uint8_t *buf = g_malloc(REQUEST);
    for (unsigned i = 0; i < N_OF_WRITER; i++) {
        uint64_t place = number + (uint64_t)(i * 13 % N_OF_WRITER) * N_WRITERS;
        memset(buf, 1 + number, REQUEST);
        int r = node_write(self, f->node, guest_off(place * REQUEST), buf, request_len(place), 0);
        if (r == 0)
            f->shows[place] = 1 + number;
        else if (r == -ENOSPC)
            f->n_refused++;
        else
            fail_msg("a write fails: %s", g_strerror(-r));
        // Others may have emptied it, or filled it.
        if (i % 8 == 0)
            assert_int_equal(node_flush(self, f->node), 0);
    }
    fiber_wait_group_done(&f->group);
}

static void write_all(Fiber *self, Full *f)
{
    f->n_writers = 0;
    fiber_wait_group_add(&f->group, N_WRITERS);
    for (unsigned i = 0; i < N_WRITERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "writer", writer, f, NULL), 0);
    fiber_wait_group_wait(self, &f->group);
}

// After the first time nearly all fail, and what they took is given back.
static void fill_from_all_sides(Fiber *self, void *arg)
{
    Full *f = arg;
    for (unsigned i = 0; i < 6; i++)
        write_all(self, f);
    assert_true(f->n_refused > 5 * N_WRITERS);
    assert_int_equal(node_flush(self, f->node), 0);
    assert_shows(self, f);
}

static void look(Fiber *self, void *arg)
{
    assert_shows(self, arg);
}

static void trim_all(Fiber *self, void *arg)
{
    Full *f = arg;
    for (uint64_t off = 0; off < DISK_BYTES; off += DISK_BYTES / 8)
        assert_int_equal(node_discard(self, f->node, guest_off(off), DISK_BYTES / 8, 0), 0);
    assert_int_equal(node_flush(self, f->node), 0);
}

static uint64_t file_bytes(Full *f)
{
    g_autofree void *data = NULL;
    uint64_t len;
    assert_int_equal(sim_read_file(f->sim, PATH, &data, &len), 0);
    return len;
}

static void writes_that_fail_on_a_full_host_keep_nothing_and_a_trim_makes_room(void **state)
{
    static const char *const options[] = {"cluster_size=4k,refcount_bits=1",
                                          "cluster_size=4k,refcount_bits=64", "cluster_size=64k",
                                          "cluster_size=512,refcount_bits=16"};
    for (uint64_t seed = 1; seed <= 4 * 3; seed++) {
        Full f = full_make(options[seed % 4], seed, false);
        uint64_t empty = sim_used_bytes(f.sim);
        run(&f, fill_from_all_sides);
        full_check(&f);
        run(&f, look);
        // The requests in flight at one time may have moved the end of the file on, no more.
        assert_in_range(file_bytes(&f), SPACE_BYTES / 2, SPACE_BYTES + 2 * N_WRITERS * REQUEST);
        run(&f, trim_all);
        full_check(&f);
        // Tables and blocks stay, in pages that they may have to themselves with small clusters.
        uint64_t tables = seed % 4 == 3 ? SPACE_BYTES / 4 : SPACE_BYTES / 50;
        if (sim_used_bytes(f.sim) - empty > tables)
            fail_msg("seed %lu: %lu bytes stay in use", seed, sim_used_bytes(f.sim) - empty);
        sim_free(f.sim);
    }
}

static void a_full_host_that_cannot_reserve_loses_nothing(void **state)
{
    static const char *const options[] = {"cluster_size=4k,refcount_bits=1",
                                          "cluster_size=64k,refcount_bits=64"};
    for (uint64_t seed = 1; seed <= 4; seed++) {
        Full f = full_make(options[seed % 2], seed, true);
        run(&f, fill_from_all_sides);
        full_check(&f);
        run(&f, look);
        sim_free(f.sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_that_fail_on_a_full_host_keep_nothing_and_a_trim_makes_room),
        cmocka_unit_test(a_full_host_that_cannot_reserve_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
