// SPDX-License-Identifier: LGPL-2.1-or-later
// Pull backups in the simulation: a backup that copies nothing by itself saves into an overlay of
// its source what guests are about to change. Who reads the overlay meanwhile, anywhere and
// whenever, reads the disk of the moment at which the backup was begun, or gets an error when it is
// over.
#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/qcow2.h"
#include "guest-images.h"
#include "job-user.h"
#include "jobs/backup.h"

enum { N_READERS = 3, MAX_READ_BLOCKS = 20, PART = 512 };

typedef struct Course {
    unsigned n_rounds;
    int fails_with;       // writes to the overlay, now and then
    bool ends_while_read; // the backup does, of itself or since it is cancelled
} Course;

typedef struct World {
    SimHook hook; // first
    Guests guests;
    Course course;
    JobUser user;
    Node *source, *overlay;
    char overlay_path[GUEST_IMAGE_PATH];
    unsigned n_overlays;
    Port readers_port;
    Versions moment;
    Backup *backup;
    bool is_saving, stops_readers;
    unsigned n_read, n_refused; // in the last round
    FiberWaitGroup readers;
    int result;
} World;

static const char base_path[] = "/base", top_path[] = "/top";

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    bool is_change = op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE;
    if (!g_str_equal(path, w->overlay_path) || !w->is_saving || !is_change || !w->course.fails_with)
        return 0;
    return guests_pick(&w->guests, 30) == 0 ? w->course.fails_with : 0;
}

// -- the overlay ----------------------------------------------------------------------------------

static void make_overlay(Fiber *self, World *w)
{
    g_snprintf(w->overlay_path, sizeof w->overlay_path, "/overlay-%u", w->n_overlays++);
    guest_image_create(self, w->overlay_path, top_path, GUEST_DISK,
                       guest_image_pick_cluster_bytes(&w->guests));
    w->overlay = guest_image_open_alone(self, &w->guests, w->overlay_path);
    chain_set_backing(self, w->overlay, w->source, w->guests.memory);
    port_init(&w->readers_port, w->overlay, "readers");
}

static void drop_overlay(Fiber *self, World *w)
{
    port_done(self, &w->readers_port);
    node_unref_close(self, w->overlay);
    guest_image_check(self, &w->guests, w->overlay_path, false);
}

// -- readers --------------------------------------------------------------------------------------

static void check_read(const World *w, uint64_t off, const uint8_t *buf, uint64_t len)
{
    const Guests *g = &w->guests;
    for (uint64_t at = 0; at < len; at += sizeof(uint64_t)) {
        unsigned block = (unsigned)((off + at) / GUEST_BLOCK);
        uint32_t version = w->moment.of[block];
        uint64_t word;
        memcpy(&word, buf + at, sizeof word);
        while (word && g->hint_over[block][version])
            version = g->hint_over[block][version] - 1;
        bool is_zero = version == 0 || g->is_zero[block][version];
        if (word != (is_zero ? 0 : (uint64_t)version << 32 | block))
            g_error("seed %u, %s: byte %u of block %u is of version %u, not %u", (unsigned)g->seed,
                    g->what, (unsigned)((off + at) % GUEST_BLOCK), block, (unsigned)(word >> 32),
                    version);
    }
}

static void read_some(Fiber *self, World *w, uint64_t off, uint64_t len)
{
    g_autofree uint8_t *buf = g_malloc(len);
    Node *node = port_enter(self, &w->readers_port, REQUEST_READ);
    int r = node_read(self, node, guest_off(off), buf, len);
    port_leave(&w->readers_port, REQUEST_READ);
    if (r == 0)
        check_read(w, off, buf, len);
    else
        fiber_assert_equal(r, -EACCES);
    w->n_read += r == 0;
    w->n_refused += r < 0;
}

static void look_at_status(Fiber *self, World *w, uint64_t off, uint64_t len)
{
    NodeExtent extent;
    g_autofree uint8_t *zeros = g_malloc0(len);
    Node *node = port_enter(self, &w->readers_port, REQUEST_READ);
    int r = node_status(self, node, guest_off(off), len, &extent);
    port_leave(&w->readers_port, REQUEST_READ);
    fiber_assert(r == 0 || r == -EACCES);
    if (r == 0 && (extent.kind == NODE_EXTENT_ZERO || extent.kind == NODE_EXTENT_ZERO_ALLOCATED))
        check_read(w, off, zeros, extent.len);
}

