// SPDX-License-Identifier: LGPL-2.1-or-later
// Backups of a chain under writing guests, in the simulation: whatever is asked of the job and
// whatever fails, guests see what they wrote and never fail, and a backup that went well is the
// disk of the moment at which it was begun, durable (docs/ordering.md §20). By a bitmap, one backup
// after the other into the same target, some of which fail: those that go well are right.
#include <errno.h>
#include <string.h>

#include "chain-core/chain.h"
#include "guest-images.h"
#include "job-user.h"
#include "jobs/backup.h"

typedef enum TargetKind {
    TARGET_RAW,
    TARGET_QCOW2,
    TARGET_WITH_BACKING, // the layer below the head
    TARGET_OVER_SOURCE,  // an overlay of the head; its file knows nothing of that
} TargetKind;

// How backups are to go.
typedef struct Course {
    BackupSync sync;
    TargetKind target;
    unsigned n_rounds;
    bool is_cancelled, is_asked, cuts_power;
    bool is_used;   // the target holds something else at first
    int fails_with; // writes to the target, now and then
    JobOnError on_error;
    bool takes_back; // before it is run
} Course;

typedef struct World {
    SimHook hook; // first
    Guests guests;
    Course course;
    JobUser user;
    Node *source, *target;
    DirtyBitmap *bitmap;
    Versions moment;
    Backup *backup;
    bool is_copying;
    unsigned n_good;
    int result;
} World;

static const char base_path[] = "/base", top_path[] = "/top", target_path[] = "/target";

// -- nodes ----------------------------------------------------------------------------------------

static void make_target(Fiber *self, World *w)
{
    Guests *g = &w->guests;
    if (w->course.target == TARGET_RAW)
        guest_image_make_raw(self, g, target_path);
    else
        guest_image_create(self, target_path,
                           w->course.target == TARGET_WITH_BACKING ? base_path : NULL, GUEST_DISK,
                           guest_image_pick_cluster_bytes(g));
    w->target = guest_image_open(self, g, target_path, true);
    if (w->course.target == TARGET_OVER_SOURCE)
        chain_set_backing(self, w->target, w->source, g->memory);
    if (w->course.is_used)
        guest_image_fill_with_other(self, w->target);
}

static void make_disk(Fiber *self, World *w)
{
    guest_image_make_layer(self, &w->guests, base_path, NULL);
    guest_image_make_layer(self, &w->guests, top_path, base_path);
    w->source = guest_image_open(self, &w->guests, top_path, true);
    guests_zero_some(self, &w->guests, w->source);
    make_target(self, w);
    port_init(&w->guests.port, w->source, "guests");
    DirtyBitmapSpec spec = {
        .name = "b",
        .node_name = "top",
        .granularity_bits = 12 + (uint32_t)guests_pick(&w->guests, 6),
    };
    fiber_assert_equal(dirty_bitmap_add(w->source, &spec, &w->bitmap, NULL), 0);
    Bitmap *all = bitmap_new(GUEST_DISK, spec.granularity_bits);
    bitmap_set(all, 0, GUEST_DISK);
    bitmap_free(dirty_bitmap_swap_bits(w->bitmap, all));
}

static void close_disk(Fiber *self, World *w)
{
    port_done(self, &w->guests.port);
    node_unref_close(self, w->target);
    node_unref_close(self, w->source);
}

// -- failures, power cuts -------------------------------------------------------------------------

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    bool is_change = op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE;
    if (strcmp(path, target_path) != 0 || !w->is_copying || !is_change || !w->course.fails_with)
        return 0;
    return guests_pick(&w->guests, 12) == 0 ? w->course.fails_with : 0;
}

static void check_target(Fiber *self, const World *w, const char *where)
{
    guest_image_check_content(self, &w->guests, where, target_path, &w->moment, &w->moment);
}

static void after_the_end(Fiber *self, void *arg)
{
    check_target(self, arg, "the backup, after a cut");
}

// -- the job --------------------------------------------------------------------------------------

static BackupSpec spec_of(World *w)
{
    bool is_first = w->n_good == 0, has_bitmap = w->course.n_rounds > 1;
    static const BackupBitmapMode modes[] = {BACKUP_BITMAP_ON_SUCCESS, BACKUP_BITMAP_ON_SUCCESS,
                                             BACKUP_BITMAP_ALWAYS, BACKUP_BITMAP_NEVER};
    return (BackupSpec){
        .name = "job",
        .source = w->source,
        .target = w->target,
        .is_over_source = w->course.target == TARGET_OVER_SOURCE,
        .sync = has_bitmap && !is_first ? BACKUP_SYNC_BITMAP : w->course.sync,
        .bitmap = has_bitmap ? w->bitmap : NULL,
        .bitmap_mode = is_first ? BACKUP_BITMAP_ON_SUCCESS
                                : modes[guests_pick(&w->guests, G_N_ELEMENTS(modes))],
        .on_source_error = w->course.on_error,
        .on_target_error = w->course.on_error,
        .cbw_timeout_ns = UINT64_C(1000000000000),
    };
}

static void begin(Fiber *self, World *w)
{
    g_autoptr(GError) error = NULL;
    BackupSpec spec = spec_of(w);
    w->backup = backup_begin(self, &spec, &error);
    fiber_assert(w->backup);
    fiber_assert_equal(backup_drain(self, w->backup, &error), 0);
    w->moment = w->guests.acked; // nobody is inside
    backup_commit(w->backup);
    backup_resume(w->backup);
}

