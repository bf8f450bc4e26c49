// SPDX-License-Identifier: LGPL-2.1-or-later
// Active commits beside guests, in virtual time. How long their end holds guests up: not for the
// time that the base takes to become durable, nor for that of requests that take long now and then.
// And guests that write faster than the job may copy.
#include <errno.h>
#include <string.h>

#include "../loop/in-fiber.h"
#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/port.h"
#include "chain-core/sim.h"
#include "chain-core/switch.h"
#include "guest-images.h"
#include "job-work.h"
#include "jobs/commit.h"

#define MS UINT64_C(1000000)

enum {
    BLOCK = 4096,
    DISK = 8 << 20,
    CLUSTER = 65536,
    N_GUESTS = 3,
    NS_PER_BYTE = 20,      // of what becomes durable in the base
    SYNC_NS = 50 * 1000000 // however little that is
};

typedef struct World {
    MapMemory *memory;
    Node *top, *base; // base: `slow`, over its image
    uint64_t dirty_bytes;
    Port port;
    JobControl *control;
    bool is_switched, is_over;
    bool flushes, takes_long; // a guest's requests
    bool base_refuses;        // writes
    bool flush_fails;         // of the base, which users ignore
    bool is_late;             // work comes and goes once the copy is close
    bool is_refused;          // work comes then each time, and stays
    bool trims;               // guests do, too, without a pause
    bool keeps_top, speeds_up;
    unsigned next_guest;
    uint64_t speed;    // of the job
    CopyMode mode;     // that it is to keep to
    unsigned n_modes;  // that it changed to
    unsigned n_errors; // that users heard of
    uint64_t until_ns; // it is cancelled then; 0: it is not
    uint64_t slowest_ns, giving_back_ns;
    unsigned n_seen; // values of progress
    FiberWaitGroup guests;
    uint8_t shadow[DISK / BLOCK];
} World;

// -- a base that takes its time to become durable -------------------------------------------------

typedef struct Slow {
    Node node;
    World *w;
} Slow;

static int slow_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    World *w = ((Slow *)node)->w;
    if (w->base_refuses)
        return -EIO;
    w->dirty_bytes += len;
    return node_write(self, node->backing, off, buf, len, flags);
}

static int slow_flush(Fiber *self, Node *node)
{
    World *w = ((Slow *)node)->w;
    uint64_t bytes = w->dirty_bytes;
    if (w->flush_fails)
        return -EIO;
    int r = node_flush(self, node->backing);
    fiber_sleep(self, SYNC_NS + bytes * NS_PER_BYTE);
    w->dirty_bytes -= MIN(bytes, w->dirty_bytes);
    return r;
}

static void slow_close(Fiber *self, Node *node)
{
}

static const NodeOps slow_ops = {
    .driver = "slow",
    .is_filter = true,
    .write = slow_write,
    .flush = slow_flush,
    .close = slow_close,
};

static Node *slow_new(World *w, Node *below)
{
    Slow *slow = g_new0(Slow, 1);
    node_init(&slow->node, &slow_ops, below->loop, "slow", below->size_bytes);
    slow->w = w;
    return &slow->node;
}

// -- guests ---------------------------------------------------------------------------------------

static void write_block(Fiber *self, World *w, unsigned number)
{
    uint8_t data[BLOCK];
    uint64_t begun_ns = loop_now_ns(fiber_loop(self));
    memset(data, ++w->shadow[number], BLOCK);
    Node *node = port_enter(self, &w->port, REQUEST_WRITE);
    fiber_assert_equal(node_write(self, node, guest_off((uint64_t)number * BLOCK), data, BLOCK, 0),
                       0);
    port_leave(&w->port, REQUEST_WRITE);
    w->slowest_ns = MAX(w->slowest_ns, loop_now_ns(fiber_loop(self)) - begun_ns);
}

static void guest(Fiber *self, void *arg)
{
    World *w = arg;
    unsigned first = w->next_guest++, n = DISK / BLOCK / N_GUESTS;
    for (unsigned i = 0; !w->is_over; i++) {
        write_block(self, w, first + i * 37 % n * N_GUESTS);
        fiber_sleep(self, w->speed ? 10 * MS : MS);
    }
    fiber_wait_group_done(&w->guests);
}