static void reader(Fiber *self, void *arg)
{
    World *w = arg;
    while (!w->stops_readers) {
        uint64_t off = guests_pick(&w->guests, GUEST_DISK / PART) * PART;
        uint64_t len = (1 + guests_pick(&w->guests, MAX_READ_BLOCKS * GUEST_BLOCK / PART)) * PART;
        len = MIN(len, GUEST_DISK - off);
        if (guests_pick(&w->guests, 4))
            read_some(self, w, off, len);
        else
            look_at_status(self, w, off, len);
        fiber_sleep(self, guests_pick(&w->guests, 100000));
    }
    fiber_wait_group_done(&w->readers);
}

static void start_readers(Fiber *self, World *w)
{
    w->stops_readers = false;
    w->n_read = w->n_refused = 0;
    fiber_wait_group_add(&w->readers, N_READERS);
    for (unsigned i = 0; i < N_READERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "reader", reader, w, NULL), 0);
}

static void stop_readers(Fiber *self, World *w)
{
    w->stops_readers = true;
    fiber_wait_group_wait(self, &w->readers);
}

// -- the backup -----------------------------------------------------------------------------------

static Backup *begin(Fiber *self, World *w, GError **error)
{
    BackupSpec spec = {
        .name = "job",
        .source = w->source,
        .target = w->overlay,
        .sync = BACKUP_SYNC_NONE,
        .is_over_source = true,
        .cbw_timeout_ns = UINT64_C(1000000000000),
    };
    return backup_begin(self, &spec, error);
}

static void job(Fiber *self, void *arg)
{
    World *w = arg;
    g_autoptr(GError) error = NULL;
    w->is_saving = true;
    w->result = backup_run(self, w->user.control, w->backup, &error);
    w->is_saving = false;
    backup_end(self, w->backup);
    job_user_done(&w->user);
}

static void begin_at_a_moment(Fiber *self, World *w)
{
    g_autoptr(GError) error = NULL;
    w->backup = begin(self, w, &error);
    if (!w->backup)
        g_error("%s", error->message);
    fiber_assert_equal(backup_drain(self, w->backup, &error), 0);
    w->moment = w->guests.acked; // nobody is inside
    backup_commit(w->backup);
    backup_resume(w->backup);
}

static void one_round(Fiber *self, World *w)
{
    fiber_sleep(self, guests_pick(&w->guests, 4000000));
    make_overlay(self, w);
    begin_at_a_moment(self, w);
    start_readers(self, w);
    w->user = (JobUser){.guests = &w->guests, .arg = w};
    job_user_begin(self, &w->user, job);
    fiber_sleep(self, 3000000);
    if (!w->course.ends_while_read) {
        stop_readers(self, w);
        fiber_assert(w->n_refused == 0 || w->course.fails_with);
        fiber_assert(w->n_read > 0 || w->course.fails_with);
    }
    job_user_cancel(self, &w->user);
    job_user_end(self, &w->user);
    fiber_assert_equal(w->result, w->result == -ECANCELED ? -ECANCELED : w->course.fails_with);
    if (w->course.ends_while_read)
        stop_readers(self, w);
    for (unsigned i = 0; i < GUEST_BLOCKS; i++) // what was saved is there still
        read_some(self, w, (uint64_t)i * GUEST_BLOCK, GUEST_BLOCK);
    drop_overlay(self, w);
}

static void make_disk(Fiber *self, World *w)
{
    guest_image_make_layer(self, &w->guests, base_path, NULL);
    guest_image_make_layer(self, &w->guests, top_path, base_path);
    w->source = guest_image_open(self, &w->guests, top_path, true);
    guests_zero_some(self, &w->guests, w->source);
    port_init(&w->guests.port, w->source, "guests");
}

static void close_disk(Fiber *self, World *w)
{
    port_done(self, &w->guests.port);
    node_unref_close(self, w->source);
}

static void pulls_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    Guests *g = &w->guests;
    make_disk(self, w);
    w->hook.fn = hook;
    sim_set_hook(g->sim, &w->hook);
    guests_start(self, g);
    for (unsigned i = 0; i < w->course.n_rounds; i++)
        one_round(self, w);
    guests_stop(self, g);
    guests_read_all(self, g);
    sim_set_hook(g->sim, NULL);
    close_disk(self, w);
    guest_image_check(self, g, top_path, false);
}

