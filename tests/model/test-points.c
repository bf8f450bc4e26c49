// SPDX-License-Identifier: LGPL-2.1-or-later
// The moments of jobs that everything rests on, each with a name: between what has to be durable
// and what depends on it (docs/ordering.md §17 to §20). Power is cut at each of them, with many
// outcomes: images are consistent, the disk is what its guest was promised, a copy that is done is
// its moment. A moment that does not come any more fails the test. Prints TAP.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "chain-core/sim.h"
#include "operations.h"
#include "sim/sim-random.h"

enum { N_OUTCOMES = 200, MAX_POINTS = 5, ANY_LAYER = MAX_LAYERS + 1 };

// Before the next operation of a file that is like that.
typedef struct Point {
    const char *name;
    SimOp op;
    unsigned layer;
    bool is_header;   // of the first sector
    bool is_switched; // once guests are on another layer
    bool is_over;     // once the job has ended well: any operation
    bool is_closing;  // the images are
} Point;

typedef struct Course {
    const char *rule, *operation;
    Point points[MAX_POINTS]; // in the order in which they come
    const char *place;        // NULL: the first one of such jobs
} Course;

static const Course courses[] = {
    {"J1",
     "stream",
     {{"what was filled is not durable", SIM_OP_FLUSH, 2},
      {"that is durable, and the header not written", SIM_OP_WRITE, 2, .is_header = true},
      {"the header is written, and not durable", SIM_OP_FLUSH, 2},
      {"the header is durable", SIM_OP_READ, ANY_LAYER, .is_over = true}}},
    {"J2",
     "commit",
     {{"the base is not durable", SIM_OP_FLUSH, 1},
      {"guests write to the base", SIM_OP_WRITE, 1, .is_switched = true}}},
    {"J2",
     "commit-middle",
     {{"the base is not durable", SIM_OP_FLUSH, 0},
      {"that is durable, and the overlay's header not written", SIM_OP_WRITE, 2, .is_header = true},
      {"the header is written, and not durable", SIM_OP_FLUSH, 2},
      {"the header is durable", SIM_OP_READ, ANY_LAYER, .is_over = true}}},
    {"J2",
     "keep-top",
     {{"the base is not durable", SIM_OP_FLUSH, 1},
      {"that is durable, and the top's header not written", SIM_OP_WRITE, 2, .is_header = true},
      {"the header is written, and not durable", SIM_OP_FLUSH, 2},
      {"the top gives back what the base has", SIM_OP_WRITE, 2},
      {"that is not durable", SIM_OP_FLUSH, 2}}},
    {"J3",
     "mirror",
     {{"the target is not durable", SIM_OP_FLUSH, TARGET_LAYER},
      {"guests write to the target", SIM_OP_WRITE, TARGET_LAYER, .is_switched = true}}},
    {"J3",
     "mirror-left",
     {{"the target is not durable", SIM_OP_FLUSH, TARGET_LAYER},
      {"it has been let go", SIM_OP_READ, ANY_LAYER, .is_over = true}}},
    {"J4",
     "backup",
     {{"old data is not in the target", SIM_OP_WRITE, TARGET_LAYER},
      {"it is, and what replaces it is not written", SIM_OP_WRITE, 2},
      {"the target is not durable", SIM_OP_FLUSH, TARGET_LAYER},
      {"it is, and the backup has ended", SIM_OP_READ, ANY_LAYER, .is_over = true}}},
    {"J5",
     "backup-bitmap",
     {{"the target is not durable", SIM_OP_FLUSH, TARGET_LAYER},
      {"it is, and the bitmap has lost what was copied", SIM_OP_READ, ANY_LAYER, .is_over = true},
      {"the bitmap is stored, and no header names that", SIM_OP_WRITE, 1, .is_header = true,
       .is_closing = true},
      {"a header names it, and is not durable", SIM_OP_FLUSH, 1, .is_closing = true}},
     .place = "a bitmap that is backed up"},
};

typedef struct Run {
    SimHook hook; // first
    const Course *course;
    Sim *sim;
    Work work;
    unsigned n_met;
    bool is_closing;
    FiberWaitGroup group;
    FiberQueue steps; // something happens
} Run;

static SimChooser plain; // no choices

