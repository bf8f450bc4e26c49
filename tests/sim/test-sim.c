// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation as a loop: order, virtual time, hooks, faults, nesting, file operations. What a
// power cut leaves is in test-sim-power-cut.c.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim.h"

enum { FILE_BYTES = 64 * 1024, N_WORKERS = 4, N_ROUNDS = 30, MAX_BYTES = 2048 };

// Content and shadow, each worker in its own quarter of the file.
typedef struct Load {
    Sim *sim;
    const char *path;
    FileOpenFlags flags;
    uint8_t shadow[FILE_BYTES];
    FiberWaitGroup workers;
    File *file;
    unsigned n_started, n_failed;
} Load;

static void load_write(Fiber *self, Load *load, uint64_t off, uint64_t len)
{
    uint8_t data[MAX_BYTES];
    memset(data, (int)sim_random(load->sim, 256), len);
    int r = file_write(self, load->file, host_off(off), data, len);
    if (r == 0)
        memcpy(load->shadow + off, data, len);
    else
        load->n_failed++;
}

static void load_worker(Fiber *self, void *arg)
{
    Load *load = arg;
    uint64_t start = load->n_started++ * (FILE_BYTES / N_WORKERS);
    uint8_t data[MAX_BYTES];
    for (unsigned i = 0; i < N_ROUNDS; i++) {
        uint64_t len = 1 + sim_random(load->sim, sizeof(data));
        uint64_t off = start + sim_random(load->sim, FILE_BYTES / N_WORKERS - len + 1);
        switch (sim_random(load->sim, 5)) {
        case 0:
            assert_int_equal(file_zero(self, load->file, host_off(off), len, FILE_ZERO_UNMAP), 0);
            memset(load->shadow + off, 0, len);
            break;
        case 1:
            assert_int_equal(file_flush(self, load->file), 0);
            break;
        case 2:
            if (file_read(self, load->file, host_off(off), data, len) == 0)
                assert_memory_equal(data, load->shadow + off, len);
            break;
        default:
            load_write(self, load, off, len);
        }
    }
    fiber_wait_group_done(&load->workers);
}

static void load_main(Fiber *self, void *arg)
{
    Load *load = arg;
    g_autofree uint8_t *data = g_malloc(FILE_BYTES); // more than a stack holds
    int r = file_open(self, load->path, FILE_WRITABLE | load->flags, &load->file, NULL);
    assert_int_equal(r, 0);
    fiber_wait_group_add(&load->workers, N_WORKERS);
    for (unsigned i = 0; i < N_WORKERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "worker", load_worker, load, NULL), 0);
    fiber_wait_group_wait(self, &load->workers);
    assert_int_equal(file_read(self, load->file, host_off(0), data, FILE_BYTES), 0);
    assert_memory_equal(data, load->shadow, FILE_BYTES);
    file_close(self, load->file);
}

static uint64_t run_load(const SimConfig *config, FileOpenFlags flags)
{
    Sim *sim = sim_new(config);
    g_autofree Load *load = g_new0(Load, 1);
    *load = (Load){.sim = sim, .path = "/disk", .flags = flags};
    sim_write_file(sim, "/disk", load->shadow, FILE_BYTES);
    assert_true(sim_run(sim, load_main, load));
    uint64_t hash = sim_trace_hash(sim);
    sim_free(sim);
    return hash;
}

static void one_seed_gives_one_run_and_another_seed_another(void **state)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        SimConfig config = {.seed = seed, .short_transfers = true, .inline_completion = seed % 2};
        uint64_t hash = run_load(&config, 0);
        assert_int_equal(run_load(&config, 0), hash);
        config.seed += 100;
        assert_int_not_equal(run_load(&config, 0), hash);
    }
}

static void content_matches_a_shadow_for_every_kind_of_transfer(void **state)
{
    for (uint64_t seed = 1; seed <= 24; seed++) {
        SimConfig config = {.seed = seed,
                            .short_transfers = seed & 1,
                            .inline_completion = seed & 2,
                            .no_punch = seed % 3 == 0};
        run_load(&config, seed & 4 ? FILE_DIRECT : 0);
    }
}

// --- order ---------------------------------------------------------------------------------------

typedef struct Order {
    FiberWaitGroup group;
    char order[9];
    unsigned n;
} Order;

typedef struct Runner {
    Order *order;
    char name;
} Runner;

