// SPDX-License-Identifier: LGPL-2.1-or-later
// Every three operations at one time, in the orders that explorer.h goes through, with a power cut
// and with an error at each step: what is on the disk then is consistent, shows what may be there,
// and keeps its points in time. Prints TAP, with what was gone through and what was left out.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "explorer.h"
#include "operations.h"
#include "sim/sim-random.h"

enum { N_TOGETHER = 3 };

typedef struct Options {
    gint64 max_runs, max_random, seed;
    int deviations;
    char *only, *place, *schedule;
    gboolean stops;
} Options;

typedef struct Counts {
    uint64_t n_threes, n_runs, n_random, n_known, n_bound, n_left, n_cuts, n_same, n_second_cuts,
        n_failures;
    uint64_t n_complete[EXPLORER_MAX_DEVIATIONS + 2]; // threes, by ExplorerCounts.n_complete
} Counts;

// One three at one place, and one schedule of it.
typedef struct Run {
    SimHook hook; // first
    const World *world;
    const Place *place;
    const Operation *operations[N_TOGETHER];
    Explorer *explorer;
    GHashTable *seen; // uint64_t: what a look after a power cut was had at
    Counts *counts;
    Sim *sim;
    Work work;
    FiberWaitGroup group;
    bool is_hit, is_closed;
} Run;

static SimChooser plain; // no choices

static void look(Fiber *self, void *arg)
{
    Run *run = arg;
    work_look(self, &run->work, run->is_closed);
}

// A look at what a power cut left, in which power is cut once more while the image is repaired.
typedef struct After {
    SimHook hook; // first
    Run *run;
    Sim *sim;
} After;

static int cut_again(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len);

static void look_after_cut(Run *run, const Sim *sim, uint64_t seed, bool cuts_again)
{
    After after = {.hook.fn = cut_again, .run = run, .sim = sim_clone_after_power_cut(sim, seed)};
    sim_set_chooser(after.sim, &plain);
    if (cuts_again)
        sim_set_hook(after.sim, &after.hook);
    sim_run(after.sim, look, run);
    sim_free(after.sim);
}

static bool is_seen(Run *run, uint64_t hash)
{
    return !g_hash_table_add(run->seen, g_memdup2(&hash, sizeof(hash)));
}

static int cut_again(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len)
{
    After *after = (After *)hook;
    Run *run = after->run;
    uint64_t hash = sim_mix(sim_files_hash(after->sim), n);
    if (op == SIM_OP_READ || op == SIM_OP_OPEN || run->work.problem[0] || is_seen(run, hash))
        return 0;
    run->counts->n_second_cuts++;
    look_after_cut(run, after->sim, hash, false);
    if (run->work.problem[0])
        printf("# after another power cut, at operation %" PRIu64 " of the repair:\n", n);
    return 0;
}

// What a power cut leaves now, unless the same was looked at before.
static void cut_here(Run *run)
{
    uint64_t hash = sim_mix(sim_files_hash(run->sim),
                            sim_mix(shadow_model_hash(run->work.model), work_hash(&run->work)));
    if (is_seen(run, hash)) {
        run->counts->n_same++;
        return;
    }
    run->counts->n_cuts++;
    look_after_cut(run, run->sim, hash, true);
    if (run->work.problem[0])
        printf("# after a power cut at operation %" PRIu64 ":\n", sim_n_ops(run->sim));
}

static bool can_lack_space(SimOp op)
{
    return op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE || op == SIM_OP_TRUNCATE;
}

static int hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    static const int failures[] = {0, -EIO, -ENOSPC};
    Run *run = (Run *)hook;
    bool is_wanted = explorer_is_new(run->explorer) && !run->work.problem[0];
    if (is_wanted && op != SIM_OP_READ && !run->work.may_fail)
        cut_here(run);
    unsigned failure = explorer_fail(run->explorer, can_lack_space(op) ? 2 : 1);
    run->is_hit |= failure > 0;
    return failures[failure];
}

// One of a run's.
typedef struct Task {
    Run *run;
    const Operation *operation;
} Task;

