// SPDX-License-Identifier: LGPL-2.1-or-later
// Commits of random chains under writing guests, in the simulation: whatever is asked of the job,
// whatever fails, and wherever the power is cut, the head shows what guests wrote, at least what a
// flush acknowledged (docs/ordering.md §18), layers below the base keep their point in time, and
// the base is what the top was.
#include <errno.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/qcow2.h"
#include "guest-images.h"
#include "job-user.h"
#include "jobs/commit.h"

enum {
    MAX_LAYERS = 5,
    BRANCH = MAX_LAYERS, // number of a further overlay of the base
};

// How a commit is to go.
typedef struct Course {
    bool is_active, is_left, is_cancelled, is_asked, cuts_power;
    CopyMode mode;
    int fails_with; // writes to the base, now and then
    JobOnError on_error;
    bool flush_fails;    // of the base
    bool is_held_up;     // a request that does not end
    bool keeps_points;   // all overlays of the base
    bool fails_in_point; // not in the base
    bool keeps_top, completes_itself;
    bool only_trims; // guests
} Course;

typedef struct World {
    SimHook hook; // first
    Guests guests;
    Course course;
    JobUser user;
    unsigned n_layers, top, base;
    uint32_t cluster_bytes[MAX_LAYERS + 1];
    uint64_t sizes[MAX_LAYERS + 1];
    Node *layers[MAX_LAYERS + 1];
    Versions at_start, kept[MAX_LAYERS + 1];
    uint64_t n_base_writes;
    bool is_copying, is_switched;
    int result, given_back;
} World;

// -- layers ---------------------------------------------------------------------------------------

static void check_layer(Fiber *self, const World *w, const char *where, unsigned number,
                        const Versions *least, const Versions *most)
{
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, number);
    guest_image_check_content(self, &w->guests, where, path, least, most);
}

static void check_image(Fiber *self, const World *w, unsigned number, bool may_leak)
{
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, number);
    guest_image_check(self, &w->guests, path, may_leak);
}

// Each layer from a disk of its own time: some of its blocks are written, some zeroed.
static void make_layer(Fiber *self, World *w, unsigned number)
{
    Guests *g = &w->guests;
    char path[GUEST_IMAGE_PATH], below[GUEST_IMAGE_PATH];
    guest_image_name(path, number);
    if (number)
        guest_image_name(below, number == BRANCH ? w->base : number - 1);
    w->cluster_bytes[number] = guest_image_pick_cluster_bytes(g);
    bool is_short = number + 1 < w->n_layers && guests_pick(g, 3) == 0;
    w->sizes[number] = is_short ? GUEST_BLOCK * (1 + guests_pick(g, GUEST_BLOCKS)) : GUEST_DISK;
    guest_image_create(self, path, number ? below : NULL, w->sizes[number],
                       w->cluster_bytes[number]);
    Node *node = guest_image_open(self, g, path, true);
    for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
        bool is_inside = (uint64_t)i * GUEST_BLOCK < w->sizes[number];
        RequestKind kind = guests_pick(g, 4) ? REQUEST_WRITE : REQUEST_ZERO;
        if (!is_inside)
            g->acked.of[i] = guests_next_version(g, i, REQUEST_ZERO); // hides what lies below
        else if (guests_pick(g, 3) == 0)
            fiber_assert_equal(guests_change_block(self, g, node, i, kind), 0);
    }
    fiber_assert_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
    w->kept[number] = g->durable = g->acked;
}

// Another state of the disk on the same base.
static void make_branch(Fiber *self, World *w)
{
    Versions acked = w->guests.acked, durable = w->guests.durable;
    make_layer(self, w, BRANCH);
    w->guests.acked = acked;
    w->guests.durable = durable;
}

static void make_chain(Fiber *self, World *w)
{
    for (unsigned i = 0; i < w->n_layers; i++) {
        make_layer(self, w, i);
        if (i == w->base && w->course.keeps_points)
            make_branch(self, w);
    }
}

static void open_branch(Fiber *self, World *w)
{
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, BRANCH);
    w->layers[BRANCH] = guest_image_open_alone(self, &w->guests, path);
    chain_set_backing(self, w->layers[BRANCH], w->layers[w->base], w->guests.memory);
}

