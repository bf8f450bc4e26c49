// SPDX-License-Identifier: LGPL-2.1-or-later
// Internal snapshots are made and deleted under load, with power cuts and errors at every operation
// (docs/ordering.md §13, and §2, §4 for what they share with the head). After a cut an image has a
// snapshot whole or not at all, and of those made together all or none: what was reported made is
// there, what was reported deleted is not; each shows what the disk was at its moment, the head
// what the model says; and after the next open nothing is wrong.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"
#include "crash-qcow2-image.h"
#include "crash-workload.h"

enum {
    MAX_SNAPSHOTS = 16, // N_CHANGES of two, and what is there before
    N_CHANGES = 6,
    SECOND_LIFE_EACH = 8, // of so many points one goes on to work with the image
    MAX_PAUSE_NS = 4000000,
};

typedef struct Expected {
    char name[32];
    uint8_t *content;
    enum { BEGUN, MADE, LEAVING, GONE } state;
    unsigned n_with; // made with it, which come next
} Expected;

typedef struct Run {
    SimHook hook;
    const CrashCase *c;
    uint64_t seed;
    Sim *sim;
    ShadowModel *model;
    CrashWorkload workload;
    Node *head;
    Expected expected[MAX_SNAPSHOTS];
    unsigned n_expected;
    Expected later; // of a second life
    bool is_ready;  // all that the image begins with is known
    uint64_t n_points, fault_at;
    int fault;
    bool is_hit, has_failed;
    GArray *ops; // of SimOp, when wanted
    char fault_text[80];
} Run;

static G_GNUC_PRINTF(3, 4) void fail(Run *run, uint64_t op, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    if (!run->has_failed)
        printf("# FAILED %s: seed %" PRIu64 ", operation %" PRIu64 "%s: %s\n", run->c->name,
               run->seed, op, run->fault_text, text);
    fflush(stdout);
    run->has_failed = true;
}

// --- what is expected ----------------------------------------------------------------------------

static Expected *find(Run *run, const char *name)
{
    for (unsigned i = 0; i < run->n_expected; i++)
        if (strcmp(run->expected[i].name, name) == 0)
            return &run->expected[i];
    return run->later.content && strcmp(run->later.name, name) == 0 ? &run->later : NULL;
}

static int read_all(Fiber *self, Node *node, uint8_t **ret_content)
{
    uint8_t *content = g_malloc(node->size_bytes);
    int r = node_read(self, node, guest_off(0), content, node->size_bytes);
    if (r < 0)
        g_free(content);
    else
        *ret_content = content;
    return r;
}

// The snapshots of qemu-img's that the image begins with.
static void note_first_snapshots(Fiber *self, Run *run)
{
    g_autoptr(GArray) all = qcow2_snapshots(run->head);
    for (guint i = 0; i < all->len; i++) {
        Expected *e = &run->expected[run->n_expected];
        Node *view;
        g_strlcpy(e->name, g_array_index(all, Qcow2SnapshotInfo, i).name, sizeof(e->name));
        if (qcow2_snapshot_view_new(self, run->head, e->name, &view, NULL) < 0)
            continue;
        if (read_all(self, view, &e->content) == 0) {
            e->state = MADE;
            run->n_expected++;
        }
        node_unref_close(self, view);
    }
}

// One snapshot, or two of one moment. What is prepared then, or nothing.
static Qcow2NewSnapshot *prepare(Fiber *self, Run *run, Expected *e)
{
    Qcow2NewSnapshot *s;
    g_autoptr(GError) error = NULL;
    for (unsigned i = 0; i <= e->n_with; i++) {
        g_snprintf(e[i].name, sizeof(e->name), "made-%u", run->n_expected + i);
        int r = i ? qcow2_snapshot_prepare_another(self, s, e[i].name, &error)
                  : qcow2_snapshot_prepare(self, run->head, e->name, &s, &error);
        if (r == 0)
            continue;
        if (!run->is_hit && !run->c->space_bytes)
            fail(run, sim_n_ops(run->sim), "a snapshot fails: %s", error->message);
        if (i)
            qcow2_snapshot_abort(self, s);
        return NULL;
    }
    return s;
}