// Requests of another kind, which take as long as they do and are in flight most of the time.
static void long_guest(Fiber *self, void *arg)
{
    World *w = arg;
    while (!w->is_over) {
        Node *node = port_enter(self, &w->port, REQUEST_FLUSH);
        if (w->flushes)
            fiber_assert_equal(node_flush(self, node), 0);
        else
            fiber_sleep(self, 200 * MS);
        port_leave(&w->port, REQUEST_FLUSH);
        fiber_sleep(self, 30 * MS);
    }
    fiber_wait_group_done(&w->guests);
}

// Parts of clusters, which go on to show what they did.
static void trimming_guest(Fiber *self, void *arg)
{
    World *w = arg;
    for (unsigned i = 0; !w->is_over; i++) {
        Node *node = port_enter(self, &w->port, REQUEST_DISCARD);
        GuestOff off = guest_off((uint64_t)i % (DISK / BLOCK) * BLOCK);
        fiber_assert_equal(node_discard(self, node, off, BLOCK, 0), 0);
        port_leave(&w->port, REQUEST_DISCARD);
        fiber_sleep(self, MS / 10);
    }
    fiber_wait_group_done(&w->guests);
}

// -- the chain ------------------------------------------------------------------------------------

static void open_chain(Fiber *self, World *w)
{
    LayerOptions options = {.memory = w->memory, .format = "qcow2"};
    guest_image_create(self, "/base", NULL, DISK, CLUSTER);
    guest_image_create(self, "/middle", "/base", DISK, CLUSTER);
    guest_image_create(self, "/top", "/middle", DISK, CLUSTER);
    fiber_assert_equal(chain_open(self, "/top", &options, &w->top, NULL, NULL), 0);
    Node *image = chain_backing(chain_backing(w->top));
    fiber_assert_equal(node_change_mode(self, image, true, NULL), 0);
    w->base = slow_new(w, image);
    node_insert_filter(self, image, w->base);
    port_init(&w->port, w->top, "guests");
    for (unsigned i = 0; i < DISK / BLOCK; i++)
        write_block(self, w, i);
}

static void close_chain(Fiber *self, World *w)
{
    port_done(self, &w->port);
    node_unref_close(self, w->top);
    node_unref_close(self, w->base);
    map_memory_free(w->memory);
}

static void check_content(Fiber *self, World *w)
{
    uint8_t data[BLOCK];
    for (unsigned i = 0; i < DISK / BLOCK; i++) {
        fiber_assert_equal(
            node_read(self, w->port.node, guest_off((uint64_t)i * BLOCK), data, BLOCK), 0);
        fiber_assert(data[0] == w->shadow[i] && memcmp(data, data + 1, BLOCK - 1) == 0);
    }
}

// -- the job --------------------------------------------------------------------------------------

static void hear(void *arg, const JobNews *news)
{
    World *w = arg;
    w->n_modes += news->kind == JOB_NEWS_COPY_MODE;
    w->n_errors += news->kind == JOB_NEWS_ERROR;
    if (news->kind != JOB_NEWS_READY)
        return;
    if (!w->keeps_top)
        job_control_set_speed(w->control, 0);
    w->slowest_ns = 0;
    job_control_ask_end(w->control, JOB_END_COMPLETE);
}

// What the base has refused is done by the next write to the same place, and not durable there.
static void come_late(Fiber *self, World *w)
{
    w->base_refuses = true;
    write_block(self, w, 0);
    w->base_refuses = false;
    write_block(self, w, 0);
}

static uint64_t bytes_left(const World *w)
{
    uint64_t done = 0;
    for (JobBytes how = 0; how < JOB_N_BYTES; how++)
        done += job_control_count(w->control, how);
    return job_control_total(w->control) - done;
}

// Until all is given back; it gets less and less.
static void user_who_looks(Fiber *self, void *arg)
{
    World *w = arg;
    uint64_t last = DISK;
    for (fiber_sleep(self, 100 * MS); !w->giving_back_ns; fiber_sleep(self, 100 * MS)) {
        uint64_t left = bytes_left(w);
        fiber_assert(left <= last);
        w->n_seen += left != last;
        last = left;
        if (w->speeds_up && w->n_seen == 10)
            job_control_set_speed(w->control, 0);
    }
}