static void open_chain(Fiber *self, World *w)
{
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, w->n_layers - 1);
    Node *node = guest_image_open(self, &w->guests, path, true);
    for (unsigned i = w->n_layers; i-- > 0; node = chain_backing(node))
        w->layers[i] = node_ref(node);
    node_unref_close(self, w->layers[w->n_layers - 1]);
    port_init(&w->guests.port, w->layers[w->n_layers - 1], "guests");
    if (w->course.keeps_points)
        open_branch(self, w);
}

static void close_chain(Fiber *self, World *w)
{
    port_done(self, &w->guests.port);
    node_unref_close(self, w->layers[BRANCH]);
    for (unsigned i = w->n_layers; i-- > 0;)
        node_unref_close(self, w->layers[i]);
}

// -- power cuts -----------------------------------------------------------------------------------

static unsigned head_of(const World *w)
{
    return w->guests.port.node == w->layers[w->base] ? w->base : w->n_layers - 1;
}

// What keeps its point in time, whatever becomes of the commit.
static void check_points(Fiber *self, const World *w, const char *where)
{
    for (unsigned i = 0; i <= BRANCH; i++) {
        bool is_below = i < w->base;
        bool is_kept =
            w->course.keeps_points && i > w->base && (i + 1 < w->n_layers || i == BRANCH);
        if (is_below || is_kept)
            check_layer(self, w, where, i, &w->kept[i], &w->kept[i]);
        if (is_kept && i == BRANCH)
            check_image(self, w, i, true);
    }
}

static void after_cut(Fiber *self, void *arg)
{
    World *w = arg;
    const Guests *g = &w->guests;
    check_layer(self, w, "after a cut", head_of(w), &g->durable, &g->issued);
    check_points(self, w, "after a cut");
    for (unsigned i = 0; i < w->n_layers; i++)
        check_image(self, w, i, true);
}

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    char base[GUEST_IMAGE_PATH];
    guest_image_name(base, w->base + w->course.fails_in_point);
    bool is_base = strcmp(path, base) == 0;
    if (w->course.cuts_power && op != SIM_OP_READ && n % 24 == w->guests.seed % 24)
        guests_cut_power(&w->guests, after_cut, w);
    if (!is_base || !w->is_copying)
        return 0;
    if (op == SIM_OP_FLUSH)
        return w->course.flush_fails ? -EIO : 0;
    return op == SIM_OP_WRITE && ++w->n_base_writes % 8 == 0 && w->n_base_writes <= 64
               ? w->course.fails_with
               : 0;
}

// -- the job --------------------------------------------------------------------------------------

static void ready(void *arg)
{
    World *w = arg;
    w->is_copying &= w->course.flush_fails;
}

static CommitSpec spec_of(World *w)
{
    static char path[GUEST_IMAGE_PATH];
    static Node *points[2];
    guest_image_name(path, w->base);
    points[0] = w->layers[w->base + 1];
    points[1] = w->layers[BRANCH];
    return (CommitSpec){
        .name = "job",
        .top = w->layers[w->top],
        .base = w->layers[w->base],
        .overlays = &w->layers[w->top + 1],
        .n_overlays = w->course.is_active ? 0 : 1,
        .points = points,
        .n_points = w->course.keeps_points ? G_N_ELEMENTS(points) : 0,
        .backing_name = path + 1,
        .backing_format = "qcow2",
        .on_error = w->course.on_error,
        .copy_mode = w->course.mode,
        .keeps_top = w->course.keeps_top,
        .completes_itself = w->course.completes_itself,
        .memory = w->guests.memory,
    };
}

static void set_mode(Fiber *self, const World *w, Node *node, bool is_writable)
{
    g_autoptr(GError) error = NULL;
    if (node_change_mode(self, node, is_writable, &error) < 0 && !w->course.flush_fails)
        g_error("seed %u: %s", (unsigned)w->guests.seed, error->message);
}