static void order_fiber(Fiber *self, void *arg)
{
    Runner *runner = arg;
    runner->order->order[runner->order->n++] = runner->name;
    fiber_wait_group_done(&runner->order->group);
}

static void order_main(Fiber *self, void *arg)
{
    Order *order = arg;
    Runner runners[8];
    fiber_wait_group_add(&order->group, 8);
    for (unsigned i = 0; i < 8; i++) {
        runners[i] = (Runner){order, (char)('a' + i)};
        assert_int_equal(fiber_spawn(fiber_loop(self), "runner", order_fiber, &runners[i], NULL),
                         0);
    }
    fiber_wait_group_wait(self, &order->group);
}

static void runnable_fibers_run_in_an_order_that_the_seed_picks(void **state)
{
    unsigned n_different = 0;
    char first[9] = "";
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        Order order = {0};
        assert_true(sim_run(sim, order_main, &order));
        if (seed == 1)
            memcpy(first, order.order, sizeof(first));
        n_different += strcmp(first, order.order) != 0;
        sim_free(sim);
    }
    assert_true(n_different >= 8);
}

// --- time, messages, workers ---------------------------------------------------------------------

static void sleeper(Fiber *self, void *arg)
{
    uint64_t start = loop_now_ns(fiber_loop(self));
    assert_int_equal(fiber_sleep(self, UINT64_C(3600000000000)), 0);
    assert_true(loop_now_ns(fiber_loop(self)) - start >= UINT64_C(3600000000000));
}

static void time_is_virtual_and_jumps_to_the_next_event(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, sleeper, NULL)); // an hour, which the test's time limit is far below
    sim_free(sim);
}

typedef struct Message {
    LoopCall call;
    Fiber *sender;
    Loop *ran_on, *back;
    bool is_answered;
} Message;

static void message_back(LoopCall *call)
{
    Message *message = (Message *)call;
    message->is_answered = true;
    fiber_wake(message->sender);
}

static void message_there(LoopCall *call)
{
    Message *message = (Message *)call;
    message->call.fn = message_back;
    loop_post(message->back, call);
}

static int double_it(void *arg)
{
    return 2 * *(int *)arg;
}

static void poster(Fiber *self, void *arg)
{
    Message message = {.call.fn = message_there, .sender = self, .back = fiber_loop(self)};
    int number = 21;
    loop_post(arg, &message.call);
    while (!message.is_answered)
        fiber_suspend(self, "answer");
    assert_int_equal(loop_work(self, double_it, &number), 42);
}

static void loops_exchange_messages_and_workers_work(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        sim_loop_new(sim);
        assert_true(sim_run(sim, poster, sim_loop_new(sim)));
        sim_free(sim);
    }
}

// --- hooks ---------------------------------------------------------------------------------------

typedef struct Counter {
    SimHook hook;
    uint64_t fail_at;
    int result;
    unsigned n_of[16];
} Counter;

static int count_op(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Counter *counter = (Counter *)hook;
    counter->n_of[op]++;
    return n == counter->fail_at ? counter->result : 0;
}

static void every_op(Fiber *self, void *arg)
{
    int *first_error = arg;
    char buf[100] = "data";
    File *file = NULL;
    bool is_data;
    uint64_t len;
    int r[12] = {file_open(self, "/new", FILE_WRITABLE | FILE_CREATE, &file, NULL)};
    if (file) {
        r[1] = file_write(self, file, host_off(0), buf, sizeof(buf));
        r[2] = file_read(self, file, host_off(0), buf, sizeof(buf));
        r[3] = file_flush(self, file);
        r[4] = file_truncate(self, file, 65536);
        r[5] = file_zero(self, file, host_off(0), 4096, FILE_ZERO_UNMAP);
        r[6] = file_discard(self, file, host_off(8192), 4096);
        r[7] = file_find_extent(self, file, host_off(0), 4096, &is_data, &len);
        r[11] = file_reserve(self, file, host_off(0), 4096);
        file_close(self, file);
    }
    r[8] = file_rename(self, "/new", "/other", NULL);
    r[9] = file_sync_dir(self, "/other", NULL);
    if (r[0] == 0 && r[8] == 0)
        r[10] = file_unlink(self, "/other", NULL);
    for (unsigned i = 0; i < 12 && *first_error == 0; i++)
        *first_error = r[i];
}

