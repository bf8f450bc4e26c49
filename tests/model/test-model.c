// SPDX-License-Identifier: LGPL-2.1-or-later
// Every three operations, at the same time, on one cluster and on borders of two, with a power cut
// and with an error at each step: what is on the disk then is consistent, shows what may be there,
// and keeps its points in time. Each three go through several seeds, which decide in which order
// their steps come. Prints TAP; --seeds N for more of them, --only A,B,C for one three.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../crash/crash-workload.h"
#include "chain-core/dirty-bitmap.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"

enum {
    CELL = 512,
    CLUSTER = 1024,
    TABLE_BYTES = CLUSTER / 8 * CLUSTER, // what an L2 table says
    DISK_BYTES = 2 * TABLE_BYTES,
    N_TOGETHER = 3,
    MAX_MEMORY = 32 << 20,
};

// Of the disk at the beginning: all of the base, and what the top has in the first cluster of each
// place, shared with the snapshot "old".
enum { VERSION_BASE = 1, VERSION_TOP };

typedef struct Place {
    const char *name;
    uint64_t off, len;           // clusters
    uint64_t part_off, part_len; // half of a cluster, or two halves about the border
} Place;

#define BORDER(at) (at) - CLUSTER, 2 * CLUSTER, (at)-CELL, 2 * CELL
static const Place places[] = {
    {"a cluster that is shared", 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL},
    {"a cluster that is not there", 9 * CLUSTER, CLUSTER, 9 * CLUSTER + CELL, CELL},
    {"a border of two clusters", BORDER(5 * CLUSTER)},
    {"a border of two tables", BORDER(TABLE_BYTES)},
};
// Clusters that the top has at the beginning.
static const uint64_t shared_offs[] = {4 * CLUSTER, TABLE_BYTES - CLUSTER};

typedef struct Run Run;
typedef struct Operation {
    const char *name;
    void (*fn)(Fiber *self, Run *run);
} Operation;

// One three at one place with one seed, and at most one fault.
struct Run {
    SimHook hook; // first
    const Operation *operations[N_TOGETHER];
    const Place *place;
    uint64_t seed;
    Sim *sim;
    ShadowModel *model;
    Node *node;
    Port port;
    DirtyBitmap *bitmap;
    FiberWaitGroup group;
    unsigned next;
    uint64_t begun;          // before the first operation; the model keeps what was there then
    uint64_t snapshot_begun; // 0: none was asked for
    uint32_t snapshot_ended; // versions that were begun when it was there; UINT32_MAX: not yet
    bool may_lose_old;       // its deletion was asked for
    uint32_t n_before_clear; // versions that had begun when the bitmap was last cleared
    uint64_t fault_at;       // number of the operation of the file; 0: power cuts
    int fault;
    bool is_hit;
    GArray *ops; // SimOp of each, when they are counted
    uint64_t n_points;
    bool has_failed;
};

static void fail(Run *run, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void fail(Run *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    printf("# %s, %s, %s at %s, seed %" PRIu64 ", operation %" PRIu64 "%s: %s\n",
           run->operations[0]->name, run->operations[1]->name, run->operations[2]->name,
           run->place->name, run->seed, sim_n_ops(run->sim),
           run->fault_at ? run->fault == -EIO ? " (EIO)" : " (ENOSPC)" : "", what);
    run->has_failed = true;
}

// --- the disk ------------------------------------------------------------------------------------

static ShadowModel *initial_model(void)
{
    ShadowModel *model = shadow_model_new(DISK_BYTES, CELL);
    shadow_model_set_initial(model, SHADOW_DATA, 0, DISK_BYTES);
    for (unsigned i = 0; i < G_N_ELEMENTS(shared_offs); i++)
        shadow_model_set_initial(model, SHADOW_DATA, shared_offs[i], CLUSTER);
    return model;
}

static bool is_shared(uint64_t off)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(shared_offs); i++)
        if (off - shared_offs[i] < CLUSTER)
            return true;
    return false;
}

typedef struct Disk {
    MapMemory *memory;
    Node *node;
} Disk;

