// SPDX-License-Identifier: LGPL-2.1-or-later
// A Switch is a list of steps. Each says which node or port it needs drained, and what it changes.
// On the nodes' loop.
//
//     PREPARING ──switch_drain──▸ DRAINED ──switch_commit──▸ COMMITTED ──switch_resume──▸ RESUMED
//         └──────────────────────────┴── switch_end: abort                switch_end ─────────┘
#include "chain-core/switch.h"

#include "chain-core/mutant.h"
#include "node/node-edge.h"

typedef enum SwitchState {
    SWITCH_PREPARING,
    SWITCH_DRAINED,
    SWITCH_COMMITTED,
    SWITCH_RESUMED,
} SwitchState;

typedef struct Step Step;
struct Step {
    void (*commit)(Switch *s, const Step *step);
    Node *drained; // or NULL
    Node *stopped; // or NULL: drained too, but not waited for
    Port *held;    // or NULL
    Node *to;
    SwitchFn *fn;
    void *arg;
};

struct Switch {
    SwitchState state;
    RequestMask kinds;
    GArray *steps;      // of Step
    GPtrArray *kept;    // Node, owned references, dropped at the end
    GPtrArray *changed; // Node: edges at or below it changed
};

Switch *switch_new(RequestMask kinds)
{
    Switch *s = g_new0(Switch, 1);
    s->kinds = kinds;
    s->steps = g_array_new(FALSE, FALSE, sizeof(Step));
    s->kept = g_ptr_array_new();
    s->changed = g_ptr_array_new();
    return s;
}

static void keep(Switch *s, Node *node)
{
    if (node)
        g_ptr_array_add(s->kept, node_ref(node));
}

static void add_step(Switch *s, Step step)
{
    g_assert(s->state == SWITCH_PREPARING);
    keep(s, step.drained);
    keep(s, step.stopped);
    keep(s, step.to);
    g_array_append_val(s->steps, step);
}

static const Step *step_at(const Switch *s, guint i)
{
    return &g_array_index(s->steps, Step, i);
}

// -- steps ----------------------------------------------------------------------------------------

static void commit_backing(Switch *s, const Step *step)
{
    Node *old = node_exchange_backing(step->drained, step->to);
    if (old)
        g_ptr_array_add(s->kept, old);
    // Flush debt: what is written below and not durable yet is the new head's to flush. A filter is
    // no head: what it flushes is the node below, which has its own.
    step->drained->owes_flush_below =
        step->to != NULL && !step->drained->ops->is_filter && !MUTANT("flush-debt");
    g_ptr_array_add(s->changed, step->drained);
}

void switch_set_backing(Switch *s, Node *node, Node *backing)
{
    add_step(s, (Step){.commit = commit_backing, .drained = node, .to = backing});
}

static void add_to_set(Node *node, void *arg)
{
    g_hash_table_add(arg, node);
}

static GHashTable *nodes_below(Node *node)
{
    GHashTable *set = g_hash_table_new(NULL, NULL);
    node_for_each_below(node, add_to_set, set);
    return set;
}

static void commit_users(Switch *s, const Step *step)
{
    Node *from = step->drained, *to = step->to;
    g_autoptr(GHashTable) below = nodes_below(to);
    for (guint i = from->parents->len; i-- > 0;) {
        Node *parent = from->parents->pdata[i];
        if (!parent->ops->is_view && !g_hash_table_contains(below, parent))
            node_move_edge(parent, from, to);
    }
    while (from->ports->len)
        port_move(from->ports->pdata[from->ports->len - 1], to);
    g_ptr_array_add(s->changed, to);
}

void switch_move_users(Switch *s, Node *from, Node *to)
{
    g_assert(from->loop == to->loop);
    // What has moved to `to` stays out until the resume.
    add_step(s, (Step){.commit = commit_users, .drained = from, .stopped = to, .to = to});
}

static void commit_port(Switch *s, const Step *step)
{
    keep(s, step->held->node);
    port_move(step->held, step->to);
    g_ptr_array_add(s->changed, step->to);
}

void switch_move_port(Switch *s, Port *port, Node *to)
{
    g_assert(port->node->loop == to->loop);
    add_step(s, (Step){.commit = commit_port, .held = port, .to = to});
}

static void commit_call(Switch *s, const Step *step)
{
    step->fn(step->arg);
}

void switch_insert_filter(Switch *s, Node *node, Node *filter)
{
    g_assert(filter->ops->is_filter && !filter->backing && filter->loop == node->loop);
    g_assert(filter->size_bytes == node->size_bytes);
    filter->read_only = node->read_only;
    filter->preferred_bytes = node->preferred_bytes;
    switch_move_users(s, node, filter);
    switch_set_backing(s, filter, node);
}

void switch_call(Switch *s, SwitchFn *fn, void *arg)
{
    add_step(s, (Step){.commit = commit_call, .fn = fn, .arg = arg});
}

// -- stages ---------------------------------------------------------------------------------------

static void look_for_port(Node *node, void *arg)
{
    *(bool *)arg |= node->ports->len > 0;
}

static void look_for_told(Node *node, void *arg)
{
    if (node->ops->below_changed)
        node_for_each_above(node, look_for_port, arg);
}