static void set_state(Expected *e, int state)
{
    for (unsigned i = 0; i <= e->n_with; i++)
        e[i].state = state;
}

static void make(Fiber *self, Run *run)
{
    Expected *e = &run->expected[run->n_expected];
    g_autoptr(GError) error = NULL;
    e->n_with = sim_random(run->sim, 3) == 0;
    Qcow2NewSnapshot *s = prepare(self, run, e);
    if (!s)
        return;
    node_drain_begin(self, run->head, REQUESTS_THAT_WRITE);
    qcow2_snapshot_take(s);
    int r = read_all(self, run->head, &e->content);
    node_drain_end(run->head, REQUESTS_THAT_WRITE);
    if (r < 0) {
        qcow2_snapshot_abort(self, s);
        return;
    }
    set_state(e, BEGUN);
    for (unsigned i = 1; i <= e->n_with; i++)
        e[i].content = g_memdup2(e->content, run->c->size_bytes);
    run->n_expected += 1 + e->n_with;
    // Others go on for a while, before anything is counted.
    if (sim_random(run->sim, 2))
        fiber_sleep(self, sim_random(run->sim, MAX_PAUSE_NS));
    r = qcow2_snapshot_finish(self, s, NULL, &error);
    set_state(e, r < 0 ? GONE : MADE);
    if (r < 0 && !run->is_hit && !run->c->space_bytes)
        fail(run, sim_n_ops(run->sim), "a snapshot fails: %s", error->message);
}

static void delete_one(Fiber *self, Run *run)
{
    Expected *e = NULL;
    uint64_t start = sim_random(run->sim, run->n_expected);
    for (unsigned i = 0; i < run->n_expected && !e; i++)
        if (run->expected[(start + i) % run->n_expected].state == MADE)
            e = &run->expected[(start + i) % run->n_expected];
    g_autoptr(GError) error = NULL;
    if (!e)
        return;
    e->state = LEAVING;
    int r = qcow2_snapshot_delete(self, run->head, NULL, e->name, NULL, &error);
    e->state = r < 0 ? MADE : GONE;
    if (r < 0 && !run->is_hit && !run->c->space_bytes)
        fail(run, sim_n_ops(run->sim), "a deletion fails: %s", error->message);
}

// --- the image after a cut, or at the end --------------------------------------------------------

static void check_snapshot(Fiber *self, Run *run, Run *of, Node *head, const char *name)
{
    const Expected *e = find(of, name);
    Node *view;
    uint8_t *found = NULL;
    g_autoptr(GError) error = NULL;
    if (!e || e->state == GONE)
        return fail(of, sim_n_ops(of->sim), "there is a snapshot '%s'", name);
    if (qcow2_snapshot_view_new(self, head, name, &view, &error) < 0)
        return fail(of, sim_n_ops(of->sim), "%s", error->message);
    int r = read_all(self, view, &found);
    node_unref_close(self, view);
    if (r < 0)
        fail(of, sim_n_ops(of->sim), "snapshot '%s' cannot be read: %s", name, g_strerror(-r));
    else if (memcmp(found, e->content, of->c->size_bytes) != 0)
        fail(of, sim_n_ops(of->sim), "snapshot '%s' shows something else", name);
    g_free(found);
}

static void check_snapshots(Fiber *self, Run *of, Node *head)
{
    g_autoptr(GArray) all = qcow2_snapshots(head);
    for (guint i = 0; i < all->len; i++)
        check_snapshot(self, of, of, head, g_array_index(all, Qcow2SnapshotInfo, i).name);
    for (unsigned i = 0; i < of->n_expected; i++) {
        const Expected *e = &of->expected[i];
        bool is_there = qcow2_snapshot_find(head, NULL, e->name, NULL);
        if (e->state == MADE && !is_there)
            fail(of, sim_n_ops(of->sim), "snapshot '%s' is lost", e->name);
        if (e->state == BEGUN && e->n_with &&
            is_there != qcow2_snapshot_find(head, NULL, e[1].name, NULL))
            fail(of, sim_n_ops(of->sim), "one of '%s' and '%s' is there", e->name, e[1].name);
    }
}

