// SPDX-License-Identifier: LGPL-2.1-or-later
// The driver of the crash tests: runs of a case, the hook that looks at each power cut, and faults.
// Everything follows from the seed of a run; a failure prints it.
#include "crash-harness.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash-workload.h"

enum {
    OUTCOMES = 2,         // of a power cut at one operation
    SECOND_LIFE_EACH = 8, // of so many points one goes on to work with the image
    SECOND_LIFE_REQUESTS = 4,
    EXPORT_EACH = 100, // of so many points one is shown to qemu-img
    CUT_EACH = 7,      // of so many operations after a write went bad one is looked at
};

typedef struct Run {
    SimHook hook;
    const CrashCase *c;
    const CrashOptions *options;
    uint64_t seed;
    Sim *sim;
    ShadowModel *model;
    CrashWorkload workload;
    uint64_t n_points;
    bool has_failed;
    // Faults.
    uint64_t fault_at; // 0: none
    int fault;
    bool is_hit;
    char fault_text[80];
    GArray *ops; // of SimOp, when wanted
    // A bad place: writes of the image there fail from the fault on.
    bool is_lasting;
    uint64_t bad_off, bad_end, n_after;
} Run;

static G_GNUC_PRINTF(3, 4) void fail(Run *run, uint64_t op, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    run->has_failed = true;
    printf("# FAILED %s: seed %" PRIu64 ", operation %" PRIu64 "%s: %s\n", run->c->name, run->seed,
           op, run->fault_text, text);
    fflush(stdout);
}

static uint32_t cell_bytes(const CrashCase *c)
{
    return c->cell_bytes ? c->cell_bytes : 512;
}

static int cut_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len);

static void run_begin(Run *run)
{
    const CrashCase *c = run->c;
    run->sim = sim_new(&(SimConfig){.seed = run->seed,
                                    .short_transfers = run->seed % 2,
                                    .inline_completion = run->seed % 3 == 0,
                                    .no_punch = c->has_no_punch,
                                    .can_copy = run->seed % 2 == 0,
                                    .space_bytes = c->space_bytes,
                                    // Late writes (docs/ordering.md §4), unless a fault's end has
                                    // to be known.
                                    .slow_percent = run->hook.fn == cut_hook ? 4 : 0});
    run->model = shadow_model_new(c->size_bytes, cell_bytes(c));
    c->prepare(c, run->sim, run->model);
}

static void run_end(Run *run)
{
    sim_free(run->sim);
    shadow_model_free(run->model);
}

// The workload on a freshly opened image, then a close.
static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    CrashImage image = {0};
    g_autoptr(GError) error = NULL;
    if (run->c->open(self, run->c, &image, &error) < 0) {
        if (!run->is_hit)
            fail(run, 0, "the image does not open: %s", error->message);
        return;
    }
    run->workload = (CrashWorkload){
        .c = run->c,
        .sim = run->sim,
        .model = run->model,
        .node = image.node,
        .port = image.port,
        .n_requests = run->c->n_requests,
        .fault_ns = run->workload.fault_ns,
        .has_flush_fault = run->workload.has_flush_fault,
    };
    crash_workload_run(self, &run->workload);
    run->c->close(self, run->c, &image);
    if (run->workload.problem[0])
        fail(run, sim_n_ops(run->sim), "%s", run->workload.problem);
}

// --- one point -----------------------------------------------------------------------------------

typedef struct Point {
    Run *run;
    Sim *sim;
    uint64_t op, seed;
    bool has_second_life;
} Point;

static void point_fail(Point *point, const char *when, const char *what)
{
    fail(point->run, point->op, "%s (outcome %" PRIu64 "): %s", when, point->seed, what);
}

static bool point_check(Fiber *self, Point *point, const char *when)
{
    const CrashCase *c = point->run->c;
    g_autofree char *problem = c->check ? c->check(self, c) : NULL;
    if (problem)
        point_fail(point, when, problem);
    return !problem;
}