static int open_disk(Fiber *self, Disk *ret_disk, GError **error)
{
    File *file;
    Qcow2Image *image;
    Node *base;
    Disk disk = {.memory = map_memory_new(MAX_MEMORY)};
    int r = file_open(self, "/top", FILE_WRITABLE, &file, error);
    if (r == 0)
        r = qcow2_image_open(self, file, &(Qcow2OpenOptions){.memory = disk.memory}, &image, error);
    if (r == 0) {
        r = qcow2_view_new(self, image, NULL, &disk.node, error);
        qcow2_image_unref_close(self, image);
    }
    if (r == 0)
        r = file_open(self, "/base", 0, &file, error);
    if (r == 0)
        r = raw_node_new(self, file, &base, error);
    if (r == 0) {
        node_set_backing(self, disk.node, base);
        node_unref_close(self, base);
        *ret_disk = disk;
        return 0;
    }
    node_unref_close(self, disk.node);
    map_memory_free(disk.memory);
    return r;
}

static void close_disk(Fiber *self, Disk *disk)
{
    node_unref_close(self, disk->node);
    map_memory_free(disk->memory);
}

static void make_template(Fiber *self, void *arg)
{
    Qcow2CreateOptions options = {.size_bytes = DISK_BYTES,
                                  .cluster_bytes = CLUSTER,
                                  .backing_name = "base",
                                  .backing_format = "raw"};
    Disk disk;
    g_assert(qcow2_create(self, "/top", &options, NULL) == 0);
    g_assert(file_sync_dir(self, "/top", NULL) == 0);
    g_assert(open_disk(self, &disk, NULL) == 0);
    ShadowModel *model = initial_model();
    for (unsigned i = 0; i < G_N_ELEMENTS(shared_offs); i++) {
        uint8_t data[CLUSTER];
        shadow_model_fill(model, VERSION_TOP + i, shared_offs[i], data, CLUSTER);
        g_assert(node_write(self, disk.node, guest_off(shared_offs[i]), data, CLUSTER, 0) == 0);
    }
    g_assert(qcow2_snapshot_create(self, disk.node, "old", NULL, NULL) == 0);
    g_assert(node_flush(self, disk.node) == 0);
    close_disk(self, &disk);
    shadow_model_free(model);
}

// A simulation whose files are the disk at the beginning.
static Sim *template_new(void)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    ShadowModel *model = initial_model();
    g_autofree uint8_t *content = g_malloc(DISK_BYTES);
    shadow_model_fill(model, VERSION_BASE, 0, content, DISK_BYTES);
    shadow_model_free(model);
    sim_write_file(sim, "/base", content, DISK_BYTES);
    g_assert(sim_run(sim, make_template, NULL));
    return sim;
}

// --- operations ----------------------------------------------------------------------------------

static void change(Fiber *self, Run *run, ShadowKind kind, uint64_t off, uint64_t len,
                   NodeIoFlags flags)
{
    uint32_t version = shadow_model_begin(run->model, kind, off, len);
    uint8_t data[2 * CLUSTER];
    shadow_model_fill(run->model, version, off, data, len);
    RequestKind request = kind == SHADOW_DATA ? REQUEST_WRITE : REQUEST_ZERO;
    Node *node = port_enter(self, &run->port, request);
    int r = kind == SHADOW_DATA ? node_write(self, node, guest_off(off), data, len, flags)
                                : node_zero(self, node, guest_off(off), len, flags);
    port_leave(&run->port, request);
    shadow_model_end(run->model, version, r, flags & NODE_IO_FUA);
}

static void op_write(Fiber *self, Run *run)
{
    change(self, run, SHADOW_DATA, run->place->part_off, run->place->part_len, 0);
}

static void op_write_fua(Fiber *self, Run *run)
{
    change(self, run, SHADOW_DATA, run->place->off, run->place->len, NODE_IO_FUA);
}

static void op_zero(Fiber *self, Run *run)
{
    change(self, run, SHADOW_ZEROS, run->place->off, run->place->len, 0);
}

static void op_zero_part(Fiber *self, Run *run)
{
    change(self, run, SHADOW_ZEROS, run->place->part_off, run->place->part_len, 0);
}

static void op_discard(Fiber *self, Run *run)
{
    const Place *p = run->place;
    uint32_t version = shadow_model_begin(run->model, SHADOW_ZEROS, p->off, p->len);
    int r = node_discard(self, port_enter(self, &run->port, REQUEST_DISCARD), guest_off(p->off),
                         p->len, 0);
    port_leave(&run->port, REQUEST_DISCARD);
    shadow_model_end(run->model, version, r, false);
}

static void op_flush(Fiber *self, Run *run)
{
    uint64_t begun = shadow_model_flush_begin(run->model);
    int r = node_flush(self, port_enter(self, &run->port, REQUEST_FLUSH));
    port_leave(&run->port, REQUEST_FLUSH);
    shadow_model_flush_end(run->model, begun, r);
}

