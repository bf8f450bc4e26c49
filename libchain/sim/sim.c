// SPDX-License-Identifier: LGPL-2.1-or-later
// The driver of the simulation: virtual time, the order in which loops, fibers, messages and events
// get their turn, worker calls, and what tests see of the disk. Everything here runs on the one
// thread that called sim_run(). There is no thread-local state, so a hook may run another Sim.
#include "chain-core/sim.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "sim/sim-private.h"

enum { DEFAULT_MAX_DELAY_US = 100 };

static uint64_t loop_backend_now(Loop *loop)
{
    return sim_of_loop(loop)->now_ns;
}

// Some day in 2020.
static uint64_t loop_backend_wall_us(Loop *loop)
{
    return UINT64_C(1600000000000000) + sim_of_loop(loop)->now_ns / 1000;
}

static void loop_backend_notify(Loop *loop)
{
    // The driver looks at every loop before it lets time go on.
}

static unsigned loop_backend_pick(Loop *loop, unsigned n)
{
    Sim *sim = sim_of_loop(loop);
    return sim->chooser ? sim->picked_fiber : sim_random_below(&sim->random, n);
}

static int loop_backend_work(Fiber *self, LoopWorkFn *fn, void *arg)
{
    sim_delay(self, "worker");
    int result = fn(arg);
    sim_delay(self, "worker");
    return result;
}

static const LoopBackend loop_backend = {
    .name = "sim",
    .now = loop_backend_now,
    .wall_us = loop_backend_wall_us,
    .notify = loop_backend_notify,
    .work = loop_backend_work,
    .pick = loop_backend_pick,
};

static const IoBackend io_backend = {
    .file_open = sim_file_open,
    .file_rename = sim_file_rename,
    .file_unlink = sim_file_unlink,
    .file_sync_dir = sim_file_sync_dir,
};

static Sim *sim_alloc(const SimConfig *config)
{
    static uint64_t last_device; // no two simulations of a process are the same device
    Sim *sim = g_new0(Sim, 1);
    sim->device = ++last_device;
    sim->config = *config;
    if (sim->config.max_delay_us == 0)
        sim->config.max_delay_us = DEFAULT_MAX_DELAY_US;
    sim->random = sim_random_make(config->seed, 0x73696d);
    sim->now_ns = 1000000000; // not 0, so that "never" and "at the start" differ
    sim->events = g_ptr_array_new();
    sim->loops = g_ptr_array_new();
    return sim;
}

Sim *sim_new(const SimConfig *config)
{
    Sim *sim = sim_alloc(config);
    sim_disk_init(&sim->disk);
    return sim;
}

Sim *sim_clone_after_power_cut(const Sim *sim, uint64_t seed)
{
    SimConfig config = sim->config;
    config.seed = sim_random_next(&(SimRandom){config.seed ^ seed});
    Sim *clone = sim_alloc(&config);
    sim_disk_after_power_cut(&sim->disk, seed, &clone->disk);
    return clone;
}

void sim_free(Sim *sim)
{
    if (!sim)
        return;
    for (guint i = 0; i < sim->events->len; i++) {
        SimEvent *event = sim->events->pdata[i];
        if (event->drop)
            event->drop(event);
    }
    for (guint i = 0; i < sim->loops->len; i++) {
        SimLoop *loop = sim->loops->pdata[i];
        fiber_abandon_all(&loop->io.loop);
        io_loop_done(&loop->io);
        g_free(loop);
    }
    g_ptr_array_unref(sim->loops);
    g_ptr_array_unref(sim->events);
    g_clear_pointer(&sim->actions, g_array_unref);
    g_clear_pointer(&sim->seen, g_array_unref);
    sim_disk_done(&sim->disk);
    g_free(sim);
}

Loop *sim_loop_new(Sim *sim)
{
    SimLoop *loop = g_new0(SimLoop, 1);
    loop->sim = sim;
    io_loop_init(&loop->io, &loop_backend, &io_backend, &(LoopConfig){0});
    loop->io.loop.is_running = true;
    g_ptr_array_add(sim->loops, loop);
    return &loop->io.loop;
}

void sim_trace(Sim *sim, uint64_t what, uint64_t detail)
{
    SimRandom mix = {sim->trace_hash ^ what};
    mix.state = sim_random_next(&mix) ^ detail;
    sim->trace_hash = sim_random_next(&mix);
}

uint64_t sim_trace_hash(const Sim *sim)
{
    return sim->trace_hash;
}

void sim_schedule(Sim *sim, SimEvent *event)
{
    uint64_t max_ns = sim->config.max_delay_us * UINT64_C(1000);
    if (sim_random_chance(&sim->random, sim->config.slow_percent))
        max_ns *= SIM_SLOW;
    event->due_ns = sim->now_ns + sim_random_below(&sim->random, max_ns);
    g_ptr_array_add(sim->events, event);
}

typedef struct Delay {
    SimEvent event;
    Fiber *fiber;
    bool is_over;
} Delay;

static void delay_end(SimEvent *event)
{
    Delay *delay = (Delay *)event;
    delay->is_over = true;
    fiber_wake(delay->fiber);
}

void sim_delay(Fiber *self, const char *where)
{
    Sim *sim = sim_of_loop(fiber_loop(self));
    Delay delay = {.event = {.fn = delay_end, .fiber = self}, .fiber = self};
    if (sim->chooser)
        return;
    sim_schedule(sim, &delay.event);
    while (!delay.is_over)
        fiber_suspend(self, where);
}