static void the_hook_sees_every_kind_of_operation(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 3});
    Counter counter = {.hook.fn = count_op};
    int error = 0;
    sim_set_hook(sim, &counter.hook);
    assert_true(sim_run(sim, every_op, &error));
    assert_int_equal(error, 0);
    for (unsigned op = SIM_OP_READ; op <= SIM_OP_SYNC_DIR; op++)
        assert_int_equal(counter.n_of[op], 1);
    assert_int_equal(sim_n_ops(sim), 11);
    sim_free(sim);
}

static void an_error_at_the_nth_operation_reaches_its_caller(void **state)
{
    for (uint64_t n = 1; n <= 11; n++) {
        Sim *sim = sim_new(&(SimConfig){.seed = n});
        Counter counter = {.hook.fn = count_op, .fail_at = n, .result = -EIO};
        int error = 0;
        sim_set_hook(sim, &counter.hook);
        assert_true(sim_run(sim, every_op, &error));
        assert_int_equal(error, -EIO);
        sim_free(sim);
    }
}

typedef struct FlushFailure {
    unsigned n_calls;
    int error;
} FlushFailure;

static void note_failure(File *file, const FileEvent *event, void *arg)
{
    FlushFailure *f = arg;
    assert_int_equal(event->kind, FILE_EVENT_FLUSH_FAILED);
    assert_true(file_flush_failed(file));
    f->n_calls++;
    f->error = event->error;
}

static void fails_to_flush(Fiber *self, void *arg)
{
    File *file = NULL;
    assert_int_equal(file_open(self, "/new", FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
    file_set_event_fn(file, note_failure, arg);
    assert_int_equal(file_flush(self, file), -ENOSPC);
    assert_int_equal(file_flush(self, file), -EIO);
    file_close(self, file);
}

static void the_first_flush_that_fails_is_told_once(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 3});
    Counter counter = {.hook.fn = count_op, .fail_at = 2, .result = -ENOSPC};
    FlushFailure failure = {0};
    sim_set_hook(sim, &counter.hook);
    assert_true(sim_run(sim, fails_to_flush, &failure));
    assert_int_equal(failure.n_calls, 1);
    assert_int_equal(failure.error, -ENOSPC);
    sim_free(sim);
}

typedef struct Told {
    FileEventKind kind;
    uint64_t off;
    int error;
    unsigned n;
} Told;

static void note_event(File *file, const FileEvent *event, void *arg)
{
    Told *told = arg;
    *told = (Told){event->kind, event->off, event->error, told->n + 1};
}