// Opens, compares with `model`, and with `n_requests` works on. Returns what is now the truth
// (owned), or NULL.
static ShadowModel *point_use(Fiber *self, Point *point, const ShadowModel *model,
                              unsigned n_requests, const char *when)
{
    const CrashCase *c = point->run->c;
    CrashImage image = {0};
    g_autoptr(GError) error = NULL;
    char problem[256] = "";
    g_autofree uint32_t *versions = g_new(uint32_t, shadow_model_n_cells(model));
    if (c->open(self, c, &image, &error) < 0) {
        point_fail(point, when, error->message);
        return NULL;
    }
    if (image.port)
        port_enter(self, image.port, REQUEST_READ);
    int r = crash_compare(self, image.node, model, versions, problem);
    if (image.port)
        port_leave(image.port, REQUEST_READ);
    if (r < 0)
        point_fail(point, when, r == -EILSEQ ? problem : g_strerror(-r));
    ShadowModel *found = r < 0 ? NULL : shadow_model_found(model, versions);
    if (found && n_requests > 0) {
        CrashWorkload w = {.c = c,
                           .sim = point->sim,
                           .model = found,
                           .node = image.node,
                           .port = image.port,
                           .n_requests = n_requests};
        crash_workload_run(self, &w);
        if (w.problem[0] || w.n_failed)
            point_fail(point, when, w.problem[0] ? w.problem : "a request failed");
    }
    c->close(self, c, &image);
    return found;
}

static void point_main(Fiber *self, void *arg)
{
    Point *point = arg;
    if (!point_check(self, point, "check after the cut"))
        return;
    unsigned n = point->has_second_life ? SECOND_LIFE_REQUESTS : 0;
    ShadowModel *found = point_use(self, point, point->run->model, n, "after the cut");
    bool is_checked = found && (n || point->run->c->is_checked_again);
    if (is_checked && point_check(self, point, "check after a second life") && n)
        shadow_model_free(point_use(self, point, found, 0, "after a second life"));
    shadow_model_free(found);
}

// qemu-img's opinion; no backing file is looked for.
static void point_ask_qemu(Point *point)
{
    const CrashCase *c = point->run->c;
    g_autofree char *path = g_strdup_printf("/dev/shm/chaind-crash-%d", (int)getpid());
    g_autofree char *command = g_strdup_printf(
        "qemu-img check %s 'json:{\"driver\":\"%s\",\"file\":{\"driver\":\"file\",\"filename\":"
        "\"%s\"},\"backing\":null}' >%s.out 2>&1",
        c->export_options ? c->export_options : "", c->export_format, path, path);
    int status = sim_export_file(point->sim, c->image_path, path);
    if (status == 0)
        status = system(command);
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3)) {
        g_autofree char *out = g_strconcat(path, ".out", NULL);
        unlink(out);
        unlink(path);
        return;
    }
    g_autofree char *what =
        g_strdup_printf("qemu-img check ends with %d, see %s.out", status, path);
    point_fail(point, "qemu-img", what);
}

static void look_at_point(Run *run, uint64_t op, uint64_t outcome)
{
    Point point = {
        .run = run,
        .op = op,
        .seed = (run->seed * 1000003 + op) * OUTCOMES + outcome,
        .has_second_life = run->n_points % SECOND_LIFE_EACH == 0,
    };
    point.sim = sim_clone_after_power_cut(run->sim, point.seed);
    if (run->c->export_format && run->n_points % EXPORT_EACH == 0)
        point_ask_qemu(&point);
    run->n_points++;
    sim_run(point.sim, point_main, &point);
    sim_free(point.sim);
}

static int cut_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Run *run = (Run *)hook;
    for (unsigned i = 0; i < OUTCOMES && op != SIM_OP_READ && !run->has_failed; i++)
        look_at_point(run, n, i);
    return 0;
}

