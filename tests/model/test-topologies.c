// SPDX-License-Identifier: LGPL-2.1-or-later
// Every tree of up to six layers, each job that reshapes chains, every pair of its nodes, through
// the daemon's commands, with guests that write to all heads meanwhile: each layer that is to stay
// a point in time shows what it did, in the graph, on the disk as a power cut leaves it the moment
// after, and opened again from its files by what headers say. Or the command is refused, with the
// reason.
//
// What is refused is decided here by shape alone, so that the daemon's table of uses is judged by
// something else than itself. Prints TAP, with what was gone through.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "sim-daemon.h"
#include "topology.h"

enum {
    NONE = TOPOLOGY_NONE,
    MAX = TOPOLOGY_MAX_LAYERS,
    GUEST_TAG = 100,
    N_GUEST_WRITES = 3,
    N_CUTS = 4
};

typedef struct JobCase JobCase;

// What is to come of a case.
typedef struct Outcome {
    const char *refusal;      // words of the reason; NULL: none
    bool is_lost[MAX];        // shows nothing that counts any more
    unsigned becomes[MAX];    // of the layers that are lost: which other one it shows now, or NONE
    unsigned below[MAX];      // in the graph, and as headers say
    unsigned named;           // whose header was written, or NONE
    unsigned head[MAX];       // where a guest of that layer is afterwards
    char in_the_way[MAX + 1]; // layers one of which the reason has to name; none: any words will do
} Outcome;

typedef struct Kind {
    const char *name;
    void (*foresee)(const JobCase *c, Outcome *outcome);
    char *(*arguments)(const JobCase *c);
} Kind;

struct JobCase {
    const Tree *tree;
    const Kind *kind;
    unsigned device, top, base; // top: of commits; base NONE: not given
    bool is_bottom;             // of streams: what is given is not the base but the lowest to leave
    bool keeps_points, keeps_top, gives_name;
};

typedef struct Counts {
    uint64_t n_trees, n_done, n_refused, n_kept, n_cuts;
} Counts;

// -- stream ---------------------------------------------------------------------------------------

static const Topology *shape_of(const JobCase *c)
{
    return &c->tree->shape;
}

static void begin_outcome(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    *outcome = (Outcome){.named = NONE};
    memcpy(outcome->below, t->below, sizeof outcome->below);
    for (unsigned i = 0; i < t->n; i++) {
        outcome->head[i] = i;
        outcome->becomes[i] = NONE;
    }
}

// What is to lie below the device; or it is refused.
static unsigned foresee_base(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    if (c->base == NONE)
        return NONE;
    if (!c->is_bottom) {
        if (c->base == c->device || !topology_is_over(t, c->device, c->base))
            outcome->refusal = "is not a backing image of";
        return c->base;
    }
    if (!topology_is_over(t, c->device, c->base))
        outcome->refusal = "is not in a chain starting from";
    return c->base == c->device ? t->below[c->device] : t->below[c->base];
}

static void foresee_stream(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    begin_outcome(c, outcome);
    unsigned base = foresee_base(c, outcome);
    bool is_done = base == t->below[c->device];
    if (!outcome->refusal && c->gives_name && (is_done || base == NONE))
        outcome->refusal = "streaming the entire chain";
    if (outcome->refusal || is_done)
        return;
    outcome->below[c->device] = base;
    outcome->named = c->device;
}

static char *stream_arguments(const JobCase *c)
{
    GString *s = g_string_new(NULL);
    g_string_printf(s, "{'job-id':'j','auto-dismiss':false,'device':'n%u'", c->device);
    if (c->base != NONE)
        g_string_append_printf(s, ",'%s':'n%u'", c->is_bottom ? "bottom" : "base-node", c->base);
    if (c->gives_name) { // as it will be
        Outcome outcome;
        foresee_stream(c, &outcome);
        unsigned base = c->base == NONE ? 0 : outcome.below[c->device];
        g_string_append_printf(s, ",'backing-file':'/n%u'", base == NONE ? 0 : base);
    }
    g_string_append_c(s, '}');
    return g_string_free(s, false);
}