static void set_modes(Fiber *self, const World *w, bool is_writable)
{
    unsigned overlay = w->top + 1;
    if (w->course.keeps_top)
        overlay = w->top;
    if (head_of(w) != w->base)
        set_mode(self, w, w->layers[w->base], is_writable);
    if (overlay + 1 < w->n_layers)
        set_mode(self, w, w->layers[overlay], is_writable);
    if (w->course.keeps_points && w->base + 2 < w->n_layers)
        set_mode(self, w, w->layers[w->base + 1], is_writable);
}

// Does something in the same granule, or cluster, as `block` differ from what it was at the start?
static bool may_have_stayed(const World *w, unsigned block)
{
    unsigned n = MAX(65536, w->cluster_bytes[w->top]) / GUEST_BLOCK, first = block / n * n;
    for (unsigned i = first; i < MIN(first + n, GUEST_BLOCKS); i++)
        if (w->guests.issued.of[i] != w->at_start.of[i])
            return true;
    return false;
}

// What the top owns in the end is what guests wrote.
static void check_given_back(Fiber *self, const World *w)
{
    Node *top = w->layers[w->top];
    NodeExtent extent;
    if (w->given_back == -ECANCELED && w->course.is_cancelled)
        return;
    fiber_assert_equal(w->given_back, 0);
    for (uint64_t off = 0; off < top->size_bytes; off += extent.len) {
        fiber_assert_equal(
            node_map(self, top, guest_off(off), MIN(512, top->size_bytes - off), &extent), 0);
        if (extent.kind != NODE_EXTENT_BELOW && !may_have_stayed(w, off / GUEST_BLOCK))
            g_error("seed %u: the top keeps what it has at %u", (unsigned)w->guests.seed,
                    (unsigned)off);
    }
}

static void check_recorded(const World *w, unsigned number)
{
    char path[GUEST_IMAGE_PATH];
    guest_image_name(path, number - 1);
    const char *name = qcow2_image_backing_name(qcow2_node_image(w->layers[number]));
    if (!g_str_equal(name, path + 1))
        g_error("seed %u: the header of layer %u names %s", (unsigned)w->guests.seed, number, name);
}

// A request that is held up keeps the graph as it is, and then headers are to say so: what they
// would name otherwise is the base, which the next commit may overwrite.
static int switch_or_not(Fiber *self, World *w, Commit *commit)
{
    g_autoptr(GError) error = NULL;
    if (w->course.is_held_up)
        port_enter(self, &w->guests.port, REQUEST_READ);
    int r = commit_switch(self, commit, &w->is_switched, &error);
    if (!w->course.is_held_up)
        return r;
    port_leave(&w->guests.port, REQUEST_READ);
    fiber_assert(r < 0);
    check_recorded(w, w->course.keeps_top ? w->top : w->top + 1);
    return r;
}

static void job(Fiber *self, void *arg)
{
    World *w = arg;
    CommitSpec spec = spec_of(w);
    Commit *commit;
    g_autoptr(GError) error = NULL;
    set_modes(self, w, true);
    w->at_start = w->guests.issued;
    if (commit_begin(self, &spec, &commit, &error) < 0)
        g_error("seed %u: %s", (unsigned)w->guests.seed, error->message);
    w->is_copying = true;
    w->result = commit_run(self, w->user.control, commit, &error);
    w->is_copying &= w->course.flush_fails;
    while (w->result == 0 && (w->result = commit_come_close(self, commit, &error)) == 0 &&
           (w->result = switch_or_not(self, w, commit)) > 0)
        w->result = 0;
    if (w->result == 0)
        w->given_back = commit_give_back(self, commit);
    if (w->is_switched && w->course.keeps_top)
        check_given_back(self, w);
    commit_end(self, commit);
    set_modes(self, w, false);
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
    if (!user->is_over)
        job_control_ask_end(user->control, w->course.is_left ? JOB_END_CANCEL : JOB_END_COMPLETE);
    job_user_end(self, user);
}

// -- a whole commit -------------------------------------------------------------------------------

// What the base is beyond the end of the top does not show where overlays are no longer either.
static bool shows_end_of_base(const World *w)
{
    return w->sizes[w->base] <= w->sizes[w->top] || w->sizes[w->top + 1] > w->sizes[w->top];
}

