// SPDX-License-Identifier: LGPL-2.1-or-later
// What a power cut leaves of the simulated disk: flushed data always; the rest kept, dropped or
// torn at sectors; names by directory syncs.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim.h"

enum { SECTOR = 512, N_SECTORS = 16, FILE_BYTES = SECTOR * N_SECTORS, N_CUTS = 200 };

// What cuts at one moment can leave: bit i of a set is letter 'a'+i, bit 31 a zero.
typedef struct Outcomes {
    unsigned n_absent, n_whole;  // no file; all bytes the same
    uint32_t letters[N_SECTORS]; // seen in each sector
    bool has_torn_sector;        // two letters in one
    uint64_t min_size, max_size;
} Outcomes;

static uint32_t letter_bit(char c)
{
    return c ? UINT32_C(1) << (c - 'a') : UINT32_C(1) << 31;
}

static void note_content(Outcomes *o, const char *data, uint64_t len)
{
    bool is_whole = true;
    o->min_size = MIN(o->min_size, len);
    o->max_size = MAX(o->max_size, len);
    for (uint64_t i = 0; i < len; i++) {
        o->letters[i / SECTOR] |= letter_bit(data[i]);
        o->has_torn_sector |= i % SECTOR && data[i] != data[i - 1];
        is_whole &= data[i] == data[0];
    }
    o->n_whole += is_whole;
}

static Outcomes cut_often(const Sim *sim, const char *path)
{
    Outcomes o = {.min_size = UINT64_MAX};
    for (uint64_t seed = 0; seed < N_CUTS; seed++) {
        Sim *clone = sim_clone_after_power_cut(sim, seed);
        g_autofree void *data = NULL;
        uint64_t len;
        if (sim_read_file(clone, path, &data, &len) == 0)
            note_content(&o, data, len);
        else
            o.n_absent++;
        sim_free(clone);
    }
    return o;
}

typedef struct Test {
    Sim *sim;
    Outcomes outcomes;
    FiberWaitGroup group;
    File *file;
} Test;

static Test *disk_test_new(uint64_t seed)
{
    char data[FILE_BYTES];
    Test *test = g_new0(Test, 1);
    test->sim = sim_new(&(SimConfig){.seed = seed});
    memset(data, 'a', sizeof(data));
    sim_write_file(test->sim, "/d/f", data, sizeof(data));
    return test;
}

static void disk_test_free(Test *test)
{
    sim_free(test->sim);
    g_free(test);
}

static void write_letter(Fiber *self, File *file, uint64_t off, uint64_t len, char letter)
{
    char data[FILE_BYTES];
    memset(data, letter, sizeof(data));
    assert_int_equal(file_write(self, file, host_off(off), data, len), 0);
}

static void write_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file;
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    write_letter(self, file, 0, FILE_BYTES, 'b');
    test->outcomes = cut_often(test->sim, "/d/f");
    file_close(self, file);
}

static void a_write_is_kept_or_dropped_or_torn_at_sectors(void **state)
{
    Test *test = disk_test_new(1);
    assert_true(sim_run(test->sim, write_main, test));
    for (unsigned i = 0; i < N_SECTORS; i++)
        assert_int_equal(test->outcomes.letters[i], letter_bit('a') | letter_bit('b'));
    assert_false(test->outcomes.has_torn_sector);
    assert_in_range(test->outcomes.n_whole, 1, N_CUTS - 1);
    assert_int_equal(test->outcomes.n_absent, 0);
    disk_test_free(test);
}

static void flush_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file;
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    write_letter(self, file, 0, FILE_BYTES, 'b');
    assert_int_equal(file_flush(self, file), 0);
    write_letter(self, file, 0, SECTOR, 'c');
    test->outcomes = cut_often(test->sim, "/d/f");
    file_close(self, file);
}

static void a_flush_makes_durable_what_came_before_it(void **state)
{
    Test *test = disk_test_new(2);
    assert_true(sim_run(test->sim, flush_main, test));
    assert_int_equal(test->outcomes.letters[0], letter_bit('b') | letter_bit('c'));
    for (unsigned i = 1; i < N_SECTORS; i++)
        assert_int_equal(test->outcomes.letters[i], letter_bit('b'));
    disk_test_free(test);
}

// Two writes to one place, neither flushed: any of the three contents, sector by sector.
static void overwrite_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file;
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    write_letter(self, file, 0, FILE_BYTES, 'b');
    write_letter(self, file, 0, FILE_BYTES, 'c');
    test->outcomes = cut_often(test->sim, "/d/f");
    file_close(self, file);
}