static void op_read(Fiber *self, Run *run)
{
    uint8_t data[2 * CLUSTER];
    char problem[256];
    const Place *p = run->place;
    uint64_t begun = shadow_model_read_begin(run->model);
    int r = node_read(self, port_enter(self, &run->port, REQUEST_READ), guest_off(p->off), data,
                      p->len);
    port_leave(&run->port, REQUEST_READ);
    if (r == 0 && !shadow_model_check(run->model, p->off, data, p->len, begun, NULL, problem))
        fail(run, "read: %s", problem);
    shadow_model_read_end(run->model);
}

static uint32_t n_versions(Run *run)
{
    // Versions are numbered in order: one that changes nothing tells how many there were.
    return shadow_model_begin(run->model, SHADOW_HINT, 0, 0);
}

static void op_snapshot(Fiber *self, Run *run)
{
    if (run->snapshot_begun) { // what it shows is not looked at
        qcow2_snapshot_create(self, run->node, "one more", NULL, NULL);
        return;
    }
    run->snapshot_ended = UINT32_MAX;
    run->snapshot_begun = shadow_model_read_begin(run->model);
    int r = qcow2_snapshot_create(self, run->node, "new", NULL, NULL);
    if (r < 0 && !run->fault_at)
        fail(run, "snapshot: %s", g_strerror(-r));
    if (r == 0)
        run->snapshot_ended = n_versions(run);
}

static void op_delete(Fiber *self, Run *run)
{
    run->may_lose_old = true;
    qcow2_snapshot_delete(self, run->node, NULL, "old", NULL, NULL);
}

static void op_clear_bitmap(Fiber *self, Run *run)
{
    Bitmap *clean = bitmap_new(DISK_BYTES, dirty_bitmap_granularity_bits(run->bitmap));
    bitmap_free(dirty_bitmap_swap_bits(run->bitmap, clean));
    run->n_before_clear = n_versions(run);
}

static const Operation operations[] = {
    {"write", op_write},         {"write-fua", op_write_fua}, {"zero", op_zero},
    {"zero-part", op_zero_part}, {"discard", op_discard},     {"flush", op_flush},
    {"read", op_read},           {"snapshot", op_snapshot},   {"delete", op_delete},
    {"bitmap", op_clear_bitmap},
};

// --- looking at what is there --------------------------------------------------------------------

// The first that is not about a leak.
static const char *first_message(const Qcow2CheckResult *result)
{
    for (guint i = 0; result->messages && i < result->messages->len; i++)
        if (!strstr(result->messages->pdata[i], "leaked"))
            return result->messages->pdata[i];
    return "cannot be checked";
}

// Byte 79 of the header holds the first incompatible bits; 1 is "dirty".
static bool is_dirty(Fiber *self, File *file)
{
    uint8_t bits = 0;
    return file_read(self, file, host_off(79), &bits, 1) == 0 && bits & 1;
}