static void look(Fiber *self, void *arg)
{
    work_look(self, arg, false);
}

static void cut_here(Run *run, const Point *point)
{
    for (uint64_t seed = 1; seed <= N_OUTCOMES && !run->work.problem[0]; seed++) {
        Sim *after = sim_clone_after_power_cut(run->sim, seed);
        sim_set_chooser(after, &plain);
        sim_run(after, look, &run->work);
        sim_free(after);
    }
    if (run->work.problem[0])
        printf("# after a power cut when %s:\n", point->name);
}

static bool is_there(const Run *run, const Point *p, SimOp op, const char *path, uint64_t off)
{
    char name[16];
    layer_name(name, p->layer);
    if (p->is_over)
        return run->work.is_job_over && !run->work.job;
    if (p->is_closing && !run->is_closing)
        return false;
    return op == p->op && g_str_equal(path, name) && !(p->is_header && off) &&
           (!p->is_switched || work_top(&run->work) == p->layer);
}

static int hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    Run *run = (Run *)hook;
    const Point *point = &run->course->points[run->n_met];
    if (run->n_met < MAX_POINTS && point->name && !run->work.problem[0] &&
        (run->work.job || run->work.is_job_over) && is_there(run, point, op, path, off)) {
        cut_here(run, point);
        run->n_met++;
    }
    fiber_queue_wake_all(&run->steps);
    return 0;
}

// Writes as soon as there is a filter over the head, if there ever is one.
static void guest_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    const Operation *write = operation_find("write");
    while (run->work.chain.port.node == run->work.chain.head && !run->work.is_job_over)
        fiber_queue_wait(self, &run->steps, false, "points: a filter");
    write->run(self, &run->work, write);
    fiber_wait_group_done(&run->group);
}

static void do_one(Fiber *self, Work *work, const char *name)
{
    const Operation *operation = operation_find(name);
    operation->run(self, work, operation);
}

static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    Work *work = &run->work;
    g_autoptr(GError) error = NULL;
    if (work_begin(self, work, &error) < 0) {
        work_fail(work, "it does not open: %s", error->message);
        return;
    }
    do_one(self, work, "write-fua");
    do_one(self, work, "zero-part");
    fiber_wait_group_add(&run->group, 1);
    g_assert(fiber_spawn(fiber_loop(self), "guest", guest_fiber, run, NULL) == 0);
    do_one(self, work, run->course->operation);
    fiber_queue_wake_all(&run->steps);
    fiber_wait_group_wait(self, &run->group);
    work_expect(self, work);
    run->is_closing = true;
    work_end(self, work);
}

static const Place *place_of(const Course *course)
{
    const Operation *o = operation_find(course->operation);
    unsigned i = 0;
    while (course->place ? !g_str_equal(places[i].name, course->place) : places[i].job != o->job)
        i++;
    return &places[i];
}

static bool run_course(const Course *course)
{
    Run run = {.hook.fn = hook, .course = course};
    const Place *place = place_of(course);
    World *world = world_new(place->n_layers);
    work_init(&run.work, world, place);
    run.sim = sim_clone_after_power_cut(world->sim, 1);
    sim_set_chooser(run.sim, &plain);
    sim_set_hook(run.sim, &run.hook);
    sim_run(run.sim, run_main, &run);
    sim_free(run.sim);
    unsigned n = 0;
    while (n < MAX_POINTS && course->points[n].name)
        n++;
    if (run.work.problem[0])
        printf("# %s: %s\n", course->operation, run.work.problem);
    else if (run.n_met < n)
        printf("# %s: it never came to this: %s\n", course->operation,
               course->points[run.n_met].name);
    bool is_good = !run.work.problem[0] && run.n_met == n;
    work_done(&run.work);
    world_free(world);
    return is_good;
}

int main(void)
{
    bool is_good = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(courses); i++) {
        bool is_fine = run_course(&courses[i]);
        printf("%sok %u - %s %s: power cuts at its named moments\n", is_fine ? "" : "not ", i + 1,
               courses[i].rule, courses[i].operation);
        is_good &= is_fine;
    }
    printf("1..%u\n", (unsigned)G_N_ELEMENTS(courses));
    return is_good ? 0 : 1;
}
