// SPDX-License-Identifier: LGPL-2.1-or-later
// Guests whose requests begin, are held up and end at certain moments of a copy that takes them to
// another layer: one that began in the background and ends when all was made durable, one that
// begins while another is still written in the background, a promise just before the switch. Orders
// with so many interruptions are too many for test-model, so each course here says whose turn it
// is, and a seed for how long. From the switch on power is cut. Prints TAP.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "chain-core/sim.h"
#include "job-work.h"
#include "operations.h"
#include "sim/sim-random.h"

enum { MAX_GUESTS = 3, MAX_TURNS = 6, SOME_STEPS = 12, MAX_CUTS = 6 };

typedef enum Who { GUEST_1, GUEST_2, GUEST_3, JOB } Who;

// Steps of one fiber (of the job: of all that is no guest's) before the next turn. Whoever waits
// for another meanwhile lets that go on.
typedef struct Turn {
    Who who;
    enum { TO_ITS_END, SOME, ANY } steps; // SOME: a few; ANY: up to all that a job has
} Turn;

typedef struct Course {
    const char *name;
    const char *guests[MAX_GUESTS];
    int switches; // the guest before whose request the copy becomes write-blocking; -1: none
    unsigned n_turns;
    Turn turns[MAX_TURNS];
} Course;

static const Course courses[] = {
    {"what ends after the last flush",
     {"write-fua", "write"},
     -1,
     5,
     {{JOB, ANY}, {GUEST_1, SOME}, {JOB, ANY}, {GUEST_1, TO_ITS_END}, {GUEST_2, TO_ITS_END}}},
    {"a promise just before the switch",
     {"write", "flush"},
     -1,
     3,
     {{JOB, ANY}, {GUEST_1, TO_ITS_END}, {GUEST_2, TO_ITS_END}}},
    {"a write that blocks beside one in the background",
     {"write", "write-fua", "write"},
     GUEST_3,
     6,
     {{JOB, ANY},
      {GUEST_1, TO_ITS_END},
      {GUEST_2, SOME},
      {GUEST_3, SOME},
      {GUEST_2, TO_ITS_END},
      {GUEST_3, TO_ITS_END}}},
};

typedef struct Run {
    SimHook hook;       // first
    SimChooser chooser; // second
    const Course *course;
    const Operation *job;
    Sim *sim;
    Work work;
    const Fiber *guests[MAX_GUESTS];
    unsigned next_guest;
    bool is_begun, is_over[MAX_GUESTS];
    FiberQueue gate;
    FiberWaitGroup group;
    unsigned turn, n_done; // whose it is, and steps of it
    unsigned lengths[MAX_TURNS], n_job_steps, n_cuts;
} Run;

static SimChooser plain; // no choices

// -- whose turn it is -----------------------------------------------------------------------------

static Who who_is(const Run *run, const SimAction *action)
{
    Who who = GUEST_1;
    while (who < JOB && (!action->fiber || action->fiber != run->guests[who]))
        who++;
    return who;
}

static int find_of(const Run *run, Who who, const SimAction *actions, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (who_is(run, &actions[i]) == who)
            return (int)i;
    return -1;
}

static bool is_turn_over(const Run *run)
{
    const Turn *turn = &run->course->turns[run->turn];
    if (turn->who < JOB && run->is_over[turn->who])
        return true;
    return turn->steps != TO_ITS_END && run->n_done >= run->lengths[run->turn];
}

// Of those whose turn it is not, the job goes first.
static unsigned let_another_go(const Run *run, const SimAction *actions, unsigned n)
{
    int picked = find_of(run, JOB, actions, n);
    return picked < 0 ? 0 : (unsigned)picked;
}

static unsigned choose(SimChooser *chooser, const SimAction *actions, unsigned n)
{
    Run *run = (Run *)((char *)chooser - offsetof(Run, chooser));
    if (!run->is_begun)
        return 0;
    for (; run->turn < run->course->n_turns; run->turn++, run->n_done = 0) {
        Who who = run->course->turns[run->turn].who;
        int picked = is_turn_over(run) ? -1 : find_of(run, who, actions, n);
        if (picked >= 0) {
            run->n_done++;
            run->n_job_steps += who == JOB;
            return (unsigned)picked;
        }
        if (who < JOB && !is_turn_over(run))
            return let_another_go(run, actions, n);
    }
    return let_another_go(run, actions, n);
}

// -- power cuts -----------------------------------------------------------------------------------

static void look(Fiber *self, void *arg)
{
    work_look(self, arg, false);
}