typedef struct Point {
    Run *run;
    Sim *sim;
    bool has_second_life, wants_no_leaks;
} Point;

static char *first_leak(Fiber *self)
{
    File *file;
    Qcow2CheckResult result = {0};
    char *leak = NULL;
    if (file_open(self, "/top", 0, &file, NULL) < 0)
        return NULL;
    if (qcow2_check(self, file, 0, &result, NULL) == 0 && result.n_leaks)
        leak = g_strdup_printf("%" PRIu64 " leaks; %s", result.n_leaks,
                               (char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
    return leak;
}

// Snapshots go on to work: one more, and one less.
static void second_life(Fiber *self, Run *of, Node *head)
{
    g_autoptr(GError) error = NULL;
    if (qcow2_snapshot_create(self, head, "later", NULL, &error) < 0) {
        if (!of->c->space_bytes)
            fail(of, sim_n_ops(of->sim), "after the cut: %s", error->message);
        return;
    }
    check_snapshots(self, of, head);
    // A new list takes space, too.
    int r = qcow2_snapshot_delete(self, head, NULL, "later", NULL, &error);
    if (r < 0 && !(r == -ENOSPC && of->c->space_bytes))
        return fail(of, sim_n_ops(of->sim), "after the cut: %s", error->message);
    if (r == 0)
        g_clear_pointer(&of->later.content, g_free);
}

static void repair(Fiber *self)
{
    File *file;
    Qcow2CheckResult result = {0};
    if (file_open(self, "/top", FILE_WRITABLE, &file, NULL) < 0)
        return;
    qcow2_check(self, file, QCOW2_CHECK_FIX_LEAKS | QCOW2_CHECK_FIX_ERRORS, &result, NULL);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void check_image(Fiber *self, Run *of, const char *when)
{
    g_autofree char *problem = crash_qcow2_check(self, of->c);
    if (problem)
        fail(of, sim_n_ops(of->sim), "%s: %s", when, problem);
}

static void point_main(Fiber *self, void *arg)
{
    Point *p = arg;
    Run *run = p->run;
    CrashImage image = {0};
    char problem[256] = "";
    g_autoptr(GError) error = NULL;
    // Version 2 has no dirty bit: what is found then is flags that are missing, and leaks.
    if (run->c->export_options)
        repair(self);
    check_image(self, run, "before the open");
    if (crash_qcow2_open(self, run->c, &image, &error) < 0)
        return fail(run, sim_n_ops(run->sim), "%s", error->message);
    check_snapshots(self, run, image.node);
    if (crash_compare(self, image.node, run->model, NULL, problem) < 0)
        fail(run, sim_n_ops(run->sim), "the head: %s", problem);
    if (p->has_second_life && !run->has_failed) {
        run->later = (Expected){.name = "later", .state = MADE};
        if (read_all(self, image.node, &run->later.content) == 0)
            second_life(self, run, image.node);
        check_snapshots(self, run, image.node);
        g_clear_pointer(&run->later.content, g_free);
    }
    crash_qcow2_close(self, run->c, &image);
    check_image(self, run, "after the close");
    g_autofree char *leak = p->wants_no_leaks ? first_leak(self) : NULL;
    if (leak)
        fail(run, sim_n_ops(run->sim), "%s", leak);
}

static int cut_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Run *run = (Run *)hook;
    if (op == SIM_OP_READ || run->has_failed || !run->is_ready)
        return 0;
    Point point = {.run = run, .has_second_life = run->n_points % SECOND_LIFE_EACH == 0};
    point.sim = sim_clone_after_power_cut(run->sim, run->seed * 1000003 + n);
    run->n_points++;
    sim_run(point.sim, point_main, &point);
    sim_free(point.sim);
    return 0;
}

static int fault_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Run *run = (Run *)hook;
    if (run->ops)
        g_array_append_val(run->ops, op);
    if (n != run->fault_at || !run->is_ready)
        return 0;
    run->is_hit = true;
    g_snprintf(run->fault_text, sizeof(run->fault_text), " (%d+%" PRIu64 "+%" PRIu64 " fails: %s)",
               op, off, len, g_strerror(-run->fault));
    run->workload.has_flush_fault = op == SIM_OP_FLUSH;
    run->workload.fault_ns = run->head ? loop_now_ns(run->head->loop) : 1;
    return run->fault;
}

// --- a run ---------------------------------------------------------------------------------------

typedef struct Load {
    CrashWorkload *workload;
    FiberWaitGroup group;
} Load;

static void load_fiber(Fiber *self, void *arg)
{
    Load *load = arg;
    crash_workload_run(self, load->workload);
    fiber_wait_group_done(&load->group);
}

static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    CrashImage image = {0};
    Port port;
    Load load = {.workload = &run->workload};
    g_autoptr(GError) error = NULL;
    if (crash_qcow2_open(self, run->c, &image, &error) < 0) {
        if (!run->is_hit)
            fail(run, 0, "the image does not open: %s", error->message);
        return;
    }
    run->head = image.node;
    note_first_snapshots(self, run);
    run->is_ready = true;
    port_init(&port, image.node, "test");
    run->workload = (CrashWorkload){.c = run->c,
                                    .sim = run->sim,
                                    .model = run->model,
                                    .node = image.node,
                                    .port = &port,
                                    .n_requests = run->c->n_requests,
                                    .fault_ns = run->workload.fault_ns,
                                    .has_flush_fault = run->workload.has_flush_fault};
    fiber_wait_group_add(&load.group, 1);
    fiber_spawn(fiber_loop(self), "load", load_fiber, &load, NULL);
    for (unsigned i = 0; i < N_CHANGES && !run->has_failed; i++)
        if (i % 3 == 2 || (i && sim_random(run->sim, 3) == 0))
            delete_one(self, run);
        else
            make(self, run);
    fiber_wait_group_wait(self, &load.group);
    if (run->workload.problem[0])
        fail(run, sim_n_ops(run->sim), "%s", run->workload.problem);
    port_done(self, &port);
    if (run->hook.fn == cut_hook)
        check_snapshots(self, run, image.node);
    crash_qcow2_close(self, run->c, &image);
    run->head = NULL;
}

