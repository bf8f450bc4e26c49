// SPDX-License-Identifier: LGPL-2.1-or-later
// Mirrors of random chains to random targets under writing guests, in the simulation: whatever is
// asked of the job, whatever fails, and wherever the power is cut, guests see what they wrote, at
// least what a flush acknowledged (docs/ordering.md §19), and the target, once it is left or in the
// place of the source, is the disk of one moment.
#include <errno.h>
#include <string.h>

#include "guest-images.h"
#include "job-user.h"
#include "jobs/mirror.h"

enum { MAX_LAYERS = 3 };

typedef enum TargetKind {
    TARGET_RAW,
    TARGET_QCOW2,
    TARGET_WITH_BACKING,    // the layer below the head
    TARGET_BACKING_MISSING, // the same, which is not opened
} TargetKind;

// How a mirror is to go.
typedef struct Course {
    MirrorSync sync;
    CopyMode mode;
    TargetKind target;
    bool is_used; // the target holds something else
    bool is_left, is_cancelled, is_asked, cuts_power;
    int fails_with;    // writes to the target, now and then
    unsigned fails_at; // that one alone, if not 0
    JobOnError on_error;
    bool flush_fails; // of the target
    bool only_trims;  // guests
    bool goes_on;     // after the end that is said, with what the bitmap says is left
} Course;

typedef struct World {
    SimHook hook; // first
    Guests guests;
    Course course;
    JobUser user;
    unsigned n_layers;
    Node *source, *target;
    DirtyBitmap *bitmap; // goes_on
    uint64_t n_target_writes;
    unsigned n_before_end; // changes that had begun when the job was asked to
    Versions issued_before_ready, acked_before_end;
    bool is_copying, is_switched;
    int result;
} World;

static const char target_path[] = "/target";

// -- nodes ----------------------------------------------------------------------------------------

static void make_target(Fiber *self, World *w)
{
    Guests *g = &w->guests;
    char below[GUEST_IMAGE_PATH];
    guest_image_name(below, w->n_layers - 2);
    if (w->course.target == TARGET_RAW) {
        guest_image_make_raw(self, g, target_path);
    } else {
        guest_image_create(self, target_path, w->course.target == TARGET_QCOW2 ? NULL : below,
                           GUEST_DISK, guest_image_pick_cluster_bytes(g));
    }
    if (!w->course.is_used)
        return;
    Node *node = guest_image_open(self, g, target_path, true);
    guest_image_fill_with_other(self, node);
    node_unref_close(self, node);
}

static void make_disk(Fiber *self, World *w)
{
    Guests *g = &w->guests;
    char path[GUEST_IMAGE_PATH], below[GUEST_IMAGE_PATH];
    w->n_layers = 2 + (unsigned)guests_pick(g, MAX_LAYERS - 1);
    for (unsigned i = 0; i < w->n_layers; i++) {
        guest_image_name(path, i);
        guest_image_make_layer(self, g, path, i ? below : NULL);
        strcpy(below, path);
    }
    make_target(self, w);
    w->source = guest_image_open(self, g, path, true);
    w->target = w->course.target == TARGET_BACKING_MISSING
                    ? guest_image_open_alone(self, g, target_path)
                    : guest_image_open(self, g, target_path, true);
    port_init(&g->port, w->source, "guests");
    const DirtyBitmapSpec spec = {.name = "left", .node_name = "disk", .granularity_bits = 12};
    if (w->course.goes_on)
        fiber_assert_equal(dirty_bitmap_add(w->source, &spec, &w->bitmap, NULL), 0);
}

static void close_disk(Fiber *self, World *w)
{
    port_done(self, &w->guests.port);
    node_unref_close(self, w->source);
    node_unref_close(self, w->target);
}

// -- power cuts, failures -------------------------------------------------------------------------

static void check_images(Fiber *self, const World *w, bool may_leak)
{
    char path[GUEST_IMAGE_PATH];
    for (unsigned i = 0; i < w->n_layers; i++) {
        guest_image_name(path, i);
        guest_image_check(self, &w->guests, path, may_leak);
    }
    if (w->course.target != TARGET_RAW)
        guest_image_check(self, &w->guests, target_path, may_leak);
}

// The disk is what guests write: the source, or the target in its place.
static void after_cut(Fiber *self, void *arg)
{
    World *w = arg;
    Guests *g = &w->guests;
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, w->n_layers - 1);
    guest_image_check_content(self, g, "after a cut",
                              g->port.node == w->target ? target_path : path, &g->durable,
                              &g->issued);
    check_images(self, w, true);
}

