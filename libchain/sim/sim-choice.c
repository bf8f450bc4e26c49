// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation with a chooser: what can happen next, and a hash of the state that it is in.
//
// The hash. What the program does follows from which fiber ran when, and what each got to know from
// below between its turns: `history`. Beside it the state is what was asked for and has not taken
// effect, what took effect for a fiber that has not run since, and the files. So two operations
// that do not concern each other may take effect in either order, and the state is the same.
#include <assert.h>

#include "sim/sim-private.h"

void sim_set_chooser(Sim *sim, SimChooser *chooser)
{
    assert(sim->events->len == 0);
    sim->chooser = chooser;
    if (!sim->actions) {
        sim->actions = g_array_new(false, false, sizeof(SimAction));
        sim->seen = g_array_new(false, false, sizeof(SimSeen));
    }
}

// Numbers follow from the history: a new fiber is among what can happen right after it was spawned.
static guint number_of(Sim *sim, const Fiber *fiber)
{
    guint i = 0;
    while (i < sim->seen->len && g_array_index(sim->seen, SimSeen, i).fiber != fiber)
        i++;
    if (i == sim->seen->len) {
        SimSeen seen = {.fiber = fiber};
        g_array_append_val(sim->seen, seen);
    }
    return i;
}

void sim_note_asked(Sim *sim, SimEvent *event, uint64_t detail)
{
    if (sim->chooser)
        event->hash = sim_mix(sim_mix(sim->history, ++sim->n_asked), detail);
}

void sim_note_received(Sim *sim, const SimEvent *event, uint64_t detail)
{
    if (!sim_has_choices(sim) || !event->fiber)
        return;
    guint i = number_of(sim, event->fiber);
    g_array_index(sim->seen, SimSeen, i).received += sim_mix(event->hash, detail);
}

uint64_t sim_files_hash(const Sim *sim)
{
    return sim_disk_hash(&sim->disk);
}

uint64_t sim_state_hash(const Sim *sim)
{
    uint64_t sum = sim_mix(sim->history, sim_files_hash(sim));
    for (guint i = 0; i < sim->seen->len; i++) {
        uint64_t received = g_array_index(sim->seen, SimSeen, i).received;
        sum += received ? sim_mix(i, received) : 0;
    }
    for (guint i = 0; i < sim->events->len; i++)
        sum += sim_mix(((const SimEvent *)sim->events->pdata[i])->hash, 0);
    return sum;
}

// --- actions -------------------------------------------------------------------------------------

static bool has_calls(const Sim *sim, Loop *loop)
{
    return loop->calls || atomic_load(&loop->inbox) || loop_next_deadline_ns(loop) <= sim->now_ns;
}

static void list_actions(Sim *sim)
{
    g_array_set_size(sim->actions, 0);
    for (guint i = 0; i < sim->loops->len; i++)
        for (Fiber *f = ((Loop *)sim->loops->pdata[i])->first_runnable; f; f = f->next_runnable) {
            SimAction action = {.fiber = f, .number = number_of(sim, f)};
            g_array_append_val(sim->actions, action);
        }
    for (guint i = 0; i < sim->events->len; i++) {
        const SimEvent *event = sim->events->pdata[i];
        SimAction action = {.fiber = event->fiber, .is_effect = true};
        action.number = event->fiber ? number_of(sim, event->fiber) : UINT32_MAX;
        g_array_append_val(sim->actions, action);
    }
}

static void run_fiber(Sim *sim, const Fiber *fiber)
{
    Loop *loop = fiber->loop;
    guint number = number_of(sim, fiber);
    SimSeen *seen = &g_array_index(sim->seen, SimSeen, number);
    sim->history = sim_mix(sim_mix(sim->history, number), seen->received);
    seen->received = 0;
    sim->n_asked = 0;
    sim->picked_fiber = 0;
    for (const Fiber *f = loop->first_runnable; f != fiber; f = f->next_runnable)
        sim->picked_fiber++;
    loop_run_one(loop);
}

// Messages and timers come at once: to whom they go is not known.
static bool dispatch_calls(Sim *sim)
{
    bool any = false;
    for (guint i = 0; i < sim->loops->len; i++)
        if (has_calls(sim, sim->loops->pdata[i]))
            any |= loop_dispatch(sim->loops->pdata[i]);
    if (any)
        sim->history = sim_mix(sim->history, UINT64_MAX);
    return any;
}

static bool let_time_pass(Sim *sim)
{
    uint64_t first = UINT64_MAX;
    for (guint i = 0; i < sim->loops->len; i++)
        first = MIN(first, loop_next_deadline_ns(sim->loops->pdata[i]));
    if (first == UINT64_MAX)
        return false;
    sim->now_ns = MAX(sim->now_ns, first);
    return true;
}

bool sim_step_chosen(Sim *sim)
{
    if (dispatch_calls(sim))
        return true;
    list_actions(sim);
    guint n = sim->actions->len, picked = 0;
    if (n == 0)
        return let_time_pass(sim);
    const SimAction *actions = (const SimAction *)sim->actions->data;
    if (sim->chooser->choose)
        picked = sim->chooser->choose(sim->chooser, actions, n);
    assert(picked < n);
    if (actions[picked].is_effect) {
        guint n_fibers = n - sim->events->len;
        SimEvent *event = g_ptr_array_steal_index(sim->events, picked - n_fibers);
        event->fn(event);
    } else {
        run_fiber(sim, actions[picked].fiber);
    }
    return true;
}