static void file_ops(Fiber *self, void *arg)
{
    char buf[100] = "data";
    File *file = NULL;
    assert_int_equal(file_open(self, "/new", FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
    file_set_event_fn(file, note_event, arg);
    file_write(self, file, host_off(0), buf, sizeof(buf));
    file_read(self, file, host_off(50), buf, 50);
    file_truncate(self, file, 65536);
    file_zero(self, file, host_off(512), 4096, FILE_ZERO_UNMAP);
    file_discard(self, file, host_off(8192), 4096);
    file_close(self, file);
}

static void each_failure_of_the_host_is_told_with_its_offset(void **state)
{
    static const struct {
        FileEventKind kind;
        uint64_t off;
    } want[] = {
        {FILE_EVENT_WRITE_FAILED, 0},        {FILE_EVENT_READ_FAILED, 50},
        {FILE_EVENT_TRUNCATE_FAILED, 65536}, {FILE_EVENT_ZERO_FAILED, 512},
        {FILE_EVENT_DISCARD_FAILED, 8192},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(want); i++) {
        Sim *sim = sim_new(&(SimConfig){.seed = 3});
        Counter counter = {.hook.fn = count_op, .fail_at = 2 + i, .result = -EIO};
        Told told = {0};
        sim_set_hook(sim, &counter.hook);
        assert_true(sim_run(sim, file_ops, &told));
        assert_int_equal(told.n, 1);
        assert_int_equal(told.kind, want[i].kind);
        assert_int_equal(told.off, want[i].off);
        assert_int_equal(told.error, -EIO);
        sim_free(sim);
    }
}

static void a_power_cut_ends_the_run_and_abandons_its_fibers(void **state)
{
    for (uint64_t n = 1; n <= 40; n++) {
        Sim *sim = sim_new(&(SimConfig){.seed = n});
        Counter counter = {.hook.fn = count_op, .fail_at = n, .result = SIM_POWER_CUT};
        g_autofree Load *load = g_new0(Load, 1);
        *load = (Load){.sim = sim, .path = "/disk", .flags = n % 2 ? FILE_DIRECT : 0};
        sim_write_file(sim, "/disk", load->shadow, FILE_BYTES);
        sim_set_hook(sim, &counter.hook);
        assert_false(sim_run(sim, load_main, load));
        assert_int_equal(sim_n_ops(sim), n);
        sim_free(sim);
    }
}

static int run_another(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                       uint64_t len)
{
    if (n % 10 == 0)
        run_load(&(SimConfig){.seed = n, .inline_completion = true}, 0);
    return 0;
}

static void a_hook_can_run_another_simulation(void **state)
{
    SimConfig config = {.seed = 7, .inline_completion = true};
    uint64_t hash = run_load(&config, 0);
    Sim *sim = sim_new(&config);
    SimHook hook = {run_another};
    g_autofree Load *load = g_new0(Load, 1);
    *load = (Load){.sim = sim, .path = "/disk"};
    sim_write_file(sim, "/disk", load->shadow, FILE_BYTES);
    sim_set_hook(sim, &hook);
    assert_true(sim_run(sim, load_main, load));
    assert_int_equal(sim_trace_hash(sim), hash);
    sim_free(sim);
}

// --- files ---------------------------------------------------------------------------------------

static void sparse_main(Fiber *self, void *arg)
{
    const uint64_t far = UINT64_C(3) << 40;
    File *file;
    bool is_data;
    uint64_t len;
    char buf[6];
    assert_int_equal(file_open(self, "/big", FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
    assert_int_equal(file_truncate(self, file, far * 2), 0);
    assert_int_equal(file_write(self, file, host_off(far), "sparse", 6), 0);
    assert_int_equal(file_find_extent(self, file, host_off(0), far * 2, &is_data, &len), 0);
    assert_false(is_data);
    assert_int_equal(len, far);
    assert_int_equal(file_find_extent(self, file, host_off(far), far, &is_data, &len), 0);
    assert_true(is_data);
    assert_int_equal(len, 4096);
    assert_int_equal(file_read(self, file, host_off(far), buf, 6), 0);
    assert_memory_equal(buf, "sparse", 6);
    assert_int_equal(file_zero(self, file, host_off(4096), far * 2 - 4096, FILE_ZERO_UNMAP), 0);
    assert_int_equal(file_find_extent(self, file, host_off(0), far * 2, &is_data, &len), 0);
    assert_int_equal(len, far * 2);
    file_close(self, file);
}

static void a_file_of_terabytes_costs_its_pages_only(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, sparse_main, NULL));
    sim_free(sim);
}

static void device_main(Fiber *self, void *arg)
{
    enum { END = 64 << 10 };
    uint8_t data[8192] = {1};
    File *file;
    assert_int_equal(file_open(self, "/device", FILE_WRITABLE, &file, NULL), 0);
    assert_true(file_is_block_device(file));
    assert_int_equal(file_write(self, file, host_off(END - 8192), data, 8192), 0);
    assert_int_equal(file_write(self, file, host_off(END - 4096), data, 8192), -ENOSPC);
    assert_int_equal(file_write(self, file, host_off(END), data, 1), -ENOSPC);
    assert_int_equal(file_zero(self, file, host_off(END - 4096), 8192, 0), -ENOSPC);
    assert_int_equal(file_refresh_size(self, file), 0);
    assert_int_equal(file_size(file), END);
    file_close(self, file);
}

static void a_block_device_does_not_grow(void **state)
{
    g_autofree uint8_t *data = g_malloc0(64 << 10);
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed, .inline_completion = seed % 2});
        assert_int_equal(sim_write_file(sim, "/device", data, 64 << 10), 0);
        assert_int_equal(sim_set_block_device(sim, "/device"), 0);
        assert_int_equal(sim_set_block_device(sim, "/nothing"), -ENOENT);
        assert_true(sim_run(sim, device_main, NULL));
        sim_free(sim);
    }
}