static void run_once(Run *run)
{
    run->sim = sim_new(&(SimConfig){.seed = run->seed,
                                    .short_transfers = run->seed % 2,
                                    .inline_completion = run->seed % 3 == 0,
                                    .space_bytes = run->c->space_bytes,
                                    .slow_percent = run->hook.fn == cut_hook ? 4 : 0});
    run->model = shadow_model_new(run->c->size_bytes, 512);
    crash_qcow2_prepare(run->c, run->sim, run->model);
    sim_set_hook(run->sim, &run->hook);
    sim_run(run->sim, run_main, run);
    sim_set_hook(run->sim, NULL);
    Point end = {.run = run, .wants_no_leaks = !run->is_hit && !run->has_failed};
    if (!run->has_failed)
        sim_run(run->sim, point_main, &end);
    for (unsigned i = 0; i < run->n_expected; i++)
        g_free(run->expected[i].content);
    sim_free(run->sim);
    shadow_model_free(run->model);
}

static bool run_cuts(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points)
{
    bool is_good = true;
    uint64_t n_points = 0;
    for (uint64_t seed = options->seed; is_good && n_points < options->n_points; seed++) {
        Run run = {.hook.fn = cut_hook, .c = c, .seed = seed};
        run_once(&run);
        n_points += run.n_points;
        is_good = !run.has_failed;
    }
    *ret_n_points = n_points;
    return is_good;
}

static bool can_fail(SimOp op, int fault)
{
    return fault == -EIO || op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE;
}