static bool is_to_fail(World *w)
{
    uint64_t n = ++w->n_target_writes;
    return w->course.fails_at ? n == w->course.fails_at : n % 8 == 0 && n <= 64;
}

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    if (w->course.cuts_power && op != SIM_OP_READ && n % 24 == w->guests.seed % 24)
        guests_cut_power(&w->guests, after_cut, w);
    if (strcmp(path, target_path) != 0 || !w->is_copying)
        return 0;
    if (op == SIM_OP_FLUSH && w->course.flush_fails)
        return -EIO;
    bool is_change = op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_DISCARD ||
                     op == SIM_OP_RESERVE ||
                     (op == SIM_OP_FLUSH && w->course.fails_at && !w->course.goes_on); // it sticks
    return w->course.fails_with && is_change && is_to_fail(w) ? w->course.fails_with : 0;
}

// -- the job --------------------------------------------------------------------------------------

static void ready(void *arg)
{
    World *w = arg;
    w->issued_before_ready = w->guests.issued;
    w->is_copying = w->course.fails_at || w->course.flush_fails; // else failures end here
}

static MirrorSpec spec_of(const World *w)
{
    return (MirrorSpec){
        .name = "job",
        .source = w->source,
        .target = w->target,
        .replaced = w->source,
        .sync = w->course.sync,
        .copy_mode = w->course.mode,
        .target_is_zero = w->course.sync == MIRROR_SYNC_FULL && w->course.target <= TARGET_QCOW2 &&
                          !w->course.is_used && w->guests.seed % 2,
        .bitmap = w->bitmap,
        .bitmap_mode = MIRROR_BITMAP_ALWAYS,
        .on_source_error = w->course.on_error,
        .on_target_error = w->course.on_error,
    };
}

static void check_copy(Fiber *self, const World *w, const char *where)
{
    Node *node = guest_image_open(self, &w->guests, target_path, false);
    guests_check_moment(self, &w->guests, where, node, w->n_before_end);
    node_unref_close(self, node);
}

// The target was no copy before.
static void check_written_meanwhile(Fiber *self, const World *w)
{
    uint64_t words[GUEST_WORDS];
    Node *node = guest_image_open(self, &w->guests, target_path, false);
    for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
        uint32_t least = w->acked_before_end.of[i];
        GuestOff off = guest_off((uint64_t)i * GUEST_BLOCK);
        fiber_assert_equal(node_read(self, node, off, words, GUEST_BLOCK), 0);
        if (least > w->issued_before_ready.of[i])
            guests_check_block(&w->guests, "the copy", i, words, least, w->guests.issued.of[i]);
    }
    node_unref_close(self, node);
}

static int leave(Fiber *self, World *w, Mirror *mirror, GError **error)
{
    enum { MAX_TRIES = 2 }; // for what had begun before
    unsigned n_tries = 0;
    int r;
    do {
        r = mirror_come_close(self, mirror, error);
        if (r == 0)
            r = mirror_switch(self, mirror, &w->is_switched, error);
        fiber_assert(!w->course.only_trims || ++n_tries <= MAX_TRIES);
    } while (r > 0);
    return r;
}

// It is there even if power goes at once.
static void after_the_end(Fiber *self, void *arg)
{
    check_copy(self, arg, "the copy, after a cut");
}

static void job(Fiber *self, void *arg)
{
    World *w = arg;
    MirrorSpec spec = spec_of(w);
    g_autoptr(GError) error = NULL;
    Mirror *mirror = mirror_begin(&spec);
    w->is_copying = true;
    w->result = mirror_run(self, w->user.control, mirror, &error);
    if (w->result == 0)
        w->result = leave(self, w, mirror, &error);
    w->is_copying = false;
    if (w->result == 0 && w->course.is_left && w->course.cuts_power)
        guests_cut_power(&w->guests, after_the_end, w);
    mirror_end(self, mirror);
    job_user_done(&w->user);
}

static void run_job(Fiber *self, World *w)
{
    JobUser *user = &w->user;
    *user = (JobUser){
        .guests = &w->guests, .makes_room = w->course.fails_with, .ready = ready, .arg = w};
    job_user_begin(self, user, job);
    job_user_disturb(self, user, w->course.is_asked ? 4 : 0);
    if (w->course.is_cancelled)
        job_user_cancel(self, user);
    job_user_wait_ready(self, user);
    fiber_sleep(self, guests_pick(&w->guests, 1000000));
    w->n_before_end = w->guests.n_changes;
    w->acked_before_end = w->guests.acked;
    if (!user->is_over)
        job_control_ask_end(user->control, w->course.is_left ? JOB_END_CANCEL : JOB_END_COMPLETE);
    job_user_end(self, user);
}

// -- a whole mirror -------------------------------------------------------------------------------