static const Kind stream = {"block-stream", foresee_stream, stream_arguments};

// -- commit ---------------------------------------------------------------------------------------

static bool is_active(const JobCase *c)
{
    return c->top == c->device;
}

static unsigned base_of(const JobCase *c)
{
    return c->base == NONE ? 0 : c->base; // all trees have one lowest layer
}

// Other layers lie on what is to change.
static void look_for_others(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    unsigned base = base_of(c), n = 0;
    for (unsigned i = 1; i < t->n; i++) {
        unsigned below = t->below[i];
        bool is_changed = below != c->top && topology_is_over(t, c->top, below) &&
                          topology_is_over(t, below, base);
        if (is_changed && !topology_is_over(t, c->top, i))
            outcome->in_the_way[n++] = '0' + i;
    }
    if (n && !c->keeps_points)
        outcome->refusal = "";
}

static void foresee_refusal(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    unsigned base = base_of(c);
    if (!topology_is_head(t, c->device))
        outcome->refusal = "Need a root block node";
    else if (!topology_is_over(t, c->device, c->top) || !topology_is_over(t, c->device, base))
        outcome->refusal = "is not in this backing file chain";
    else if (c->top == base)
        outcome->refusal = "cannot commit an image into itself";
    else if (!topology_is_over(t, c->top, base))
        outcome->refusal = "is not in this backing file chain";
    else if (is_active(c) && c->gives_name && !c->keeps_top)
        outcome->refusal = "'backing-file' specified, but 'top' is the active layer";
    else if (is_active(c) && c->keeps_points && !c->keeps_top)
        outcome->refusal = "'keep-points' specified, but 'top' is the active layer";
    else
        look_for_others(c, outcome);
}

static void foresee_commit(const JobCase *c, Outcome *outcome)
{
    const Topology *t = shape_of(c);
    unsigned base = base_of(c);
    begin_outcome(c, outcome);
    foresee_refusal(c, outcome);
    if (outcome->refusal)
        return;
    for (unsigned i = t->below[c->top]; i != NONE && topology_is_over(t, i, base); i = t->below[i])
        outcome->is_lost[i] = i == base || !c->keeps_points;
    outcome->becomes[base] = c->top;
    if (c->keeps_top) {
        outcome->becomes[base] = NONE; // what guests write meanwhile stays in the top
        outcome->below[c->top] = base;
        outcome->named = t->below[c->top] == base && !c->gives_name ? NONE : c->top;
        return;
    }
    for (unsigned i = 0; i < t->n; i++)
        if (t->below[i] == c->top) {
            outcome->below[i] = base;
            outcome->named = i;
        }
    if (is_active(c)) { // what is written from then on is written to the base
        outcome->head[c->top] = base;
        outcome->is_lost[c->top] = true;
    }
}

static char *commit_arguments(const JobCase *c)
{
    GString *s = g_string_new(NULL);
    g_string_printf(s, "{'job-id':'j','auto-dismiss':false,'device':'n%u','top-node':'n%u'",
                    c->device, c->top);
    if (c->base != NONE)
        g_string_append_printf(s, ",'base-node':'n%u'", c->base);
    if (c->gives_name)
        g_string_append_printf(s, ",'backing-file':'/n%u'", base_of(c));
    if (c->keeps_points)
        g_string_append(s, ",'keep-points':true");
    if (c->keeps_top)
        g_string_append(s, ",'keep-top':true");
    g_string_append_c(s, '}');
    return g_string_free(s, false);
}

static const Kind commit = {"block-commit", foresee_commit, commit_arguments};

// -- a daemon with the tree -----------------------------------------------------------------------