static bool run_faults(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points)
{
    static const int faults[] = {-EIO, -ENOSPC};
    Run all = {.hook.fn = fault_hook, .c = c, .seed = options->seed};
    g_autoptr(GArray) ops = all.ops = g_array_new(false, false, sizeof(SimOp));
    run_once(&all);
    bool is_good = !all.has_failed;
    *ret_n_points = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(faults); i++)
        for (uint64_t n = 1; n <= ops->len && is_good; n++) {
            if (!can_fail(g_array_index(ops, SimOp, n - 1), faults[i]))
                continue;
            Run run = {.hook.fn = fault_hook,
                       .c = c,
                       .seed = options->seed,
                       .fault_at = n,
                       .fault = faults[i]};
            run_once(&run);
            is_good = !run.has_failed;
            ++*ret_n_points;
        }
    return is_good;
}

#define CONVERT(options) "qemu-img convert -f raw -O qcow2 -o " options " content top"
#define SNAPSHOT "qemu-img snapshot -c one top"
#define LOAD                                                                                       \
    .n_fibers = 4, .n_requests = 16, .n_write = 55, .n_zero = 8, .n_discard = 12, .n_flush = 10,   \
    .n_read = 15, .fua_percent = 10

static const CrashCase cases[] = {
    {.name = "cluster 4K",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     LOAD,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k"), .is_dirty = true}},
    {.name = "cluster 512, refcount 8, many tables",
     .size_bytes = 256 * 1024,
     .discard_bytes = 512,
     .max_request_bytes = 16 * 1024,
     LOAD,
     .data = &(CrashQcow2){CONVERT("cluster_size=512,refcount_bits=8") "; " SNAPSHOT,
                           .is_dirty = true, .map_memory_bytes = 64 * 1024}},
    {.name = "extended L2, after a snapshot",
     .size_bytes = 512 * 1024,
     .discard_bytes = 16 * 1024,
     .max_request_bytes = 40 * 1024,
     LOAD,
     .data =
         &(CrashQcow2){CONVERT("cluster_size=16k,extended_l2=on") "; " SNAPSHOT, .is_dirty = true}},
    {.name = "compressed clusters",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .max_request_bytes = 32 * 1024,
     LOAD,
     .data = &(CrashQcow2){"qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k content top",
                           .is_dirty = true}},
    {.name = "refcounts of 2 bits, which overflow",
     .size_bytes = 128 * 1024,
     .discard_bytes = 512,
     .space_bytes = UINT64_C(1) << 30, // so that snapshots may fail
     .max_request_bytes = 8 * 1024,
     LOAD,
     .data = &(CrashQcow2){CONVERT("cluster_size=512,refcount_bits=2") "; " SNAPSHOT,
                           .is_dirty = true}},
    {.name = "a host that is full",
     .size_bytes = 512 * 1024,
     .discard_bytes = 4096,
     .space_bytes = 420 * 1024,
     .max_request_bytes = 16 * 1024,
     LOAD,
     .data = &(CrashQcow2){CONVERT("cluster_size=4k"), .is_dirty = true}},
    {.name = "version 2, without a dirty bit",
     .size_bytes = 256 * 1024,
     .max_request_bytes = 16 * 1024,
     LOAD,
     .export_options = "-r all",
     .data = &(CrashQcow2){CONVERT("cluster_size=4k,compat=0.10")}},
};

int main(int argc, char **argv)
{
    CrashOptions options = {.seed = 1, .n_points = 400};
    crash_options_parse(&options, argc, argv);
    unsigned number = 0;
    bool is_good = true;
    printf("# seed %" PRIu64 "\n", options.seed);
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        const CrashCase *c = &cases[i];
        uint64_t n_points;
        if (options.only && strcmp(options.only, c->name) != 0)
            continue;
        bool is_fine = run_cuts(c, &options, &n_points);
        printf("%sok %u - %s: power cuts (§13): %" PRIu64 " points\n", is_fine ? "" : "not ",
               ++number, c->name, n_points);
        is_good &= is_fine;
        is_fine = run_faults(c, &options, &n_points);
        printf("%sok %u - %s: faults: %" PRIu64 " points\n", is_fine ? "" : "not ", ++number,
               c->name, n_points);
        is_good &= is_fine;
        fflush(stdout);
    }
    printf("1..%u\n", number);
    return is_good ? 0 : 1;
}