int sim_ask_hook(Sim *sim, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    uint64_t n = ++sim->n_ops;
    sim_trace(sim, op + (off << 4), len ^ (uint64_t)g_str_hash(path) << 32);
    int result = sim->hook ? sim->hook->fn(sim->hook, n, op, path, off, len) : 0;
    assert(result <= 0 || result == SIM_POWER_CUT);
    if (result == SIM_POWER_CUT)
        sim->is_power_cut = true;
    return result;
}

// Index of the event that is due first; among equals the oldest. The list must not be empty.
static guint first_event(const Sim *sim)
{
    guint first = 0;
    for (guint i = 1; i < sim->events->len; i++) {
        const SimEvent *event = sim->events->pdata[i], *best = sim->events->pdata[first];
        if (event->due_ns < best->due_ns)
            first = i;
    }
    return first;
}

static uint64_t next_event_ns(const Sim *sim)
{
    if (sim->events->len == 0)
        return UINT64_MAX;
    return ((const SimEvent *)sim->events->pdata[first_event(sim)])->due_ns;
}

// Time goes on to the next event, which happens.
static void run_event(Sim *sim)
{
    SimEvent *event = g_ptr_array_steal_index(sim->events, first_event(sim));
    sim->now_ns = MAX(sim->now_ns, event->due_ns);
    event->fn(event);
}

static bool loop_has_work(Sim *sim, Loop *loop)
{
    return loop_is_ready(loop) || loop_next_deadline_ns(loop) <= sim->now_ns;
}

// A loop that has something to do now, chosen by the seed, or NULL.
static Loop *pick_loop(Sim *sim)
{
    Loop *picked = NULL;
    unsigned n = 0;
    for (guint i = 0; i < sim->loops->len; i++)
        if (loop_has_work(sim, sim->loops->pdata[i]) && sim_random_below(&sim->random, ++n) == 0)
            picked = sim->loops->pdata[i];
    return picked;
}

// Messages and timers that are due come in between fibers, as the seed says.
static void run_loop(Sim *sim, Loop *loop)
{
    if (!sim_random_chance(&sim->random, 50) || !loop_run_one(loop))
        if (!loop_dispatch(loop))
            loop_run_one(loop);
}

static uint64_t next_deadline_ns(const Sim *sim)
{
    uint64_t first = UINT64_MAX;
    for (guint i = 0; i < sim->loops->len; i++)
        first = MIN(first, loop_next_deadline_ns(sim->loops->pdata[i]));
    return first;
}

static unsigned count_fibers(const Sim *sim)
{
    unsigned n = 0;
    for (guint i = 0; i < sim->loops->len; i++)
        n += ((Loop *)sim->loops->pdata[i])->n_fibers;
    return n;
}

static G_GNUC_NORETURN void report_deadlock(const Sim *sim)
{
    fprintf(stderr, "sim: seed %" PRIu64 ", operation %" PRIu64 ": every fiber waits, for ever:\n",
            sim->config.seed, sim->n_ops);
    for (guint i = 0; i < sim->loops->len; i++)
        for (Fiber *f = ((Loop *)sim->loops->pdata[i])->fibers; f; f = f->next)
            fprintf(stderr, "  %s: %s\n", f->name, f->where ? f->where : "not started");
    abort();
}

// One step: a turn of a loop, or an event. A loop that has work is not always faster than the disk:
// at times the next event comes first. False when nothing is left to happen.
static bool sim_step(Sim *sim)
{
    if (sim->chooser)
        return sim_step_chosen(sim);
    Loop *loop = pick_loop(sim);
    uint64_t event_ns = next_event_ns(sim), deadline_ns = next_deadline_ns(sim);
    if (loop && (event_ns == UINT64_MAX || sim_random_chance(&sim->random, 90))) {
        run_loop(sim, loop);
    } else if (event_ns <= deadline_ns && event_ns != UINT64_MAX) {
        run_event(sim);
    } else if (loop) {
        run_loop(sim, loop);
    } else if (deadline_ns != UINT64_MAX) {
        sim->now_ns = MAX(sim->now_ns, deadline_ns);
    } else {
        return false;
    }
    return true;
}

bool sim_run(Sim *sim, FiberFn *fn, void *arg)
{
    Loop *loop = sim->loops->len > 0 ? sim->loops->pdata[0] : sim_loop_new(sim);
    int r = fiber_spawn(loop, "sim-main", fn, arg, NULL);
    assert(r == 0);
    while (!sim->is_power_cut && count_fibers(sim) > 0)
        if (!sim_step(sim))
            report_deadlock(sim);
    // What was posted to a loop without fibers still arrives, and may start some.
    for (guint i = 0; i < sim->loops->len && !sim->is_power_cut; i++)
        while (loop_is_ready(sim->loops->pdata[i]) || count_fibers(sim) > 0)
            if (!sim_step(sim))
                report_deadlock(sim);
    return !sim->is_power_cut;
}

void sim_set_hook(Sim *sim, SimHook *hook)
{
    sim->hook = hook;
}

uint64_t sim_n_ops(const Sim *sim)
{
    return sim->n_ops;
}

uint64_t sim_random(Sim *sim, uint64_t bound)
{
    return sim_random_below(&sim->random, bound);
}