static int hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    Run *run = (Run *)hook;
    bool is_elsewhere = run->is_begun && work_top(&run->work) != run->work.world->n_layers - 1;
    if (op == SIM_OP_READ || !is_elsewhere || run->work.problem[0] || run->n_cuts == MAX_CUTS)
        return 0;
    run->n_cuts++;
    Sim *after = sim_clone_after_power_cut(run->sim, n);
    sim_set_chooser(after, &plain);
    sim_run(after, look, &run->work);
    sim_free(after);
    return 0;
}

// -- a run ----------------------------------------------------------------------------------------

static void guest_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    Work *work = &run->work;
    unsigned i = run->next_guest++;
    const Operation *operation = operation_find(run->course->guests[i]);
    run->guests[i] = self;
    fiber_queue_wait(self, &run->gate, false, "its turn");
    if (run->course->switches == (int)i && work->job && !work->is_job_over) {
        job_control_ask_copy_mode(work->job, COPY_MODE_WRITE_BLOCKING);
        fiber_sleep(self, 0); // until the job has heard
    }
    operation->run(self, work, operation);
    run->is_over[i] = true;
    fiber_wait_group_done(&run->group);
}

static void begin_guests(Fiber *self, Run *run)
{
    unsigned n = 0;
    for (; n < MAX_GUESTS && run->course->guests[n]; n++) {
        fiber_wait_group_add(&run->group, 1);
        g_assert(fiber_spawn(fiber_loop(self), "guest", guest_fiber, run, NULL) == 0);
    }
    while (run->next_guest < n)
        fiber_sleep(self, 1);
    fiber_queue_wake_all(&run->gate);
    run->is_begun = true;
}

static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    g_autoptr(GError) error = NULL;
    if (work_begin(self, &run->work, &error) < 0) {
        work_fail(&run->work, "it does not open: %s", error->message);
        return;
    }
    begin_guests(self, run);
    run->job->run(self, &run->work, run->job);
    fiber_wait_group_wait(self, &run->group);
    work_expect(self, &run->work);
    work_end(self, &run->work);
}

static const Place *place_of(const Operation *job)
{
    unsigned i = 0;
    while (places[i].job != job->job)
        i++;
    return &places[i];
}

// `most_steps` of the job in a turn; *ret_steps: so many it had in its turns.
static bool run_one(const World *world, const Course *course, const Operation *job, uint64_t seed,
                    unsigned most_steps, unsigned *ret_steps)
{
    Run run = {.hook.fn = hook, .chooser.choose = choose, .course = course, .job = job};
    for (unsigned i = 0; i < course->n_turns; i++) {
        unsigned most = course->turns[i].steps == SOME ? SOME_STEPS : most_steps;
        run.lengths[i] = (unsigned)(sim_mix(seed, i) % most);
    }
    work_init(&run.work, world, place_of(job));
    run.sim = sim_clone_after_power_cut(world->sim, 1);
    sim_set_chooser(run.sim, &run.chooser);
    sim_set_hook(run.sim, &run.hook);
    sim_run(run.sim, run_main, &run);
    sim_set_hook(run.sim, NULL);
    sim_set_chooser(run.sim, &plain);
    if (!run.work.problem[0])
        sim_run(run.sim, look, &run.work);
    sim_free(run.sim);
    *ret_steps = run.n_job_steps;
    bool is_good = !run.work.problem[0];
    if (!is_good)
        printf("# seed %" PRIu64 ": %s\n", seed, run.work.problem);
    work_done(&run.work);
    return is_good;
}

static bool run_course(const World *world, const Course *course, const char *job, unsigned n_runs)
{
    const Operation *operation = operation_find(job);
    unsigned most_steps, n_steps;
    bool is_good = run_one(world, course, operation, 0, UINT_MAX, &most_steps);
    for (uint64_t seed = 1; is_good && seed <= n_runs; seed++)
        is_good = run_one(world, course, operation, seed, most_steps, &n_steps);
    return is_good && most_steps > 0;
}

int main(int argc, char **argv)
{
    static const char *const jobs[] = {"commit", "mirror"};
    unsigned n_runs = argc > 1 ? (unsigned)atoi(argv[1]) : 2000, number = 0;
    World *world = world_new(3);
    bool is_good = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(courses); i++) {
        for (unsigned k = 0; k < G_N_ELEMENTS(jobs); k++) {
            bool is_fine = run_course(world, &courses[i], jobs[k], n_runs);
            printf("%sok %u - %s: %s\n", is_fine ? "" : "not ", ++number, jobs[k], courses[i].name);
            fflush(stdout);
            is_good &= is_fine;
        }
    }
    printf("1..%u\n", number);
    world_free(world);
    return is_good ? 0 : 1;
}
