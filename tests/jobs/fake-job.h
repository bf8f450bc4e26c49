// SPDX-License-Identifier: LGPL-2.1-or-later
// A job whose work is made up: it goes piece by piece, and stops wherever a test wants it to.
// Control and work are two loops of a simulation.
#pragma once

#include "../loop/in-fiber.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/remote-call.h"
#include "chain-core/sim.h"
#include "jobs/job.h"

typedef struct FakeWorld {
    Loop *work; // its loop
    JobTable *table;
    GString *told; // "a:created a:running …"
    FiberQueue changed;
} FakeWorld;

// What a phase does when it comes to be run: waits at the gate first, if there is one.
typedef struct FakeGate {
    bool is_closed;
    unsigned n_waiting;
    FiberQueue opened;
} FakeGate;

typedef struct FakeWork {
    FakeWorld *world;
    unsigned n_pieces, n_done;
    unsigned gate_at; // of which piece; work's loop
    FakeGate gate, abort_gate, prepare_gate, commit_gate;
    bool gets_ready, clears_up;
    int fails_with, fails_at_prepare;
    JobOnError policy;
    int error_once; // of the first piece
    bool is_read;
    JobEnd ended;
    unsigned n_committed, n_aborted, n_cleaned, n_prepared;
} FakeWork;

static inline void fake_gate_pass(Fiber *self, FakeGate *gate)
{
    gate->n_waiting++;
    while (gate->is_closed)
        fiber_queue_wait(self, &gate->opened, false, "test: gate");
    gate->n_waiting--;
}

static inline void fake_gate_open(void *arg)
{
    FakeGate *gate = arg;
    gate->is_closed = false;
    fiber_queue_wake_all(&gate->opened);
}

// A piece is 100 bytes.
static inline int fake_piece(JobControl *control, FakeWork *work)
{
    if (work->error_once) {
        int error = work->error_once;
        work->error_once = 0;
        switch (job_error_action(control, work->policy, error, work->is_read)) {
        case JOB_ERROR_REPORT:
            return error;
        case JOB_ERROR_IGNORE:
            break;
        case JOB_ERROR_STOP:
            return 0;
        }
    }
    work->n_done++;
    job_count(control, JOB_BYTES_COPIED, 100);
    return 0;
}

static inline int fake_run(Fiber *self, JobControl *control, void *arg, GError **error)
{
    FakeWork *work = arg;
    job_set_total(control, work->n_pieces * 100);
    int r = 0;
    while (r == 0 && work->n_done < work->n_pieces) {
        if (work->n_done == work->gate_at)
            fake_gate_pass(self, &work->gate);
        r = job_pause_point(self, control);
        if (r == 0)
            r = fake_piece(control, work);
        fiber_yield(self);
    }
    if (r == 0 && work->gets_ready) {
        job_ready(control);
        while (r == 0 && !(work->ended = job_asked_end(control)))
            r = job_sleep(self, control, UINT64_MAX);
    }
    return r < 0 ? r : work->fails_with;
}

static inline int fake_prepare(Fiber *self, void *arg, GError **error)
{
    FakeWork *work = arg;
    fake_gate_pass(self, &work->prepare_gate);
    work->n_prepared++;
    if (work->fails_at_prepare)
        g_set_error(error, JOB_ERROR, 0, "cannot be switched");
    return work->fails_at_prepare;
}

static inline bool fake_clears_up(const void *arg)
{
    return ((const FakeWork *)arg)->clears_up;
}

static inline void fake_commit(Fiber *self, void *arg)
{
    FakeWork *work = arg;
    fake_gate_pass(self, &work->commit_gate);
    work->n_committed++;
}

static inline void fake_abort(Fiber *self, void *arg)
{
    FakeWork *work = arg;
    fake_gate_pass(self, &work->abort_gate);
    work->n_aborted++;
}

static inline void fake_clean(Fiber *self, void *arg)
{
    ((FakeWork *)arg)->n_cleaned++;
}