static void space_main(Fiber *self, void *arg)
{
    Sim *sim = arg;
    uint8_t data[8192] = {1};
    File *file;
    assert_int_equal(file_open(self, "/disk", FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(file_truncate(self, file, 1 << 20), 0);
    assert_int_equal(sim_used_bytes(sim), 0);
    assert_int_equal(file_write(self, file, host_off(0), data, 8192), 0);
    assert_int_equal(file_reserve(self, file, host_off(12288), 4096), 0);
    assert_int_equal(sim_used_bytes(sim), 12288);
    // No page is left: only what has its space can be written.
    assert_int_equal(file_write(self, file, host_off(8192), data, 512), -ENOSPC);
    assert_int_equal(file_reserve(self, file, host_off(8192), 8192), -ENOSPC);
    assert_int_equal(file_write(self, file, host_off(12288), data, 4096), 0);
    assert_int_equal(file_write(self, file, host_off(0), data, 4096), 0);
    assert_int_equal(file_discard(self, file, host_off(0), 4096), 0);
    assert_int_equal(file_write(self, file, host_off(1 << 20), data, 512), 0);
    sim_set_space(sim, 5 * 4096);
    assert_int_equal(file_write(self, file, host_off(65536), data, 8192), 0);
    assert_int_equal(sim_used_bytes(sim), 5 * 4096);
    assert_int_equal(file_read(self, file, host_off(12288), data, 4096), 0);
    assert_int_equal(data[0], 1);
    file_close(self, file);
}

static void a_full_disk_takes_only_what_has_its_space(void **state)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(
            &(SimConfig){.seed = seed, .inline_completion = seed % 2, .space_bytes = 3 * 4096});
        sim_write_file(sim, "/disk", "", 0);
        assert_true(sim_run(sim, space_main, sim));
        sim_free(sim);
    }
}

static void lock_main(Fiber *self, void *arg)
{
    File *a, *b;
    g_autoptr(GError) error = NULL;
    assert_int_equal(file_open(self, "/disk", FILE_WRITABLE, &a, NULL), 0);
    assert_int_equal(file_open(self, "/disk", FILE_WRITABLE, &b, NULL), 0);
    uint64_t id_a[2], id_b[2];
    file_identity(a, id_a);
    file_identity(b, id_b);
    assert_memory_equal(id_a, id_b, sizeof(id_a));
    unsigned rw = FILE_PERM_CONSISTENT_READ | FILE_PERM_WRITE;
    assert_int_equal(file_lock(self, a, rw, FILE_PERM_WRITE, NULL), 0);
    assert_int_equal(file_lock(self, b, rw, FILE_PERM_WRITE, &error), -EAGAIN);
    assert_non_null(error);
    assert_int_equal(file_lock(self, b, FILE_PERM_CONSISTENT_READ, 0, NULL), 0);
    assert_int_equal(file_lock(self, b, 0, FILE_PERM_CONSISTENT_READ, NULL), -EAGAIN);
    file_close(self, a);
    assert_int_equal(file_lock(self, b, rw, FILE_PERM_WRITE, NULL), 0);
    file_close(self, b);
}

static void locks_keep_two_writers_of_a_file_apart(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    sim_write_file(sim, "/disk", "x", 1);
    assert_true(sim_run(sim, lock_main, NULL));
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_seed_gives_one_run_and_another_seed_another),
        cmocka_unit_test(content_matches_a_shadow_for_every_kind_of_transfer),
        cmocka_unit_test(runnable_fibers_run_in_an_order_that_the_seed_picks),
        cmocka_unit_test(time_is_virtual_and_jumps_to_the_next_event),
        cmocka_unit_test(loops_exchange_messages_and_workers_work),
        cmocka_unit_test(the_hook_sees_every_kind_of_operation),
        cmocka_unit_test(an_error_at_the_nth_operation_reaches_its_caller),
        cmocka_unit_test(the_first_flush_that_fails_is_told_once),
        cmocka_unit_test(each_failure_of_the_host_is_told_with_its_offset),
        cmocka_unit_test(a_power_cut_ends_the_run_and_abandons_its_fibers),
        cmocka_unit_test(a_hook_can_run_another_simulation),
        cmocka_unit_test(a_file_of_terabytes_costs_its_pages_only),
        cmocka_unit_test(a_block_device_does_not_grow),
        cmocka_unit_test(a_full_disk_takes_only_what_has_its_space),
        cmocka_unit_test(locks_keep_two_writers_of_a_file_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