bool crash_run_power_cuts(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points)
{
    gint64 end = g_get_monotonic_time() + (gint64)(options->seconds * G_USEC_PER_SEC);
    uint64_t n_points = 0;
    bool is_good = true;
    for (uint64_t seed = options->seed;
         is_good &&
         (options->seconds > 0 ? g_get_monotonic_time() < end : n_points < options->n_points);
         seed++) {
        Run run = {.hook.fn = cut_hook, .c = c, .options = options, .seed = seed};
        run_begin(&run);
        sim_set_hook(run.sim, &run.hook);
        sim_run(run.sim, run_main, &run);
        if (options->is_verbose)
            printf("# %s: seed %" PRIu64 ": %" PRIu64 " operations, %" PRIu64 " points\n", c->name,
                   seed, sim_n_ops(run.sim), run.n_points);
        run_end(&run);
        n_points += run.n_points;
        is_good = !run.has_failed;
    }
    *ret_n_points = n_points;
    return is_good;
}

// --- faults --------------------------------------------------------------------------------------

static const char *const op_names[] = {
    [SIM_OP_READ] = "read",
    [SIM_OP_WRITE] = "write",
    [SIM_OP_FLUSH] = "flush",
    [SIM_OP_TRUNCATE] = "truncate",
    [SIM_OP_ZERO] = "zero",
    [SIM_OP_DISCARD] = "discard",
    [SIM_OP_RESERVE] = "reserve",
    [SIM_OP_OPEN] = "open",
    [SIM_OP_RENAME] = "rename",
    [SIM_OP_UNLINK] = "unlink",
    [SIM_OP_SYNC_DIR] = "sync of the directory",
};

static bool can_fail(SimOp op, int fault)
{
    return fault == -EIO || op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE ||
           op == SIM_OP_TRUNCATE;
}

static int fault_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Run *run = (Run *)hook;
    if (run->ops)
        g_array_append_val(run->ops, op);
    if (n != run->fault_at)
        return 0;
    run->is_hit = true;
    g_snprintf(run->fault_text, sizeof(run->fault_text),
               " (%s %" PRIu64 "+%" PRIu64 " of %s made to fail with %s)", op_names[op], off, len,
               path, run->fault == -EIO ? "EIO" : "ENOSPC");
    run->workload.has_flush_fault = op == SIM_OP_FLUSH;
    run->workload.fault_ns = run->workload.node ? loop_now_ns(run->workload.node->loop) : 1;
    return run->fault;
}

// §10: what cannot be written takes with it what depends on it. The rest goes on, and is consistent
// whenever the power fails.
static int bad_place_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                          uint64_t len)
{
    Run *run = (Run *)hook;
    bool is_write = op == SIM_OP_WRITE && strcmp(path, run->c->image_path) == 0;
    if (n == run->fault_at) {
        run->bad_off = off;
        run->bad_end = off + len;
        fault_hook(hook, n, op, path, off, len);
    }
    if (run->is_hit && op != SIM_OP_READ && run->n_after++ % CUT_EACH == 0 && !run->has_failed)
        look_at_point(run, n, 0);
    return run->is_hit && is_write && off < run->bad_end && off + len > run->bad_off ? -EIO : 0;
}

// After a run with a fault: the image as the programs left it.
static void reopen_main(Fiber *self, void *arg)
{
    Point *point = arg;
    if (!point_check(self, point, "check after the fault"))
        return;
    shadow_model_free(
        point_use(self, point, point->run->model, SECOND_LIFE_REQUESTS, "after the fault"));
    point_check(self, point, "check after work after the fault");
}