// Leaks are allowed, and with the dirty bit what the next writable open repairs.
static void expect_consistent(Fiber *self, Run *run, const char *when)
{
    Qcow2CheckResult result = {0};
    File *file = NULL;
    int r = file_open(self, "/top", 0, &file, NULL);
    if (r == 0 && !is_dirty(self, file))
        r = qcow2_check(self, file, 0, &result, NULL);
    if (r < 0 || result.n_corruptions + result.n_check_errors > 0)
        fail(run, "%s: %s", when, first_message(&result));
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

// What a view on an internal snapshot shows; `versions` of each cell. False: there is none.
static bool read_snapshot(Fiber *self, Run *run, Node *head, const char *name, uint64_t begun,
                          uint32_t *versions)
{
    g_autofree uint8_t *data = g_malloc(DISK_BYTES);
    char problem[256];
    Node *view;
    g_autoptr(GError) error = NULL;
    int r = qcow2_snapshot_view_new(self, head, name, &view, &error);
    if (r == -ENOENT)
        return false;
    if (r == 0)
        r = node_read(self, view, guest_off(0), data, DISK_BYTES);
    if (r < 0)
        fail(run, "snapshot '%s' cannot be read: %s", name,
             error ? error->message : g_strerror(-r));
    else if (!shadow_model_check(run->model, 0, data, DISK_BYTES, begun, versions, problem))
        fail(run, "snapshot '%s': %s", name, problem);
    node_unref_close(self, view);
    return true;
}

static void expect_old(Fiber *self, Run *run, Node *head, uint32_t *versions)
{
    if (!read_snapshot(self, run, head, "old", run->begun, versions)) {
        if (!run->may_lose_old)
            fail(run, "snapshot 'old' is gone");
        return;
    }
    for (uint64_t off = 0; off < DISK_BYTES && !run->has_failed; off += CELL) {
        uint32_t version = versions[off / CELL];
        if (is_shared(off) ? version < VERSION_TOP || version > VERSION_TOP + 1
                           : version != VERSION_BASE)
            fail(run, "snapshot 'old' has version %u at %" PRIu64, version, off);
    }
}

static void expect_new(Fiber *self, Run *run, Node *head, uint32_t *versions)
{
    bool is_there =
        run->snapshot_begun && read_snapshot(self, run, head, "new", run->snapshot_begun, versions);
    if (!is_there && run->snapshot_begun && run->snapshot_ended != UINT32_MAX)
        fail(run, "snapshot 'new' is not there, though it was made");
    for (uint64_t cell = 0; is_there && cell < DISK_BYTES / CELL && !run->has_failed; cell++)
        if (versions[cell] > run->snapshot_ended)
            fail(run, "snapshot 'new' has version %u in cell %" PRIu64 ", which is later",
                 versions[cell], cell);
}

static void look(Fiber *self, Run *run, const char *when)
{
    Disk disk;
    char problem[256];
    g_autoptr(GError) error = NULL;
    g_autofree uint32_t *versions = g_new0(uint32_t, DISK_BYTES / CELL);
    expect_consistent(self, run, when);
    if (open_disk(self, &disk, &error) < 0) {
        fail(run, "%s: %s", when, error->message);
        return;
    }
    int r = crash_compare(self, disk.node, run->model, NULL, problem);
    if (r < 0)
        fail(run, "%s: %s", when, r == -EILSEQ ? problem : g_strerror(-r));
    expect_old(self, run, disk.node, versions);
    expect_new(self, run, disk.node, versions);
    close_disk(self, &disk);
    expect_consistent(self, run, when);
}

static void look_after_cut(Fiber *self, void *arg)
{
    look(self, arg, "after a power cut");
}

static void look_after_fault(Fiber *self, void *arg)
{
    look(self, arg, "after a fault");
}

static void cut_here(Run *run, uint64_t n)
{
    Sim *after = sim_clone_after_power_cut(run->sim, run->seed * 1000 + n);
    run->n_points++;
    sim_run(after, look_after_cut, run);
    sim_free(after);
}

// --- one run -------------------------------------------------------------------------------------

static void expect_dirty(Run *run)
{
    const Bitmap *bits = dirty_bitmap_bits(run->bitmap);
    for (unsigned i = 0; i < N_TOGETHER; i++)
        if (run->operations[i]->fn == op_clear_bitmap)
            return; // when which change ended is what expect_later_change() looks at
    for (unsigned i = 0; i < N_TOGETHER; i++) {
        void (*fn)(Fiber *, Run *) = run->operations[i]->fn;
        bool is_part = fn == op_write || fn == op_zero_part;
        bool is_whole = fn == op_write_fua || fn == op_zero || fn == op_discard;
        if ((is_part && !bitmap_is_dirty(bits, run->place->part_off)) ||
            (is_whole && !bitmap_is_dirty(bits, run->place->off)))
            fail(run, "the bitmap calls what was changed clean");
    }
}

// A change after all else is dirty whatever came before.
static void expect_later_change(Fiber *self, Run *run)
{
    op_write(self, run);
    if (!bitmap_is_dirty(dirty_bitmap_bits(run->bitmap), run->place->part_off))
        fail(run, "the bitmap calls what was changed after it was cleared clean");
}

static void operation_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    const Operation *operation = run->operations[run->next++];
    // So that they meet at different steps.
    fiber_sleep(self, sim_random(run->sim, 4) * sim_random(run->sim, 200000));
    operation->fn(self, run);
    fiber_wait_group_done(&run->group);
}

static void run_main(Fiber *self, void *arg)
{
    Run *run = arg;
    Disk disk;
    if (open_disk(self, &disk, NULL) < 0) {
        if (!run->is_hit)
            fail(run, "it does not open");
        return;
    }
    run->node = disk.node;
    port_init(&run->port, run->node, "model");
    DirtyBitmapSpec spec = {.name = "b", .node_name = "top", .granularity_bits = 9};
    g_assert(dirty_bitmap_add(run->node, &spec, &run->bitmap, NULL) == 0);
    fiber_wait_group_add(&run->group, N_TOGETHER);
    for (unsigned i = 0; i < N_TOGETHER; i++)
        g_assert(fiber_spawn(fiber_loop(self), "operation", operation_fiber, run, NULL) == 0);
    fiber_wait_group_wait(self, &run->group);
    expect_dirty(run);
    expect_later_change(self, run);
    op_flush(self, run);
    if (run->fault_at)
        cut_here(run, 0); // what was acknowledged is there
    g_assert(dirty_bitmap_remove(self, run->bitmap, NULL) == 0);
    port_done(self, &run->port);
    close_disk(self, &disk);
}