static void check_end(Fiber *self, World *w)
{
    bool is_active = w->course.is_active;
    unsigned head = w->is_switched && is_active && !w->course.keeps_top ? w->base : w->n_layers - 1;
    const Versions *of_top = is_active ? &w->guests.acked : &w->kept[w->top];
    check_layer(self, w, "at the end", head, &w->guests.acked, &w->guests.acked);
    check_points(self, w, "at the end");
    if (!w->is_switched || w->course.keeps_top)
        check_layer(self, w, "at the end", w->top, of_top, of_top);
    else if (!is_active && shows_end_of_base(w))
        check_layer(self, w, "at the end", w->base, of_top, of_top);
    for (unsigned i = 0; i < w->n_layers; i++)
        check_image(self, w, i, w->course.flush_fails);
}

static void check_modes(const World *w)
{
    for (unsigned i = 0; i < w->n_layers; i++) {
        bool is_head = i == w->n_layers - 1 || (i == w->base && head_of(w) == w->base);
        fiber_assert_equal(w->layers[i]->read_only, !is_head);
    }
}

static void pick_layers(World *w)
{
    Guests *g = &w->guests;
    bool is_active = w->course.is_active;
    w->n_layers = (is_active ? 2 : 3) + (unsigned)guests_pick(g, MAX_LAYERS - 2);
    w->top = is_active ? w->n_layers - 1 : 1 + (unsigned)guests_pick(g, w->n_layers - 2);
    w->base = (unsigned)guests_pick(g, w->top);
    g->what = g_strdup_printf("commit of %u into %u", w->top, w->base);
}

static void commit_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    Guests *g = &w->guests;
    pick_layers(w);
    make_chain(self, w);
    open_chain(self, w);
    w->hook.fn = hook;
    sim_set_hook(g->sim, &w->hook);
    g->only_trims = w->course.only_trims;
    guests_start(self, g);
    run_job(self, w);
    guests_stop(self, g);
    guests_read_all(self, g);
    guests_flush(self, g);
    if (w->course.cuts_power)
        guests_cut_power(g, after_cut, w);
    check_modes(w);
    sim_set_hook(g->sim, NULL);
    close_chain(self, w);
    check_end(self, w);
}

static void run_world(uint64_t seed, const Course *course)
{
    SimConfig config = {.seed = seed,
                        .inline_completion = seed % 2,
                        .short_transfers = seed % 3,
                        .can_copy = seed % 4 < 2};
    g_autofree World *w = g_new0(World, 1);
    w->guests.may_fua = true;
    w->course = *course;
    guests_run(&w->guests, &config, commit_under_load, w);
    g_free(w->guests.what);
    if (course->is_held_up || (course->flush_fails && !course->is_left))
        assert_false(w->is_switched);
    else if (!course->is_cancelled && !course->is_left)
        assert_true(w->is_switched);
}

static void run_course(Course course, unsigned n_seeds)
{
    static uint64_t seed;
    for (unsigned i = 0; i < n_seeds; i++)
        run_world(++seed, &course);
}

static void layers_are_left_out_and_nobody_sees_a_difference(void **state)
{
    run_course((Course){0}, 12);
    run_course((Course){.is_asked = true}, 8);
}

static void a_commit_that_is_cancelled_leaves_the_chain_as_it_was(void **state)
{
    run_course((Course){.is_cancelled = true}, 12);
    run_course((Course){.is_cancelled = true, .is_active = true}, 12);
}

static void the_head_is_left_for_the_base_under_writing_guests(void **state)
{
    run_course((Course){.is_active = true}, 8);
    run_course((Course){.is_active = true, .mode = COPY_MODE_BACKGROUND, .is_asked = true}, 8);
    run_course((Course){.is_active = true, .mode = COPY_MODE_WRITE_BLOCKING}, 8);
}

static void guests_who_trim_without_pause_do_not_keep_a_commit_from_its_end(void **state)
{
    run_course((Course){.is_active = true, .only_trims = true}, 8);
}

static void an_active_commit_can_end_as_it_is(void **state)
{
    run_course((Course){.is_active = true, .is_left = true}, 8);
}