static bool run_with_fault(Run *run)
{
    run->hook.fn = run->is_lasting ? bad_place_hook : fault_hook;
    run_begin(run);
    sim_set_hook(run->sim, &run->hook);
    sim_run(run->sim, run_main, run);
    sim_set_hook(run->sim, NULL);
    Point point = {.run = run, .sim = run->sim, .op = run->fault_at, .seed = run->seed};
    if (run->fault_at && !run->is_hit)
        fail(run, run->fault_at, "the run is not the same each time");
    if (run->workload.n_failed_late && !run->is_lasting && !run->has_failed)
        fail(run, run->fault_at, "%u requests failed long after the one fault (%s)",
             run->workload.n_failed_late, g_strerror(-run->fault));
    if (!run->has_failed)
        sim_run(run->sim, reopen_main, &point);
    run_end(run);
    return !run->has_failed;
}

bool crash_run_faults(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points)
{
    const struct {
        int error;
        bool is_lasting;
    } faults[] = {{-EIO, false}, {-ENOSPC, false}, {-EIO, true}};
    Run all = {.c = c, .options = options, .seed = options->seed};
    g_autoptr(GArray) ops = all.ops = g_array_new(false, false, sizeof(SimOp));
    bool is_good = run_with_fault(&all);
    *ret_n_points = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(faults); i++)
        for (uint64_t n = 1; n <= ops->len && is_good; n++) {
            SimOp op = g_array_index(ops, SimOp, n - 1);
            if (!can_fail(op, faults[i].error) || (faults[i].is_lasting && op != SIM_OP_WRITE))
                continue;
            Run run = {.c = c,
                       .options = options,
                       .seed = options->seed,
                       .fault_at = n,
                       .fault = faults[i].error,
                       .is_lasting = faults[i].is_lasting};
            is_good = run_with_fault(&run);
            *ret_n_points += 1 + run.n_points;
        }
    return is_good;
}

// --- command line --------------------------------------------------------------------------------

void crash_options_parse(CrashOptions *options, int argc, char **argv)
{
    gint64 seed = (gint64)options->seed, points = (gint64)options->n_points;
    char *only = NULL;
    gboolean is_verbose = false;
    GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT64, &seed, "seed of the first run", "N"},
        {"points", 0, 0, G_OPTION_ARG_INT64, &points, "power cuts for each case, at least", "N"},
        {"time", 0, 0, G_OPTION_ARG_DOUBLE, &options->seconds, "instead: seconds each", "S"},
        {"case", 0, 0, G_OPTION_ARG_STRING, &only, "only this case", "NAME"},
        {"verbose", 0, 0, G_OPTION_ARG_NONE, &is_verbose, "a line for each run", NULL},
        {NULL},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(2);
    }
    options->seed = (uint64_t)seed;
    options->n_points = (uint64_t)points;
    options->only = only;
    options->is_verbose = is_verbose;
}

static bool report(unsigned number, const CrashCase *c, const char *mode, const char *rules,
                   bool is_good, uint64_t n_points)
{
    printf("%sok %u - %s: %s (%s): %" PRIu64 " points\n", is_good ? "" : "not ", number, c->name,
           mode, rules, n_points);
    fflush(stdout);
    return is_good;
}

int crash_main(const CrashCase *cases, size_t n_cases, CrashOptions options, int argc, char **argv)
{
    unsigned number = 0;
    bool is_good = true;
    uint64_t n_points, n_all = 0;
    crash_options_parse(&options, argc, argv);
    printf("# seed %" PRIu64 "\n", options.seed);
    for (size_t i = 0; i < n_cases; i++) {
        if (options.only && strcmp(options.only, cases[i].name) != 0)
            continue;
        bool is_fine = crash_run_power_cuts(&cases[i], &options, &n_points);
        is_good &= report(++number, &cases[i], "power cuts", cases[i].rules, is_fine, n_points);
        n_all += n_points;
        is_fine = crash_run_faults(&cases[i], &options, &n_points);
        is_good &= report(++number, &cases[i], "faults", "§9", is_fine, n_points);
        n_all += n_points;
    }
    printf("# %" PRIu64 " points\n1..%u\n", n_all, number);
    return is_good ? 0 : 1;
}