static void give_back(Fiber *self, World *w, Commit *commit)
{
    uint64_t begun_ns = loop_now_ns(fiber_loop(self));
    fiber_assert_equal(bytes_left(w), 0);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "user", user_who_looks, w, NULL), 0);
    fiber_assert_equal(commit_give_back(self, commit), 0);
    fiber_assert_equal(bytes_left(w), 0);
    w->giving_back_ns = loop_now_ns(fiber_loop(self)) - begun_ns;
}

// Nobody can cancel it then: it ends by itself, and guests stay where they are.
static void never_in_step(Fiber *self, World *w, Commit *commit)
{
    g_autoptr(GError) error = NULL;
    unsigned n_tries = 0;
    int r = 1;
    for (; r > 0; n_tries++) {
        fiber_assert_equal(commit_come_close(self, commit, &error), 0);
        w->base_refuses = true;
        write_block(self, w, 0);
        w->base_refuses = false;
        r = commit_switch(self, commit, &w->is_switched, &error);
    }
    fiber_assert_equal(r, -EBUSY);
    fiber_assert_equal(n_tries, 100);
    fiber_assert(strstr(error->message, "again and again"));
}

static void complete(Fiber *self, World *w, Commit *commit)
{
    if (w->is_refused) {
        never_in_step(self, w, commit);
        return;
    }
    fiber_assert_equal(commit_come_close(self, commit, NULL), 0);
    if (w->is_late) {
        come_late(self, w);
        fiber_assert_equal(commit_switch(self, commit, &w->is_switched, NULL), 1);
        fiber_assert_equal(commit_come_close(self, commit, NULL), 0);
    }
    int r = commit_switch(self, commit, &w->is_switched, NULL);
    if (r > 0 && w->trims) { // what had begun before
        fiber_assert_equal(commit_come_close(self, commit, NULL), 0);
        r = commit_switch(self, commit, &w->is_switched, NULL);
    }
    fiber_assert_equal(r, 0);
    if (w->keeps_top)
        give_back(self, w, commit);
}

static void cancel_later(Fiber *self, void *arg)
{
    World *w = arg;
    fiber_sleep(self, w->until_ns);
    job_control_cancel(w->control);
}

static void run_job(Fiber *self, World *w)
{
    Loop *loop = fiber_loop(self);
    CommitSpec spec = {.name = "job",
                       .top = w->top,
                       .base = w->base,
                       .keeps_top = w->keeps_top,
                       .backing_name = "/base",
                       .backing_format = "qcow2",
                       .on_error = w->flush_fails ? JOB_ON_ERROR_IGNORE : JOB_ON_ERROR_REPORT,
                       .copy_mode = w->mode,
                       .memory = w->memory};
    Commit *commit;
    if (w->until_ns)
        fiber_assert_equal(fiber_spawn(loop, "user", cancel_later, w, NULL), 0);
    w->control = job_control_new(w->speed);
    job_control_begin_copy_mode(w->control, copy_mode_at_first(w->mode));
    job_control_begin(w->control, loop, loop, hear, w);
    fiber_assert_equal(commit_begin(self, &spec, &commit, NULL), 0);
    int r = commit_run(self, w->control, commit, NULL);
    fiber_assert_equal(r, w->until_ns ? -ECANCELED : 0);
    if (r == 0)
        complete(self, w, commit);
    w->is_over = true;
    commit_end(self, commit);
    job_control_end(w->control);
    job_control_drop(w->control);
}

static void commit_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    w->memory = map_memory_new(1 << 20);
    open_chain(self, w);
    unsigned n_guests = w->is_late || w->is_refused ? 0 : N_GUESTS,
             n_long = w->flushes || w->takes_long;
    fiber_wait_group_add(&w->guests, n_guests + n_long + w->trims);
    for (unsigned i = 0; i < n_guests; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, w, NULL), 0);
    if (n_long)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "long guest", long_guest, w, NULL), 0);
    if (w->trims)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "trim", trimming_guest, w, NULL), 0);
    run_job(self, w);
    fiber_wait_group_wait(self, &w->guests);
    fiber_assert_equal(w->is_switched, !w->until_ns && !w->is_refused);
    fiber_assert(w->port.node == (w->is_switched && !w->keeps_top ? w->base : w->top));
    check_content(self, w);
    close_chain(self, w);
}