static void check_end(Fiber *self, const World *w)
{
    const Guests *g = &w->guests;
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, w->n_layers - 1);
    if (w->course.sync == MIRROR_SYNC_NONE)
        check_written_meanwhile(self, w);
    else if (w->result == 0 && !w->is_switched)
        check_copy(self, w, "the copy");
    guest_image_check_content(self, g, "at the end", w->is_switched ? target_path : path, &g->acked,
                              &g->acked);
    check_images(self, w, w->course.flush_fails || w->course.fails_at);
}

// What was copied, and not changed since, need not be again.
static void go_on(Fiber *self, World *w)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(w->bitmap, &info);
    fiber_assert(!info.is_busy && !w->is_switched);
    fiber_sleep(self, guests_pick(&w->guests, 1000000));
    w->course = (Course){.sync = MIRROR_SYNC_BITMAP, .target = w->course.target, .is_left = true};
    run_job(self, w);
    dirty_bitmap_info(w->bitmap, &info);
    fiber_assert(info.dirty_granules < GUEST_DISK >> 12);
}

static void mirror_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    Guests *g = &w->guests;
    make_disk(self, w);
    w->hook.fn = hook;
    sim_set_hook(g->sim, &w->hook);
    g->only_trims = w->course.only_trims;
    guests_start(self, g);
    run_job(self, w);
    if (w->course.goes_on)
        go_on(self, w);
    guests_stop(self, g);
    guests_read_all(self, g);
    guests_flush(self, g);
    if (w->course.cuts_power)
        guests_cut_power(&w->guests, after_cut, w);
    sim_set_hook(g->sim, NULL);
    close_disk(self, w);
    check_end(self, w);
}

// Returns how often the target was changed.
static uint64_t run_world(uint64_t seed, const Course *course)
{
    SimConfig config = {.seed = seed, .inline_completion = seed % 2, .short_transfers = seed % 3};
    g_autofree World *w = g_new0(World, 1);
    g_autofree char *what = g_strdup_printf("sync %d, mode %d, target %d", (int)course->sync,
                                            (int)course->mode, (int)course->target);
    w->guests.what = what;
    w->course = *course;
    guests_run(&w->guests, &config, mirror_under_load, w);
    if (course->goes_on)
        assert_int_equal(w->result, 0);
    else if (course->flush_fails)
        assert_int_equal(w->result, -EIO);
    else if (!course->is_cancelled && !course->fails_at)
        assert_int_equal(w->result, 0);
    bool is_to_switch = !course->is_cancelled && !course->is_left && !course->goes_on;
    assert_int_equal(w->is_switched, w->result == 0 && is_to_switch);
    return w->n_target_writes;
}

// Each combination of what to copy, how, and to what.
static void run_course(Course course, unsigned n_seeds)
{
    static uint64_t seed;
    static const struct {
        MirrorSync sync;
        TargetKind target;
        bool is_used;
    } ways[] = {
        {MIRROR_SYNC_FULL, TARGET_RAW, false},
        {MIRROR_SYNC_FULL, TARGET_RAW, true},
        {MIRROR_SYNC_FULL, TARGET_QCOW2, false},
        {MIRROR_SYNC_FULL, TARGET_QCOW2, true},
        {MIRROR_SYNC_FULL, TARGET_WITH_BACKING, false},
        {MIRROR_SYNC_FULL, TARGET_BACKING_MISSING, false},
        {MIRROR_SYNC_TOP, TARGET_WITH_BACKING, false},
        {MIRROR_SYNC_TOP, TARGET_BACKING_MISSING, false},
    };
    for (unsigned i = 0; i < n_seeds * G_N_ELEMENTS(ways); i++) {
        course.sync = ways[i % G_N_ELEMENTS(ways)].sync;
        course.target = ways[i % G_N_ELEMENTS(ways)].target;
        course.is_used = ways[i % G_N_ELEMENTS(ways)].is_used;
        Course now = course;
        // Its users are to put what lies below it there before they go on with it.
        now.is_left |= course.sync == MIRROR_SYNC_TOP && course.target == TARGET_BACKING_MISSING;
        run_world(++seed, &now);
    }
}

static void guests_go_on_with_the_target_and_see_no_difference(void **state)
{
    run_course((Course){0}, 2);
    run_course((Course){.mode = COPY_MODE_BACKGROUND, .is_asked = true}, 2);
    run_course((Course){.mode = COPY_MODE_WRITE_BLOCKING}, 2);
}

static void a_mirror_that_is_let_go_is_the_disk_of_one_moment(void **state)
{
    run_course((Course){.is_left = true}, 2);
    run_course((Course){.is_left = true, .mode = COPY_MODE_BACKGROUND}, 2);
    run_course((Course){.is_left = true, .mode = COPY_MODE_WRITE_BLOCKING}, 2);
}