static void overlapping_writes_land_in_either_order(void **state)
{
    Test *test = disk_test_new(3);
    assert_true(sim_run(test->sim, overwrite_main, test));
    for (unsigned i = 0; i < N_SECTORS; i++)
        assert_int_equal(test->outcomes.letters[i],
                         letter_bit('a') | letter_bit('b') | letter_bit('c'));
    disk_test_free(test);
}

// --- in flight -----------------------------------------------------------------------------------

static void flusher(Fiber *self, void *arg)
{
    Test *test = arg;
    assert_int_equal(file_flush(self, test->file), 0);
    fiber_wait_group_done(&test->group);
}

// The write begins while the flush is under way; both end.
static void concurrent_main(Fiber *self, void *arg)
{
    Test *test = arg;
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &test->file, NULL), 0);
    fiber_wait_group_add(&test->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "flusher", flusher, test, NULL), 0);
    fiber_yield(self);
    write_letter(self, test->file, 0, FILE_BYTES, 'b');
    fiber_wait_group_wait(self, &test->group);
    test->outcomes = cut_often(test->sim, "/d/f");
    file_close(self, test->file);
}

static void a_write_beside_a_flush_may_or_may_not_be_covered(void **state)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Test *test = disk_test_new(seed);
        assert_true(sim_run(test->sim, concurrent_main, test));
        assert_int_equal(test->outcomes.letters[0], letter_bit('a') | letter_bit('b'));
        disk_test_free(test);
    }
}

typedef struct FlightHook {
    SimHook hook;
    Test *test;
    SimOp op;
    int result;
} FlightHook;

// At the second operation of that kind the first is still in flight.
static int cut_at_op(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len)
{
    FlightHook *flight = (FlightHook *)hook;
    if (op != flight->op)
        return 0;
    flight->test->outcomes = cut_often(flight->test->sim, "/d/f");
    return flight->result;
}

static void two_writes_main(Fiber *self, void *arg)
{
    char b[FILE_BYTES], c[SECTOR];
    struct iovec iov[] = {{b, sizeof(b)}, {c, sizeof(c)}};
    File *file;
    IoBatch batch;
    memset(b, 'b', sizeof(b));
    memset(c, 'c', sizeof(c));
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    io_batch_init(&batch, self);
    file_write_start(file, host_off(0), &iov[0], 1, &batch);
    file_write_start(file, host_off(0), &iov[1], 1, &batch);
    assert_int_equal(io_batch_wait(self, &batch), 0);
    file_close(self, file);
}

static void a_write_in_flight_may_have_landed_in_part(void **state)
{
    unsigned n_seen = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Test *test = disk_test_new(seed);
        FlightHook hook = {{cut_at_op}, test, SIM_OP_WRITE, 0};
        sim_set_hook(test->sim, &hook.hook);
        assert_true(sim_run(test->sim, two_writes_main, test));
        // The outcomes are those of the second write's start.
        assert_false(test->outcomes.has_torn_sector);
        n_seen += test->outcomes.letters[N_SECTORS - 1] == (letter_bit('a') | letter_bit('b'));
        disk_test_free(test);
    }
    assert_true(n_seen > 0);
}

static void failing_flush_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file, *again;
    FlightHook hook = {{cut_at_op}, test, SIM_OP_FLUSH, -EIO};
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    write_letter(self, file, 0, FILE_BYTES, 'b');
    sim_set_hook(test->sim, &hook.hook);
    assert_int_equal(file_flush(self, file), -EIO);
    sim_set_hook(test->sim, NULL);
    assert_int_equal(file_flush(self, file), -EIO); // sticky
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &again, NULL), 0);
    write_letter(self, again, 0, SECTOR, 'c');
    assert_int_equal(file_flush(self, again), 0);
    test->outcomes = cut_often(test->sim, "/d/f");
    file_close(self, again);
    file_close(self, file);
}

static void what_a_failed_flush_lost_no_later_flush_saves(void **state)
{
    Test *test = disk_test_new(4);
    assert_true(sim_run(test->sim, failing_flush_main, test));
    assert_int_equal(test->outcomes.letters[1], letter_bit('a') | letter_bit('b'));
    assert_true(test->outcomes.letters[0] & letter_bit('c'));
    disk_test_free(test);
}

// --- size and holes ------------------------------------------------------------------------------