static uint64_t slowest_write_ns(World *w)
{
    SimConfig config = {.seed = 5, .max_delay_us = 100};
    Sim *sim = sim_new(&config);
    assert_true(sim_run(sim, commit_under_load, w));
    sim_free(sim);
    return w->slowest_ns;
}

static void a_pivot_holds_no_guest_up_while_the_base_becomes_durable(void **state)
{
    World w = {0};
    assert_true(slowest_write_ns(&w) < 5 * MS);
}

static void flushes_of_guests_do_not_keep_others_out_for_long(void **state)
{
    World w = {.flushes = true};
    assert_true(slowest_write_ns(&w) < 25 * MS);
}

static void requests_that_take_long_do_not_keep_others_out_for_long(void **state)
{
    World w = {.takes_long = true};
    assert_true(slowest_write_ns(&w) < 45 * MS);
}

static void guests_who_trim_without_pause_do_not_keep_a_commit_from_its_end(void **state)
{
    World w = {.trims = true};
    slowest_write_ns(&w);
}

static void work_that_was_done_after_the_last_flush_is_made_durable_first(void **state)
{
    World w = {.is_late = true};
    slowest_write_ns(&w);
}

static void a_commit_that_never_gets_in_step_gives_up_after_a_while(void **state)
{
    World w = {.is_refused = true};
    slowest_write_ns(&w);
}

static void a_flush_that_fails_each_time_is_not_tried_without_a_pause(void **state)
{
    World w = {.flush_fails = true, .until_ns = 3000 * MS};
    slowest_write_ns(&w);
    assert_true(w.n_errors > 5 && w.n_errors < 40);
}

static void what_no_longer_shrinks_makes_an_automatic_job_write_blocking(void **state)
{
    World w = {.speed = 2 << 20};
    slowest_write_ns(&w);
    assert_int_equal(w.n_modes, 1);
}

static void a_mode_that_was_given_is_kept_whatever_is_left(void **state)
{
    World w = {.speed = 2 << 20, .mode = COPY_MODE_BACKGROUND, .until_ns = 8000 * MS};
    slowest_write_ns(&w);
    assert_int_equal(w.n_modes, 0);
}

static void a_top_that_stays_gives_back_no_faster_than_the_job_may(void **state)
{
    World w = {.speed = 2 << 20, .keeps_top = true};
    slowest_write_ns(&w);
    assert_true(w.giving_back_ns > 3500 * MS && w.giving_back_ns < 5000 * MS);
    assert_true(w.n_seen > 20);
}

static void its_speed_can_be_changed_meanwhile(void **state)
{
    World w = {.speed = 2 << 20, .keeps_top = true, .speeds_up = true};
    slowest_write_ns(&w);
    assert_true(w.giving_back_ns > 900 * MS && w.giving_back_ns < 1500 * MS);
}

static void without_a_limit_a_top_gives_back_at_once(void **state)
{
    World w = {.keeps_top = true};
    slowest_write_ns(&w);
    assert_true(w.giving_back_ns < 500 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pivot_holds_no_guest_up_while_the_base_becomes_durable),
        cmocka_unit_test(flushes_of_guests_do_not_keep_others_out_for_long),
        cmocka_unit_test(guests_who_trim_without_pause_do_not_keep_a_commit_from_its_end),
        cmocka_unit_test(work_that_was_done_after_the_last_flush_is_made_durable_first),
        cmocka_unit_test(a_commit_that_never_gets_in_step_gives_up_after_a_while),
        cmocka_unit_test(a_flush_that_fails_each_time_is_not_tried_without_a_pause),
        cmocka_unit_test(what_no_longer_shrinks_makes_an_automatic_job_write_blocking),
        cmocka_unit_test(a_mode_that_was_given_is_kept_whatever_is_left),
        cmocka_unit_test(a_top_that_stays_gives_back_no_faster_than_the_job_may),
        cmocka_unit_test(its_speed_can_be_changed_meanwhile),
        cmocka_unit_test(without_a_limit_a_top_gives_back_at_once),
        cmocka_unit_test(requests_that_take_long_do_not_keep_others_out_for_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