static bool can_fail(SimOp op, int fault)
{
    return fault == -EIO || op == SIM_OP_WRITE || op == SIM_OP_ZERO || op == SIM_OP_RESERVE ||
           op == SIM_OP_TRUNCATE;
}

static int hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    Run *run = (Run *)hook;
    if (run->ops)
        g_array_append_val(run->ops, op);
    if (!run->fault_at && op != SIM_OP_READ && !run->has_failed)
        cut_here(run, n);
    run->is_hit |= n == run->fault_at;
    return n == run->fault_at ? run->fault : 0;
}

// True when all was well.
static bool run_one(const Sim *template, Run *run)
{
    run->hook.fn = hook;
    run->model = initial_model();
    run->begun = shadow_model_read_begin(run->model);
    run->sim = sim_clone_after_power_cut(template, run->seed);
    sim_set_hook(run->sim, &run->hook);
    sim_run(run->sim, run_main, run);
    sim_set_hook(run->sim, NULL);
    if (!run->has_failed)
        sim_run(run->sim, look_after_fault, run);
    sim_free(run->sim);
    shadow_model_free(run->model);
    return !run->has_failed;
}

// One three at one place: power cuts at each step, then each fault at each step.
static bool run_all(const Sim *template, const Run *as, uint64_t *n_points)
{
    static const int faults[] = {-EIO, -ENOSPC};
    g_autoptr(GArray) ops = g_array_new(false, false, sizeof(SimOp));
    Run cuts = *as;
    cuts.ops = ops;
    bool is_good = run_one(template, &cuts);
    *n_points += cuts.n_points;
    for (unsigned f = 0; f < G_N_ELEMENTS(faults); f++)
        for (uint64_t n = 1; n <= ops->len && is_good; n++) {
            if (!can_fail(g_array_index(ops, SimOp, n - 1), faults[f]))
                continue;
            Run run = *as;
            run.fault_at = n;
            run.fault = faults[f];
            is_good = run_one(template, &run);
            *n_points += 1 + run.n_points;
        }
    return is_good;
}

static bool is_wanted(const Run *run, const char *only)
{
    g_autofree char *names = g_strdup_printf("%s,%s,%s", run->operations[0]->name,
                                             run->operations[1]->name, run->operations[2]->name);
    return !only || g_str_equal(names, only);
}

static bool run_place(const Sim *template, const Place *place, uint64_t n_seeds, const char *only,
                      uint64_t *n_points)
{
    enum { N = G_N_ELEMENTS(operations), ENOUGH = 3 };
    unsigned n_failed = 0;
    for (unsigned i = 0; i < N * N * N && n_failed < ENOUGH; i++) {
        unsigned a = i / N / N, b = i / N % N, c = i % N;
        Run run = {.operations = {&operations[a], &operations[b], &operations[c]}, .place = place};
        if (a > b || b > c || !is_wanted(&run, only))
            continue;
        for (run.seed = 1; run.seed <= n_seeds; run.seed++)
            n_failed += !run_all(template, &run, n_points);
    }
    return n_failed == 0;
}

int main(int argc, char **argv)
{
    gint64 n_seeds = 1;
    char *only = NULL;
    GOptionEntry entries[] = {
        {"seeds", 0, 0, G_OPTION_ARG_INT64, &n_seeds, "orders of each three", "N"},
        {"only", 0, 0, G_OPTION_ARG_STRING, &only, "only this three", "A,B,C"},
        {NULL},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        fprintf(stderr, "%s\n", error->message);
        return 2;
    }
    Sim *template = template_new();
    bool is_good = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        uint64_t n_points = 0;
        bool is_fine = run_place(template, &places[i], (uint64_t)n_seeds, only, &n_points);
        printf("%sok %u - every three operations on %s: %" PRIu64 " points\n",
               is_fine ? "" : "not ", i + 1, places[i].name, n_points);
        fflush(stdout);
        is_good &= is_fine;
    }
    printf("1..%zu\n", G_N_ELEMENTS(places));
    sim_free(template);
    g_free(only);
    return is_good ? 0 : 1;
}