static void grow_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file;
    assert_int_equal(file_open(self, "/d/f", FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(file_truncate(self, file, FILE_BYTES / 2), 0);
    assert_int_equal(file_zero(self, file, host_off(0), SECTOR, FILE_ZERO_UNMAP), 0);
    test->outcomes = cut_often(test->sim, "/d/f");
    assert_int_equal(file_flush(self, file), 0);
    Outcomes after = cut_often(test->sim, "/d/f");
    assert_int_equal(after.min_size, FILE_BYTES / 2);
    assert_int_equal(after.max_size, FILE_BYTES / 2);
    assert_int_equal(after.letters[0], letter_bit(0));
    file_close(self, file);
}

static void truncates_and_punches_are_kept_or_dropped(void **state)
{
    Test *test = disk_test_new(5);
    assert_true(sim_run(test->sim, grow_main, test));
    assert_int_equal(test->outcomes.min_size, FILE_BYTES / 2);
    assert_int_equal(test->outcomes.max_size, FILE_BYTES);
    assert_int_equal(test->outcomes.letters[0], letter_bit('a') | letter_bit(0));
    disk_test_free(test);
}

// --- names ---------------------------------------------------------------------------------------

static void names_main(Fiber *self, void *arg)
{
    Test *test = arg;
    File *file;
    assert_int_equal(file_open(self, "/d/new", FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
    write_letter(self, file, 0, SECTOR, 'n');
    assert_int_equal(file_flush(self, file), 0);
    test->outcomes = cut_often(test->sim, "/d/new");
    assert_in_range(test->outcomes.n_absent, 1, N_CUTS - 1);
    assert_int_equal(file_sync_dir(self, "/d/other", NULL), 0); // any name in that directory
    test->outcomes = cut_often(test->sim, "/d/new");
    assert_int_equal(test->outcomes.n_absent, 0);
    assert_int_equal(test->outcomes.letters[0], letter_bit('n'));

    assert_int_equal(file_rename(self, "/d/new", "/d/f", NULL), 0);
    test->outcomes = cut_often(test->sim, "/d/f");
    assert_int_equal(test->outcomes.n_absent, 0); // the old file or the new one
    assert_int_equal(test->outcomes.letters[0], letter_bit('a') | letter_bit('n'));
    assert_int_equal(file_sync_dir(self, "/e/elsewhere", NULL), 0);
    assert_int_equal(cut_often(test->sim, "/d/f").letters[0], letter_bit('a') | letter_bit('n'));
    assert_int_equal(file_sync_dir(self, "/d/f", NULL), 0);
    assert_int_equal(cut_often(test->sim, "/d/f").letters[0], letter_bit('n'));

    assert_int_equal(file_unlink(self, "/d/f", NULL), 0);
    assert_in_range(cut_often(test->sim, "/d/f").n_absent, 1, N_CUTS - 1);
    write_letter(self, file, 0, SECTOR, 'u'); // still open
    file_close(self, file);
}

static void names_are_durable_once_their_directory_is_synced(void **state)
{
    Test *test = disk_test_new(6);
    assert_true(sim_run(test->sim, names_main, test));
    disk_test_free(test);
}

// --- cost ----------------------------------------------------------------------------------------

static void a_clone_shares_the_pages_of_a_large_file(void **state)
{
    enum { LARGE_BYTES = 64 << 20, N_CLONES = 200 };
    Sim *sim = sim_new(&(SimConfig){.seed = 1}), *clones[N_CLONES];
    g_autofree char *data = g_malloc0(LARGE_BYTES);
    sim_write_file(sim, "/large", data, LARGE_BYTES);
    for (unsigned i = 0; i < N_CLONES; i++) // copies would need 12 GiB
        clones[i] = sim_clone_after_power_cut(sim, i);
    for (unsigned i = 0; i < N_CLONES; i++)
        sim_free(clones[i]);
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_write_is_kept_or_dropped_or_torn_at_sectors),
        cmocka_unit_test(a_flush_makes_durable_what_came_before_it),
        cmocka_unit_test(overlapping_writes_land_in_either_order),
        cmocka_unit_test(a_write_beside_a_flush_may_or_may_not_be_covered),
        cmocka_unit_test(a_write_in_flight_may_have_landed_in_part),
        cmocka_unit_test(what_a_failed_flush_lost_no_later_flush_saves),
        cmocka_unit_test(truncates_and_punches_are_kept_or_dropped),
        cmocka_unit_test(names_are_durable_once_their_directory_is_synced),
        cmocka_unit_test(a_clone_shares_the_pages_of_a_large_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