typedef struct Run {
    SimHook hook; // first
    const JobCase *c;
    const Outcome *outcome;
    Sim *sim;
    SimDaemon *daemon;
    Picture pictures[MAX]; // with what guests have written
    Port ports[MAX];       // of heads
    unsigned next_guest;
    bool is_over; // the job
    unsigned n_cuts;
    uint64_t n_ops, cuts[N_CUTS]; // since it began; before which of them power is cut
    FiberWaitGroup guests;
    const char *where;
    char *problem;
} Run;

static void fail(Run *run, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void fail(Run *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!run->problem)
        run->problem = g_strdup_vprintf(format, args);
    va_end(args);
}

static bool is_head(const Run *run, unsigned layer)
{
    return topology_is_head(shape_of(run->c), layer);
}

static void add_node(Fiber *self, Run *run, unsigned i)
{
    const Topology *t = shape_of(run->c);
    bool is_raw = i == 0 && run->c->tree->is_raw;
    GString *s = g_string_new(NULL);
    g_string_printf(s,
                    "{'driver':'%s','node-name':'n%u','read-only':%s,"
                    "'file':{'driver':'file','filename':'/n%u'}",
                    is_raw ? "raw" : "qcow2", i, is_head(run, i) ? "false" : "true", i);
    if (!is_raw && t->below[i] == NONE)
        g_string_append(s, ",'backing':null");
    else if (!is_raw)
        g_string_append_printf(s, ",'backing':'n%u'", t->below[i]);
    g_string_append_c(s, '}');
    g_autofree char *arguments = g_string_free(s, false);
    g_autofree char *problem = sim_daemon_run(self, run->daemon, "blockdev-add", arguments);
    if (problem)
        g_error("%s: %s", arguments, problem);
}

static Node *node_of(const Run *run, unsigned layer)
{
    char name[8];
    g_snprintf(name, sizeof name, "n%u", layer);
    return sim_daemon_node(run->daemon, name);
}

static void begin_daemon(Fiber *self, Run *run)
{
    const Topology *t = shape_of(run->c);
    memcpy(run->pictures, run->c->tree->pictures, sizeof run->pictures);
    run->daemon = sim_daemon_new(self);
    for (unsigned i = 0; i < t->n; i++)
        add_node(self, run, i);
    for (unsigned i = 0; i < t->n; i++)
        if (is_head(run, i))
            port_init(&run->ports[i], node_of(run, i), "a guest");
}

static void end_daemon(Fiber *self, Run *run)
{
    for (unsigned i = 0; i < shape_of(run->c)->n; i++)
        if (run->ports[i].node)
            port_done(self, &run->ports[i]);
    sim_daemon_close(self, run->daemon);
}

// -- guests ---------------------------------------------------------------------------------------

static void write_cell(Fiber *self, Run *run, unsigned head, unsigned cell)
{
    Picture *p = &run->pictures[head];
    uint8_t buf[TOPOLOGY_CELL];
    Picture next = *p;
    next.cells[cell] = GUEST_TAG + head;
    picture_fill_cell(&next, cell, buf);
    Node *node = port_enter(self, &run->ports[head], REQUEST_WRITE);
    NodeIoFlags flags = sim_random(run->sim, 2) ? NODE_IO_FUA : 0;
    int r =
        node_write(self, node, guest_off((uint64_t)cell * TOPOLOGY_CELL), buf, sizeof buf, flags);
    port_leave(&run->ports[head], REQUEST_WRITE);
    *p = next;
    if (r < 0)
        fail(run, "a guest of n%u cannot write: %s", head, g_strerror(-r));
}