static void operation_fiber(Fiber *self, void *arg)
{
    const Task *task = arg;
    Run *run = task->run;
    task->operation->run(self, &run->work, task->operation);
    fiber_wait_group_done(&run->group);
}

// Each has its own fiber, so any of them may be the first to begin.
static void run_operations(Fiber *self, Run *run)
{
    Task tasks[N_TOGETHER];
    fiber_wait_group_add(&run->group, N_TOGETHER);
    for (unsigned i = 0; i < N_TOGETHER; i++) {
        tasks[i] = (Task){run, run->operations[i]};
        g_assert(fiber_spawn(fiber_loop(self), "operation", operation_fiber, &tasks[i], NULL) == 0);
    }
    fiber_wait_group_wait(self, &run->group);
}

static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    g_autoptr(GError) error = NULL;
    explorer_start(run->explorer, run->sim);
    if (work_begin(self, &run->work, &error) < 0) {
        if (!run->is_hit)
            work_fail(&run->work, "it does not open: %s", error->message);
        return;
    }
    run_operations(self, run);
    work_expect(self, &run->work);
    if (run->work.may_fail && explorer_is_new(run->explorer))
        cut_here(run); // what was acknowledged is there
    work_end(self, &run->work);
    run->is_closed = !run->work.may_fail;
}

static void report(const Run *run)
{
    g_autofree char *schedule = explorer_schedule(run->explorer);
    printf("# %s\n#     again: --place '%s' --only %s,%s,%s --schedule %s\n", run->work.problem,
           run->place->name, run->operations[0]->name, run->operations[1]->name,
           run->operations[2]->name, schedule);
    fflush(stdout);
}

// One schedule. True when all was well.
static bool run_one(Run *run)
{
    run->hook.fn = hook;
    run->is_hit = run->is_closed = false;
    work_init(&run->work, run->world, run->place);
    run->work.may_fail = explorer_has_failure(run->explorer);
    run->sim = sim_clone_after_power_cut(run->world->sim, 1);
    sim_set_hook(run->sim, &run->hook);
    sim_set_chooser(run->sim, explorer_chooser(run->explorer));
    sim_run(run->sim, run_main, run);
    bool is_new = explorer_is_new(run->explorer);
    explorer_stop(run->explorer);
    sim_set_hook(run->sim, NULL);
    sim_set_chooser(run->sim, &plain);
    if (is_new && !run->work.problem[0])
        sim_run(run->sim, look, run);
    sim_free(run->sim);
    run->counts->n_failures += run->is_hit;
    if (run->work.problem[0])
        report(run);
    work_done(&run->work);
    return !run->work.problem[0];
}

static void add_counts(Counts *counts, const Explorer *e)
{
    ExplorerCounts c;
    explorer_counts(e, &c);
    counts->n_threes++;
    counts->n_runs += c.n_runs;
    counts->n_random += c.n_random;
    counts->n_known += c.n_known;
    counts->n_bound += c.n_bound;
    counts->n_left += c.n_left;
    counts->n_complete[c.n_complete]++;
}

static bool run_three(Run *run, const Options *options)
{
    bool is_good = true;
    run->explorer = explorer_new(&(ExplorerLimits){
        .max_runs = (uint64_t)options->max_runs,
        .max_random = (uint64_t)options->max_random,
        .max_deviations = (unsigned)options->deviations,
        .seed = (uint64_t)options->seed,
    });
    run->seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    if (options->schedule && !explorer_replay(run->explorer, options->schedule))
        g_error("--schedule %s: not a schedule", options->schedule);
    while (is_good && explorer_begin(run->explorer)) {
        is_good = run_one(run);
        explorer_end(run->explorer);
    }
    add_counts(run->counts, run->explorer);
    g_hash_table_unref(run->seen);
    explorer_free(run->explorer);
    return is_good;
}

static bool is_wanted(const Run *run, const char *only)
{
    g_autofree char *names = g_strdup_printf("%s,%s,%s", run->operations[0]->name,
                                             run->operations[1]->name, run->operations[2]->name);
    return !only || g_str_equal(names, only);
}