static void after_a_power_cut_there_is_what_was_flushed(void **state)
{
    run_course((Course){.cuts_power = true}, 12);
    run_course((Course){.cuts_power = true, .is_active = true}, 12);
}

static void a_full_base_pauses_the_job_which_goes_on_later(void **state)
{
    Course course = {.fails_with = -ENOSPC, .on_error = JOB_ON_ERROR_ENOSPC};
    run_course(course, 6);
    course.is_active = true;
    run_course(course, 6);
    course.mode = COPY_MODE_WRITE_BLOCKING;
    run_course(course, 6);
}

static void errors_that_are_ignored_are_tried_again(void **state)
{
    run_course((Course){.fails_with = -EIO, .on_error = JOB_ON_ERROR_IGNORE}, 6);
}

static void a_base_that_does_not_get_durable_is_not_switched_to(void **state)
{
    run_course((Course){.flush_fails = true}, 6);
    run_course((Course){.flush_fails = true, .is_active = true}, 6);
    run_course((Course){.flush_fails = true, .is_active = true, .keeps_top = true}, 6);
}

static void a_top_that_stays_gives_back_what_the_base_has(void **state)
{
    run_course((Course){.keeps_top = true}, 12);
    run_course((Course){.keeps_top = true, .is_asked = true, .is_active = true}, 16);
    run_course((Course){.keeps_top = true, .is_active = true, .completes_itself = true}, 16);
    run_course((Course){.keeps_top = true, .is_cancelled = true}, 12);
    run_course((Course){.keeps_top = true, .is_cancelled = true, .is_active = true}, 24);
    run_course((Course){.keeps_top = true, .is_active = true, .is_left = true}, 8);
}

static void a_power_cut_beside_a_top_that_stays_loses_nothing(void **state)
{
    run_course((Course){.keeps_top = true, .cuts_power = true}, 12);
    run_course((Course){.keeps_top = true, .cuts_power = true, .is_active = true}, 24);
}

static void points_are_kept_below_a_top_that_stays(void **state)
{
    Course course = {.keeps_top = true, .keeps_points = true, .is_active = true};
    run_course(course, 12);
    course.cuts_power = true;
    run_course(course, 12);
}

static void overlays_of_the_base_stay_valid_points_in_time(void **state)
{
    run_course((Course){.keeps_points = true}, 12);
    run_course((Course){.keeps_points = true, .is_cancelled = true}, 12);
    run_course((Course){.keeps_points = true, .cuts_power = true}, 16);
    run_course((Course){.keeps_points = true,
                        .fails_in_point = true,
                        .fails_with = -ENOSPC,
                        .on_error = JOB_ON_ERROR_ENOSPC},
               8);
}

static void a_commit_that_guests_hold_up_leaves_headers_as_they_were(void **state)
{
    run_course((Course){.is_held_up = true}, 6);
    run_course((Course){.is_held_up = true, .keeps_top = true, .is_active = true}, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_that_guests_hold_up_leaves_headers_as_they_were),
        cmocka_unit_test(layers_are_left_out_and_nobody_sees_a_difference),
        cmocka_unit_test(a_commit_that_is_cancelled_leaves_the_chain_as_it_was),
        cmocka_unit_test(the_head_is_left_for_the_base_under_writing_guests),
        cmocka_unit_test(guests_who_trim_without_pause_do_not_keep_a_commit_from_its_end),
        cmocka_unit_test(an_active_commit_can_end_as_it_is),
        cmocka_unit_test(after_a_power_cut_there_is_what_was_flushed),
        cmocka_unit_test(a_full_base_pauses_the_job_which_goes_on_later),
        cmocka_unit_test(errors_that_are_ignored_are_tried_again),
        cmocka_unit_test(overlays_of_the_base_stay_valid_points_in_time),
        cmocka_unit_test(a_top_that_stays_gives_back_what_the_base_has),
        cmocka_unit_test(a_power_cut_beside_a_top_that_stays_loses_nothing),
        cmocka_unit_test(points_are_kept_below_a_top_that_stays),
        cmocka_unit_test(a_base_that_does_not_get_durable_is_not_switched_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