static const JobKind fake_kind = {
    .type = "fake",
    .is_block_job = true,
    .can_be_ready = true,
    .run = fake_run,
    .prepare = fake_prepare,
    .clears_up = fake_clears_up,
    .commit = fake_commit,
    .abort = fake_abort,
    .clean = fake_clean,
};

// -- the world ------------------------------------------------------------------------------------

static inline void fake_happened(void *arg, const Job *job, const JobEvent *event)
{
    static const char *const kinds[] = {
        [JOB_EVENT_READY] = "READY",         [JOB_EVENT_PENDING] = "PENDING",
        [JOB_EVENT_COMPLETED] = "COMPLETED", [JOB_EVENT_CANCELLED] = "CANCELLED",
        [JOB_EVENT_ERROR] = "ERROR",
    };
    static const char *const actions[] = {"report", "ignore", "stop"};
    FakeWorld *world = arg;
    if (event->kind == JOB_EVENT_STATUS && job_status(job) == JOB_PAUSED)
        g_assert_false(job_info(job, 0).is_busy); // whoever is told may ask at once
    g_string_append_printf(world->told, "%s%s:%s", world->told->len ? " " : "", job_id(job),
                           event->kind == JOB_EVENT_STATUS ? job_status_name(job_status(job))
                                                           : kinds[event->kind]);
    if (event->kind == JOB_EVENT_ERROR)
        g_string_append_printf(world->told, "-%s-%s", event->is_read ? "read" : "write",
                               actions[event->action]);
    fiber_queue_wake_all(&world->changed);
}

static inline void fake_wait_told(Fiber *self, FakeWorld *world, const char *what)
{
    while (!strstr(world->told->str, what))
        fiber_queue_wait(self, &world->changed, false, what);
}

static inline void fake_open(Fiber *self, FakeWorld *world, FakeGate *gate)
{
    remote_call_plain(self, world->work, fake_gate_open, gate);
}

// Until somebody waits at the gate.
static inline void fake_wait_gate(Fiber *self, const FakeGate *gate)
{
    while (!gate->n_waiting)
        fiber_sleep(self, 1000);
}

static inline Job *fake_job(FakeWorld *world, const char *id, FakeWork *work, JobSpec spec)
{
    spec.id = id;
    spec.kind = &fake_kind;
    spec.work = work;
    work->world = world;
    GError *error = NULL;
    Job *job = job_new(world->table, &spec, &error);
    if (!job)
        g_error("%s", error->message);
    return job;
}

typedef void FakeTestFn(Fiber *self, FakeWorld *world);

typedef struct FakeRun {
    FakeTestFn *fn;
    FakeWorld world;
} FakeRun;

static inline void fake_main(Fiber *self, void *arg)
{
    FakeRun *run = arg;
    FakeWorld *world = &run->world;
    world->told = g_string_new(NULL);
    world->table = job_table_new(fake_happened, world);
    run->fn(self, world);
    job_table_end(self, world->table);
    job_table_free(world->table);
    g_string_free(world->told, true);
}

// Every fifth time the work is on the loop of its users.
static inline void run_with_jobs(FakeTestFn *fn)
{
    for (uint64_t seed = 1; seed <= 25; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        Loop *control = sim_loop_new(sim);
        FakeRun run = {.fn = fn, .world.work = seed % 5 ? sim_loop_new(sim) : control};
        sim_run(sim, fake_main, &run);
        sim_free(sim);
    }
}

#define JOB_TEST(name)                                                                             \
    static void name##_fiber(Fiber *self, FakeWorld *world);                                       \
    static void name(void **state)                                                                 \
    {                                                                                              \
        run_with_jobs(name##_fiber);                                                               \
    }                                                                                              \
    static void name##_fiber(Fiber *self, FakeWorld *world)

#define fiber_assert_told(world, expected)                                                         \
    do {                                                                                           \
        if (strcmp((world)->told->str, expected) != 0)                                             \
            g_error("%s:%d: told: %s", __FILE__, __LINE__, (world)->told->str);                    \
    } while (0)