// Writes some cells while the job is at work, and makes them durable when it has ended.
static void guest(Fiber *self, void *arg)
{
    Run *run = arg;
    unsigned head = run->next_guest;
    do
        run->next_guest++;
    while (run->next_guest < MAX && !run->ports[run->next_guest].node);
    for (unsigned i = 0; i < N_GUEST_WRITES; i++) {
        write_cell(self, run, head, sim_random(run->sim, run->pictures[head].n_cells));
        fiber_sleep(self, sim_random(run->sim, 1000000));
    }
    while (!run->is_over)
        fiber_sleep(self, 100000);
    Node *node = port_enter(self, &run->ports[head], REQUEST_FLUSH);
    int r = node_flush(self, node);
    port_leave(&run->ports[head], REQUEST_FLUSH);
    if (r < 0)
        fail(run, "a guest of n%u cannot flush: %s", head, g_strerror(-r));
    fiber_wait_group_done(&run->guests);
}

static void start_guests(Fiber *self, Run *run)
{
    run->next_guest = 0;
    while (!run->ports[run->next_guest].node)
        run->next_guest++;
    for (unsigned i = 0; i < shape_of(run->c)->n; i++)
        if (run->ports[i].node) {
            fiber_wait_group_add(&run->guests, 1);
            g_assert(fiber_spawn(fiber_loop(self), "guest", guest, run, NULL) == 0);
        }
}

// -- what is looked at ----------------------------------------------------------------------------

static void check_picture(Fiber *self, Run *run, unsigned picture, unsigned layer, Node *node)
{
    const Picture *p = &run->pictures[picture];
    g_autofree char *problem = picture_check(self, p, 0, node);
    if (problem)
        fail(run, "%s: n%u, which is to show n%u, %s", run->where, layer, picture, problem);
}

// Which layer's picture this one is to show; NONE: it does not matter.
static unsigned picture_of(const Run *run, unsigned layer)
{
    return run->outcome->is_lost[layer] ? run->outcome->becomes[layer] : layer;
}

static void check_graph(Fiber *self, Run *run)
{
    const Topology *t = shape_of(run->c);
    run->where = "in the graph";
    for (unsigned i = 0; i < t->n; i++) {
        unsigned below = run->outcome->below[i], picture = picture_of(run, i);
        if (chain_backing(node_of(run, i)) != (below == NONE ? NULL : node_of(run, below)))
            fail(run, "n%u does not lie over %u", i, below);
        if (picture != NONE)
            check_picture(self, run, picture, i, node_of(run, i));
        if (run->ports[i].node && run->ports[i].node != node_of(run, run->outcome->head[i]))
            fail(run, "guests of n%u do not use n%u", i, run->outcome->head[i]);
        if (run->ports[i].node)
            check_picture(self, run, i, i, run->ports[i].node);
        bool is_written = false;
        for (unsigned k = 0; k < t->n; k++)
            is_written |= is_head(run, k) && (k == i || run->outcome->head[k] == i);
        if (node_of(run, i)->read_only == is_written)
            fail(run, "n%u is %s", i, is_written ? "read-only" : "writable");
    }
}