// What was derived from what lies below is dropped by the step: nobody may be using it then.
static bool needs_everything_drained(const Step *step)
{
    bool is_in_use = false;
    if (step->drained && !MUTANT("maps-change-with-all-drained"))
        node_for_each_above(step->drained, look_for_told, &is_in_use);
    return is_in_use;
}

static void stop(Switch *s)
{
    for (guint i = 0; i < s->steps->len; i++)
        if (needs_everything_drained(step_at(s, i)))
            s->kinds = REQUESTS_ALL;
    for (guint i = 0; i < s->steps->len; i++) {
        const Step *step = step_at(s, i);
        if (step->drained)
            node_add_drain(step->drained, s->kinds);
        if (step->stopped)
            node_add_drain(step->stopped, s->kinds);
        if (step->held)
            port_add_hold(step->held, s->kinds);
    }
}

static void let_in(const Switch *s)
{
    for (guint i = 0; i < s->steps->len; i++) {
        const Step *step = step_at(s, i);
        if (step->drained)
            node_remove_drain(step->drained, s->kinds);
        if (step->stopped)
            node_remove_drain(step->stopped, s->kinds);
        if (step->held)
            port_remove_hold(step->held, s->kinds);
    }
}

static int wait_drained(Fiber *self, const Switch *s, const uint64_t *deadline_ns)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < s->steps->len; i++) {
        const Step *step = step_at(s, i);
        if (step->drained)
            r = node_wait_drained(self, step->drained, s->kinds, deadline_ns);
        if (r == 0 && step->held)
            r = port_wait_drained(self, step->held, s->kinds, deadline_ns);
    }
    return r;
}

static int drain(Fiber *self, Switch *s, const uint64_t *deadline_ns)
{
    g_assert(s->state == SWITCH_PREPARING);
    stop(s);
    int r = wait_drained(self, s, deadline_ns);
    if (r < 0)
        let_in(s);
    else
        s->state = SWITCH_DRAINED;
    return r;
}

int switch_drain(Fiber *self, Switch *s, uint64_t deadline_ns)
{
    return drain(self, s, &deadline_ns);
}

static int try_drain(Fiber *self, void *s, uint64_t deadline_ns)
{
    return switch_drain(self, s, deadline_ns);
}

int switch_drain_in_tries(Fiber *self, Switch *s, uint64_t deadline_ns)
{
    return drain_in_tries(self, try_drain, s, deadline_ns);
}

void switch_drain_always(Fiber *self, Switch *s)
{
    drain(self, s, NULL);
}

static void assert_idle(Node *node, void *arg)
{
    const Switch *s = arg;
    for (guint i = 0; i < node->ports->len; i++)
        g_assert(!(port_in_flight(node->ports->pdata[i]) & s->kinds));
}

void switch_commit(Switch *s)
{
    g_assert(s->state == SWITCH_DRAINED);
    for (guint i = 0; i < s->steps->len; i++)
        if (step_at(s, i)->drained)
            node_for_each_above(step_at(s, i)->drained, assert_idle, s);
    for (guint i = 0; i < s->steps->len; i++)
        step_at(s, i)->commit(s, step_at(s, i));
    for (guint i = 0; i < s->changed->len; i++)
        node_edges_changed(s->changed->pdata[i]);
    s->state = SWITCH_COMMITTED;
}

void switch_resume(Switch *s)
{
    g_assert(s->state == SWITCH_DRAINED || s->state == SWITCH_COMMITTED);
    let_in(s);
    s->state = SWITCH_RESUMED;
}

void switch_end(Fiber *self, Switch *s)
{
    if (!s)
        return;
    if (s->state == SWITCH_DRAINED || s->state == SWITCH_COMMITTED)
        let_in(s);
    for (guint i = 0; i < s->kept->len; i++)
        node_unref_close(self, s->kept->pdata[i]);
    g_ptr_array_unref(s->kept);
    g_ptr_array_unref(s->changed);
    g_array_unref(s->steps);
    g_free(s);
}

// -- single changes -------------------------------------------------------------------------------

static void run(Fiber *self, Switch *s)
{
    if (switch_drain_in_tries(self, s, UINT64_MAX) < 0)
        switch_drain_always(self, s);
    switch_commit(s);
    switch_end(self, s);
}

void node_insert_filter(Fiber *self, Node *node, Node *filter)
{
    Switch *s = switch_new(REQUESTS_ALL);
    switch_insert_filter(s, node, filter);
    run(self, s);
}

// What lies below it is looked up now: while this switch drained, another may have taken that out.
static void commit_removal(Switch *s, const Step *step)
{
    Node *filter = step->drained;
    commit_users(s, &(Step){.drained = filter, .to = filter->backing});
    commit_backing(s, &(Step){.drained = filter});
}

void node_remove_filter(Fiber *self, Node *filter)
{
    g_assert(filter->ops->is_filter && filter->backing);
    Switch *s = switch_new(REQUESTS_ALL);
    add_step(s, (Step){.commit = commit_removal, .drained = filter, .stopped = filter->backing});
    run(self, s);
}

void port_replace(Fiber *self, Port *port, Node *node)
{
    Switch *s = switch_new(REQUESTS_ALL);
    switch_move_port(s, port, node);
    run(self, s);
}