static void job(Fiber *self, void *arg)
{
    World *w = arg;
    g_autoptr(GError) error = NULL;
    w->is_copying = true;
    w->result = backup_run(self, w->user.control, w->backup, &error);
    w->is_copying = false;
    if (w->result == 0 && w->course.cuts_power)
        guests_cut_power(&w->guests, after_the_end, w);
    fiber_sleep(self, guests_pick(&w->guests, 1000000));
    fiber_assert_equal(backup_settle(self, w->backup, w->result == 0, &error), 0);
    backup_end(self, w->backup);
    job_user_done(&w->user);
}

static void run_job(Fiber *self, World *w)
{
    w->user = (JobUser){.guests = &w->guests, .makes_room = w->course.fails_with, .arg = w};
    job_user_begin(self, &w->user, job);
    job_user_disturb(self, &w->user, w->course.is_asked ? 4 : 0);
    if (w->course.is_cancelled && guests_pick(&w->guests, 3))
        job_user_cancel(self, &w->user);
    job_user_end(self, &w->user);
}

static void one_round(Fiber *self, World *w)
{
    fiber_sleep(self, guests_pick(&w->guests, 4000000));
    begin(self, w);
    if (w->course.takes_back && guests_pick(&w->guests, 2)) {
        fiber_sleep(self, guests_pick(&w->guests, 2000000));
        backup_end(self, w->backup);
        return;
    }
    run_job(self, w);
    if (w->result < 0)
        return;
    w->n_good++;
    check_target(self, w, "the backup");
    if (w->course.target == TARGET_OVER_SOURCE) // it owns all of it
        guests_check_node(self, &w->guests, "the overlay", w->target, &w->moment, &w->moment);
}

static void backups_under_load(Fiber *self, void *arg)
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
    if (w->course.target != TARGET_RAW)
        guest_image_check(self, g, target_path, false);
}

static void run_world(uint64_t seed, const Course *course)
{
    SimConfig config = {.seed = seed, .inline_completion = seed % 2, .short_transfers = seed % 3};
    g_autofree World *w = g_new0(World, 1);
    g_autofree char *what =
        g_strdup_printf("sync %d, target %d", (int)course->sync, (int)course->target);
    w->guests.what = what;
    w->course = *course;
    guests_run(&w->guests, &config, backups_under_load, w);
    if (!course->is_cancelled && !course->takes_back && !course->fails_with)
        assert_int_equal(w->n_good, course->n_rounds);
}

static void run_course(Course course, unsigned n_seeds)
{
    static uint64_t seed;
    static const struct {
        BackupSync sync;
        TargetKind target;
        bool is_used;
    } ways[] = {
        {BACKUP_SYNC_FULL, TARGET_RAW, false},
        {BACKUP_SYNC_FULL, TARGET_RAW, true},
        {BACKUP_SYNC_FULL, TARGET_QCOW2, false},
        {BACKUP_SYNC_FULL, TARGET_QCOW2, true},
        {BACKUP_SYNC_TOP, TARGET_WITH_BACKING, false},
        {BACKUP_SYNC_FULL, TARGET_OVER_SOURCE, false},
    };
    for (unsigned i = 0; i < n_seeds * G_N_ELEMENTS(ways); i++) {
        course.sync = ways[i % G_N_ELEMENTS(ways)].sync;
        course.target = ways[i % G_N_ELEMENTS(ways)].target;
        course.is_used = ways[i % G_N_ELEMENTS(ways)].is_used;
        run_world(++seed, &course);
    }
}

static void a_backup_is_the_disk_of_the_moment_of_its_begin(void **state)
{
    run_course((Course){.n_rounds = 1}, 6);
    run_course((Course){.n_rounds = 1, .is_asked = true}, 3);
}

static void a_backup_that_went_well_is_durable(void **state)
{
    run_course((Course){.n_rounds = 3, .cuts_power = true}, 3);
}

static void by_a_bitmap_one_after_the_other_into_the_same_target(void **state)
{
    run_course((Course){.n_rounds = 6}, 4);
}

static void what_a_backup_that_did_not_end_has_not_copied_the_next_one_does(void **state)
{
    run_course((Course){.n_rounds = 8, .is_cancelled = true}, 4);
    run_course((Course){.n_rounds = 8, .takes_back = true}, 3);
}

static void a_target_that_fails_ends_backups_and_no_guest_hears_of_it(void **state)
{
    run_course((Course){.n_rounds = 8, .fails_with = -EIO}, 3);
    run_course((Course){.n_rounds = 8, .fails_with = -ENOSPC, .on_error = JOB_ON_ERROR_ENOSPC}, 3);
    run_course((Course){.n_rounds = 6, .fails_with = -EIO, .on_error = JOB_ON_ERROR_IGNORE}, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_backup_is_the_disk_of_the_moment_of_its_begin),
        cmocka_unit_test(a_backup_that_went_well_is_durable),
        cmocka_unit_test(by_a_bitmap_one_after_the_other_into_the_same_target),
        cmocka_unit_test(what_a_backup_that_did_not_end_has_not_copied_the_next_one_does),
        cmocka_unit_test(a_target_that_fails_ends_backups_and_no_guest_hears_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