static bool run_place(const World *world, const Place *place, const Options *options,
                      Counts *counts)
{
    unsigned n_failed = 0, n = n_operations, enough = options->stops ? 1 : 3;
    for (unsigned i = 0; i < n * n * n && n_failed < enough; i++) {
        unsigned a = i / n / n, b = i / n % n, c = i % n;
        Run run = {.world = world,
                   .place = place,
                   .counts = counts,
                   .operations = {&operations[a], &operations[b], &operations[c]}};
        bool do_meet =
            operations_meet(place, run.operations[0], run.operations[1], run.operations[2]);
        if (do_meet && is_wanted(&run, options->only))
            n_failed += !run_three(&run, options);
    }
    return n_failed == 0;
}

static void print_counts(unsigned number, const Place *place, const Counts *c, int deviations,
                         bool is_good)
{
    printf("%sok %u - every three operations on %s: %" PRIu64 " threes, %" PRIu64
           " schedules, %" PRIu64 " more at random\n",
           is_good ? "" : "not ", number, place->name, c->n_threes, c->n_runs, c->n_random);
    printf("#    of these %" PRIu64 " with a failure, %" PRIu64 " that came to a known state\n",
           c->n_failures, c->n_known);
    printf("#    %" PRIu64 " power cuts, %" PRIu64 " in the repair after one; %" PRIu64
           " more were the same\n",
           c->n_cuts, c->n_second_cuts, c->n_same);
    printf("#    left out: %" PRIu64 " schedules for their number, %" PRIu64
           " decisions for the bound of %d deviations\n#    all schedules with fewer than",
           c->n_left, c->n_bound, deviations);
    for (int i = 0; i <= deviations + 1; i++)
        if (c->n_complete[i])
            printf(" %d deviations: %" PRIu64 " threes;", i, c->n_complete[i]);
    printf("\n");
    fflush(stdout);
}

static void parse(Options *options, int argc, char **argv)
{
    GOptionEntry entries[] = {
        {"runs", 0, 0, G_OPTION_ARG_INT64, &options->max_runs, "schedules of each three; 0: all",
         "N"},
        {"random", 0, 0, G_OPTION_ARG_INT64, &options->max_random,
         "schedules of each three at random, after that", "N"},
        {"deviations", 0, 0, G_OPTION_ARG_INT, &options->deviations,
         "preemptions and failures in a schedule", "N"},
        {"seed", 0, 0, G_OPTION_ARG_INT64, &options->seed, "chooses them where there are more",
         "N"},
        {"place", 0, 0, G_OPTION_ARG_STRING, &options->place, "only there", "NAME"},
        {"only", 0, 0, G_OPTION_ARG_STRING, &options->only, "only this three", "A,B,C"},
        {"schedule", 0, 0, G_OPTION_ARG_STRING, &options->schedule, "only this one", "SCHEDULE"},
        {"stop", 0, 0, G_OPTION_ARG_NONE, &options->stops, "at the first failure", NULL},
        {NULL},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(2);
    }
    options->deviations = CLAMP(options->deviations, 0, EXPLORER_MAX_DEVIATIONS);
}

int main(int argc, char **argv)
{
    Options options = {.max_runs = 300, .deviations = 2, .seed = 1};
    parse(&options, argc, argv);
    World *worlds[] = {world_new(2), world_new(3)};
    bool is_good = true;
    unsigned number = 0;
    for (unsigned i = 0; i < n_places && (is_good || !options.stops); i++) {
        Counts counts = {0};
        if (options.place && !g_str_equal(options.place, places[i].name))
            continue;
        bool is_fine = run_place(worlds[places[i].n_layers - 2], &places[i], &options, &counts);
        print_counts(++number, &places[i], &counts, options.deviations, is_fine);
        is_good &= is_fine;
    }
    printf("1..%u\n", number);
    for (unsigned i = 0; i < G_N_ELEMENTS(worlds); i++)
        world_free(worlds[i]);
    g_free(options.only);
    g_free(options.place);
    g_free(options.schedule);
    return is_good && number ? 0 : 1;
}