static void run_world(uint64_t seed, const Course *course, FiberFn *fn)
{
    SimConfig config = {.seed = seed, .inline_completion = seed % 2, .short_transfers = seed % 3};
    g_autofree World *w = g_new0(World, 1);
    char what[] = "pull";
    w->guests.what = what;
    w->course = *course;
    guests_run(&w->guests, &config, fn, w);
}

static void run_course(Course course, unsigned n_seeds)
{
    static uint64_t seed;
    for (unsigned i = 0; i < n_seeds; i++)
        run_world(++seed, &course, pulls_under_load);
}

static void readers_of_the_overlay_see_the_moment_whatever_guests_do(void **state)
{
    run_course((Course){.n_rounds = 3}, 40);
}

static void when_the_backup_is_over_nothing_newer_is_read(void **state)
{
    run_course((Course){.n_rounds = 3, .ends_while_read = true}, 20);
}

static void an_overlay_that_fails_ends_the_backup_and_no_guest_hears_of_it(void **state)
{
    run_course((Course){.n_rounds = 3, .fails_with = -ENOSPC}, 10);
    run_course((Course){.n_rounds = 3, .fails_with = -EIO, .ends_while_read = true}, 10);
}

// -- what cannot be -------------------------------------------------------------------------------

static void try_an_overlay_with_data(Fiber *self, void *arg)
{
    World *w = arg;
    g_autoptr(GError) error = NULL;
    make_disk(self, w);
    make_overlay(self, w);
    uint8_t buf[PART] = {1};
    fiber_assert_equal(node_write(self, w->overlay, guest_off(GUEST_DISK - PART), buf, PART, 0), 0);
    fiber_assert(!begin(self, w, &error));
    fiber_assert(strstr(error->message, "has data of its own already"));
    drop_overlay(self, w);
    close_disk(self, w);
}

static void what_has_data_of_its_own_is_no_overlay_to_pull_into(void **state)
{
    run_world(1, &(Course){0}, try_an_overlay_with_data);
}

static void begin_and_take_back(Fiber *self, void *arg)
{
    World *w = arg;
    g_autoptr(GError) error = NULL;
    make_disk(self, w);
    make_overlay(self, w);
    Backup *backup = begin(self, w, &error);
    fiber_assert(backup);
    backup_end(self, backup);
    fiber_assert(chain_backing(w->overlay) == w->source);
    drop_overlay(self, w);
    one_round(self, w);
    close_disk(self, w);
}

static void a_backup_that_is_taken_back_leaves_the_overlay_as_it_was(void **state)
{
    run_world(2, &(Course){0}, begin_and_take_back);
}

// What was saved is lost: an error, and no end in itself.
static void lose_what_was_saved(Fiber *self, void *arg)
{
    World *w = arg;
    uint8_t buf[PART];
    make_disk(self, w);
    make_overlay(self, w);
    begin_at_a_moment(self, w);
    Node *node = port_enter(self, &w->guests.port, REQUEST_WRITE);
    fiber_assert_equal(guests_change_block(self, &w->guests, node, 0, REQUEST_WRITE), 0);
    port_leave(&w->guests.port, REQUEST_WRITE);
    fiber_assert_equal(node_read(self, w->overlay, guest_off(0), buf, PART), 0);
    check_read(w, 0, buf, PART);
    fiber_assert_equal(node_uncover(self, w->overlay, guest_off(0), GUEST_DISK), 0);
    fiber_assert_equal(node_read(self, w->overlay, guest_off(0), buf, PART), -EIO);
    fiber_assert_equal(node_read(self, w->overlay, guest_off(GUEST_DISK - PART), buf, PART), 0);
    backup_end(self, w->backup);
    drop_overlay(self, w);
    close_disk(self, w);
}

static void what_the_overlay_has_lost_is_an_error(void **state)
{
    run_world(3, &(Course){0}, lose_what_was_saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_of_the_overlay_see_the_moment_whatever_guests_do),
        cmocka_unit_test(when_the_backup_is_over_nothing_newer_is_read),
        cmocka_unit_test(an_overlay_that_fails_ends_the_backup_and_no_guest_hears_of_it),
        cmocka_unit_test(what_has_data_of_its_own_is_no_overlay_to_pull_into),
        cmocka_unit_test(a_backup_that_is_taken_back_leaves_the_overlay_as_it_was),
        cmocka_unit_test(what_the_overlay_has_lost_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