static void a_mirror_that_is_cancelled_leaves_guests_alone(void **state)
{
    run_course((Course){.is_cancelled = true}, 2);
    run_course((Course){.is_cancelled = true, .is_asked = true}, 1);
}

static void after_a_power_cut_there_is_what_was_flushed(void **state)
{
    run_course((Course){.cuts_power = true}, 1);
    run_course((Course){.cuts_power = true, .is_left = true}, 1);
}

static void a_target_that_is_full_pauses_the_job_which_goes_on_later(void **state)
{
    run_course((Course){.fails_with = -ENOSPC, .on_error = JOB_ON_ERROR_ENOSPC}, 1);
    run_course((Course){.fails_with = -EIO,
                        .on_error = JOB_ON_ERROR_STOP,
                        .mode = COPY_MODE_WRITE_BLOCKING},
               1);
}

static void errors_that_are_ignored_are_tried_again(void **state)
{
    run_course((Course){.fails_with = -EIO, .on_error = JOB_ON_ERROR_IGNORE}, 1);
}

static void a_target_that_fails_anywhere_is_not_pivoted_to_half_way(void **state)
{
    static const int errors[] = {-EIO, -ENOSPC};
    for (unsigned at = 1; at < 200; at += at < 20 ? 1 : 7) {
        Course course = {.fails_at = at,
                         .fails_with = errors[at % 2],
                         .target = at % 3 ? TARGET_QCOW2 : TARGET_RAW,
                         .mode = at % 5 ? COPY_MODE_AUTOMATIC : COPY_MODE_WRITE_BLOCKING,
                         .is_left = at % 4 == 0};
        if (run_world(at, &course) < at)
            break;
    }
}

static void a_target_that_does_not_get_durable_is_not_pivoted_to(void **state)
{
    run_course((Course){.flush_fails = true}, 1);
    run_course((Course){.flush_fails = true, .is_left = true}, 1);
}

// From where it was, whether it failed, was cancelled, or ended well some time before.
static void a_mirror_goes_on_with_what_its_bitmap_says_is_left(void **state)
{
    run_course((Course){.goes_on = true, .is_cancelled = true}, 2);
    run_course((Course){.goes_on = true, .is_left = true}, 1);
    for (unsigned at = 1; at < 120; at += 7) {
        Course course = {.goes_on = true,
                         .fails_at = at,
                         .fails_with = -EIO,
                         .target = at % 2 ? TARGET_QCOW2 : TARGET_RAW,
                         .mode = at % 5 ? COPY_MODE_AUTOMATIC : COPY_MODE_WRITE_BLOCKING,
                         .is_left = true};
        run_world(at, &course);
    }
}

// Nothing but what guests wrote meanwhile: the target was a copy before.
static void a_mirror_of_nothing_has_what_was_written_meanwhile(void **state)
{
    for (uint64_t seed = 1; seed <= 4; seed++)
        run_world(seed, &(Course){.sync = MIRROR_SYNC_NONE, .is_left = true});
}

static void guests_who_trim_without_pause_do_not_keep_a_mirror_from_its_end(void **state)
{
    run_course((Course){.only_trims = true}, 1);
    run_course((Course){.only_trims = true, .is_left = true}, 1);
    for (uint64_t seed = 1; seed <= 16; seed++) // zeros in whole clusters only
        run_world(seed, &(Course){.only_trims = true,
                                  .sync = MIRROR_SYNC_TOP,
                                  .target = TARGET_BACKING_MISSING,
                                  .is_left = true});
    run_course((Course){.only_trims = true, .mode = COPY_MODE_WRITE_BLOCKING}, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guests_who_trim_without_pause_do_not_keep_a_mirror_from_its_end),
        cmocka_unit_test(guests_go_on_with_the_target_and_see_no_difference),
        cmocka_unit_test(a_mirror_that_is_let_go_is_the_disk_of_one_moment),
        cmocka_unit_test(a_mirror_that_is_cancelled_leaves_guests_alone),
        cmocka_unit_test(after_a_power_cut_there_is_what_was_flushed),
        cmocka_unit_test(a_target_that_is_full_pauses_the_job_which_goes_on_later),
        cmocka_unit_test(errors_that_are_ignored_are_tried_again),
        cmocka_unit_test(a_target_that_fails_anywhere_is_not_pivoted_to_half_way),
        cmocka_unit_test(a_target_that_does_not_get_durable_is_not_pivoted_to),
        cmocka_unit_test(a_mirror_goes_on_with_what_its_bitmap_says_is_left),
        cmocka_unit_test(a_mirror_of_nothing_has_what_was_written_meanwhile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