static void check_image(Fiber *self, Run *run, unsigned layer, bool may_leak)
{
    char path[8];
    File *file;
    Qcow2CheckResult result = {0};
    g_snprintf(path, sizeof path, "/n%u", layer);
    g_assert(file_open(self, path, 0, &file, NULL) == 0);
    int r = qcow2_check(self, file, 0, &result, NULL);
    if (r < 0 || result.n_corruptions || result.n_check_errors || (result.n_leaks && !may_leak))
        fail(run, "%s: n%u: %s", run->where, layer,
             result.messages && result.messages->len ? (char *)result.messages->pdata[0]
                                                     : "cannot be checked");
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void check_header(Run *run, unsigned layer, Node *node)
{
    unsigned below = run->outcome->below[layer];
    const char *name = qcow2_image_backing_name(qcow2_node_image(node));
    g_autofree char *wanted = g_strdup_printf(
        "%sn%u", run->c->gives_name && run->outcome->named == layer ? "/" : "", below);
    if (below != NONE && (!name || !g_str_has_suffix(name, wanted)))
        fail(run, "%s: the header of n%u names %s, not %s", run->where, layer, name, wanted);
    if (below == NONE && name)
        fail(run, "%s: the header of n%u names %s", run->where, layer, name);
}

static void check_files(Fiber *self, Run *run, bool may_leak)
{
    const Tree *tree = run->c->tree;
    MapMemory *memory = map_memory_new(8 << 20);
    for (unsigned i = 0; i < tree->shape.n; i++) {
        unsigned picture = picture_of(run, i);
        bool is_raw = i == 0 && tree->is_raw;
        g_autoptr(GError) error = NULL;
        Node *node = tree_open_layer(self, tree, i, memory, &error);
        if (!node) {
            fail(run, "%s: n%u: %s", run->where, i, error->message);
            continue;
        }
        if (picture != NONE)
            check_picture(self, run, picture, i, node);
        if (!is_raw)
            check_header(run, i, node);
        node_unref_close(self, node);
        if (!is_raw)
            check_image(self, run, i, may_leak);
    }
    map_memory_free(memory);
}

static void look_at_end(Fiber *self, void *arg)
{
    check_files(self, arg, true);
}

// While the job is at work: headers name the old layers, or what lies there afterwards. What guests
// have not flushed may be there or not.
static void look_meanwhile(Fiber *self, void *arg)
{
    Run *run = arg;
    const Tree *tree = run->c->tree;
    MapMemory *memory = map_memory_new(8 << 20);
    for (unsigned i = 0; i < tree->shape.n; i++) {
        bool is_point = !run->outcome->is_lost[i] || is_head(run, i);
        g_autoptr(GError) error = NULL;
        Node *node = is_point ? tree_open_layer(self, tree, i, memory, &error) : NULL;
        g_autofree char *problem = NULL;
        if (node)
            problem =
                picture_check(self, &tree->pictures[i], is_head(run, i) ? GUEST_TAG + i : 0, node);
        else if (is_point)
            problem = g_strdup(error->message);
        if (problem)
            fail(run, "%s: n%u %s", run->where, i, problem);
        node_unref_close(self, node);
        if (i > 0 || !tree->is_raw)
            check_image(self, run, i, true);
    }
    map_memory_free(memory);
}

static void cut_power(Run *run, FiberFn *look, const char *where)
{
    Sim *sim = sim_clone_after_power_cut(run->sim, ++run->n_cuts);
    run->where = where;
    sim_run(sim, look, run);
    sim_free(sim);
}

static int before_op(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len)
{
    Run *run = (Run *)hook;
    run->n_ops += op != SIM_OP_READ;
    for (unsigned i = 0; i < N_CUTS && op != SIM_OP_READ && !run->problem; i++)
        if (run->n_ops == run->cuts[i])
            cut_power(run, look_meanwhile, "after a power cut while the job was at work");
    return 0;
}

// The job's first operations, and anywhere.
static void begin_cuts(Run *run)
{
    enum { FEW = 20, MANY = 200 };
    for (unsigned i = 0; i < N_CUTS; i++)
        run->cuts[i] = 1 + sim_random(run->sim, i % 2 ? FEW : MANY);
    run->hook.fn = before_op;
    sim_set_hook(run->sim, &run->hook);
}

// -- cases ----------------------------------------------------------------------------------------

static void check_refusal(Run *run, const char *problem)
{
    const Outcome *outcome = run->outcome;
    bool names_one = !outcome->in_the_way[0];
    if (!problem) {
        fail(run, "it is not refused");
        return;
    }
    for (const char *c = outcome->in_the_way; *c; c++) {
        char name[] = {'\'', 'n', *c, '\'', 0};
        names_one |= strstr(problem, name) != NULL;
    }
    if (!names_one || !strstr(problem, outcome->refusal))
        fail(run, "the reason is not '%s' or '%s', but: %s", outcome->refusal, outcome->in_the_way,
             problem);
}

static char *start_job(Fiber *self, const Run *run)
{
    g_autofree char *arguments = run->c->kind->arguments(run->c);
    return sim_daemon_run(self, run->daemon, run->c->kind->name, arguments);
}

static void run_job(Fiber *self, void *arg)
{
    Run *run = arg;
    begin_daemon(self, run);
    start_guests(self, run);
    fiber_sleep(self, sim_random(run->sim, 1000000));
    begin_cuts(run);
    char *problem = start_job(self, run);
    if (!problem)
        problem = sim_daemon_end_job(self, run->daemon, "j");
    run->is_over = true;
    sim_set_hook(run->sim, NULL);
    if (problem)
        fail(run, "it fails: %s", problem);
    g_free(problem);
    fiber_wait_group_wait(self, &run->guests);
    if (!run->problem)
        check_graph(self, run);
    if (!run->problem)
        cut_power(run, look_at_end, "after a power cut");
    end_daemon(self, run);
    run->where = "opened again";
    if (!run->problem)
        check_files(self, run, false);
}

static void report(const JobCase *c, char *problem)
{
    g_autofree char *arguments = c->kind->arguments(c);
    printf("# tree");
    for (unsigned i = 0; i < c->tree->shape.n; i++)
        printf(" %c", c->tree->shape.below[i] == NONE ? '-' : '0' + (int)c->tree->shape.below[i]);
    printf(": %s %s\n#     %s\n", c->kind->name, arguments, problem);
    g_free(problem);
}

// One that is to be done, in a copy of the tree. True when all was well.
static bool run_case(const JobCase *c, const Outcome *outcome, Counts *counts)
{
    Run run = {.c = c, .outcome = outcome, .sim = sim_clone_after_power_cut(c->tree->sim, 1)};
    sim_run(run.sim, run_job, &run);
    sim_daemon_free(run.daemon);
    sim_free(run.sim);
    counts->n_cuts += run.n_cuts;
    if (run.problem)
        report(c, run.problem);
    return !run.problem;
}

// -- refusals -------------------------------------------------------------------------------------

// All that are to be refused, one after the other, of the same daemon; nothing is another then.
typedef struct Refusals {
    Run run; // of one of them at a time
    const Tree *tree;
    GArray *cases; // JobCase
} Refusals;

static void refuse_all(Fiber *self, void *arg)
{
    Refusals *refusals = arg;
    Run *run = &refusals->run;
    Outcome outcome;
    JobCase nothing = {.tree = refusals->tree, .kind = &stream};
    begin_outcome(&nothing, &outcome);
    run->c = &nothing;
    begin_daemon(self, run);
    for (guint i = 0; i < refusals->cases->len && !run->problem; i++) {
        const JobCase *c = &g_array_index(refusals->cases, JobCase, i);
        Outcome refused;
        c->kind->foresee(c, &refused);
        run->c = c;
        run->outcome = &refused;
        g_autofree char *problem = start_job(self, run);
        check_refusal(run, problem);
        if (run->problem)
            report(c, g_strdup(run->problem));
        if (!problem)
            g_free(sim_daemon_end_job(self, run->daemon, "j"));
    }
    run->c = &nothing;
    run->outcome = &outcome;
    if (!run->problem)
        check_graph(self, run);
    end_daemon(self, run);
    run->where = "after refusals";
    if (!run->problem)
        check_files(self, run, false);
}

static bool run_refusals(const Tree *tree, GArray *cases)
{
    Refusals refusals = {.tree = tree, .cases = cases};
    refusals.run.sim = sim_clone_after_power_cut(tree->sim, 1);
    sim_run(refusals.run.sim, refuse_all, &refusals);
    sim_daemon_free(refusals.run.daemon);
    sim_free(refusals.run.sim);
    bool is_well = !refusals.run.problem;
    if (!is_well)
        printf("# %s\n", refusals.run.problem);
    g_free(refusals.run.problem);
    return is_well;
}

// -- all of them ----------------------------------------------------------------------------------

typedef struct Trying {
    const Tree *tree;
    Counts *counts;
    GArray *refused; // JobCase
    bool is_well;
} Trying;

static void try(Trying *trying, JobCase c)
{
    Outcome outcome;
    c.tree = trying->tree;
    c.kind->foresee(&c, &outcome);
    if (outcome.refusal) {
        trying->counts->n_refused++;
        g_array_append_val(trying->refused, c);
        return;
    }
    trying->counts->n_done++;
    trying->counts->n_kept += c.keeps_points;
    trying->is_well &= run_case(&c, &outcome, trying->counts);
}

static void try_streams(Trying *trying)
{
    unsigned n = trying->tree->shape.n;
    for (unsigned device = 0; device < n; device++)
        for (unsigned base = 0; base <= n; base++)
            for (unsigned how = 0; how < 4; how++) {
                JobCase c = {.kind = &stream, .device = device, .base = base < n ? base : NONE};
                c.is_bottom = how & 1;
                c.gives_name = how & 2;
                if (base < n || !c.is_bottom)
                    try(trying, c);
            }
}

static void try_commits(Trying *trying)
{
    unsigned n = trying->tree->shape.n;
    for (unsigned device = 0; device < n; device++)
        for (unsigned top = 0; top < n; top++)
            for (unsigned base = 0; base <= n; base++)
                for (unsigned how = 0; how < 8; how++) {
                    JobCase c = {.kind = &commit, .device = device, .top = top};
                    c.base = base < n ? base : NONE;
                    c.keeps_points = how & 1;
                    c.gives_name = how & 2;
                    c.keeps_top = how & 4;
                    try(trying, c);
                }
}

static bool try_tree(const Topology *shape, uint64_t seed, Counts *counts)
{
    Tree *tree = tree_new(shape, seed);
    Trying trying = {.tree = tree, .counts = counts, .is_well = true};
    trying.refused = g_array_new(false, false, sizeof(JobCase));
    counts->n_trees++;
    try_streams(&trying);
    try_commits(&trying);
    trying.is_well &= run_refusals(tree, trying.refused);
    g_array_unref(trying.refused);
    tree_free(tree);
    return trying.is_well;
}

static bool try_all(unsigned n, uint64_t seed, unsigned n_worlds)
{
    Counts counts = {0};
    bool is_well = true;
    g_autoptr(GArray) shapes = topologies_of(n);
    for (guint i = 0; i < shapes->len; i++)
        for (unsigned k = 0; k < n_worlds; k++)
            is_well &= try_tree(&g_array_index(shapes, Topology, i), seed++, &counts);
    printf("%sok %u - jobs on every tree of %u layers\n", is_well ? "" : "not ", n, n);
    printf("# %" PRIu64 " trees of %u shapes: %" PRIu64 " jobs done, %" PRIu64
           " of them with points kept, %" PRIu64 " power cuts; %" PRIu64 " refused\n",
           counts.n_trees, shapes->len, counts.n_done, counts.n_kept, counts.n_cuts,
           counts.n_refused);
    fflush(stdout);
    return is_well;
}

int main(int argc, char **argv)
{
    gint64 seed = 1;
    int n_worlds = 1, n_layers = TOPOLOGY_MAX_LAYERS;
    GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT64, &seed, "of sizes, formats and content", "N"},
        {"worlds", 0, 0, G_OPTION_ARG_INT, &n_worlds, "so many of each shape", "N"},
        {"layers", 0, 0, G_OPTION_ARG_INT, &n_layers, "at most", "N"},
        {NULL},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        fprintf(stderr, "%s\n", error->message);
        return 2;
    }
    bool is_well = true;
    n_layers = CLAMP(n_layers, 1, TOPOLOGY_MAX_LAYERS);
    for (int n = 1; n <= n_layers; n++)
        is_well &= try_all((unsigned)n, (uint64_t)seed * 1000, (unsigned)n_worlds);
    printf("1..%d\n", n_layers);
    return is_well ? 0 : 1;
}
