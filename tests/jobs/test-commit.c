// SPDX-License-Identifier: LGPL-2.1-or-later
// Commits of random chains under writing guests, in the simulation: whatever is asked of the job,
// whatever fails, and wherever the power is cut, the head shows what guests wrote, at least what a
// flush acknowledged (docs/ordering.md §18), layers below the base keep their point in time, and
// the base is what the top was. A guest's block holds its number and a version that only grows, so
// every sector tells how old it is; zeros are versions, too.
#include <errno.h>
#include <string.h>

#include "../loop/in-fiber.h"
#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "job-work.h"
#include "jobs/commit.h"

enum {
    BLOCK = 8192,
    BLOCKS = 96,
    DISK = BLOCK * BLOCKS,
    WORDS = BLOCK / 8,
    WORKERS = 4,
    MAX_LAYERS = 5,
    BRANCH = MAX_LAYERS, // number of a further overlay of the base
    MAX_VERSIONS = 4096,
};

typedef struct Versions {
    uint32_t of[BLOCKS];
} Versions;

// How a commit is to go.
typedef struct Course {
    bool is_active, is_left, is_cancelled, is_asked, cuts_power;
    CopyMode mode;
    int fails_with; // writes to the base, now and then
    JobOnError on_error;
    bool flush_fails;    // of the base
    bool is_held_up;     // a request that does not end
    bool keeps_points;   // all overlays of the base
    bool fails_in_point; // not in the base
    bool keeps_top, completes_itself;
} Course;

typedef struct World {
    SimHook hook; // first
    Sim *sim;
    uint64_t seed;
    Course course;
    MapMemory *memory;
    unsigned n_layers, top, base;
    uint32_t cluster_bytes[MAX_LAYERS + 1];
    uint64_t sizes[MAX_LAYERS + 1];
    Node *layers[MAX_LAYERS + 1];
    Port port;
    bool stop;
    FiberWaitGroup workers;
    Versions issued, acked, durable, at_start, kept[MAX_LAYERS + 1];
    bool is_zero[BLOCKS][MAX_VERSIONS];
    unsigned next_worker, n_cuts;
    uint64_t n_base_writes;
    JobControl *control;
    bool is_copying, is_ready, is_over, is_switched;
    int result, given_back;
    FiberQueue changed;
} World;

static uint64_t pick(World *w, uint64_t bound)
{
    return sim_random(w->sim, bound);
}

static void name_layer(char path[16], unsigned number)
{
    g_snprintf(path, 16, "/layer-%u", number);
}

// -- what blocks hold -----------------------------------------------------------------------------

static bool may_be_zero(const World *w, unsigned block, uint32_t least, uint32_t most)
{
    for (uint32_t version = least; version <= most; version++)
        if (version == 0 || w->is_zero[block][version])
            return true;
    return false;
}

// Every sector as new as `least` or newer, but not newer than `most`.
static void check_block(const World *w, const char *where, unsigned block, const uint64_t *words,
                        uint32_t least, uint32_t most)
{
    for (unsigned i = 0; i < WORDS; i++) {
        uint32_t version = (uint32_t)(words[i] >> 32), number = (uint32_t)words[i];
        bool is_right = words[i] ? number == block && version >= least && version <= most &&
                                       !w->is_zero[block][version]
                                 : may_be_zero(w, block, least, most);
        if (!is_right)
            g_error("seed %u, %s, commit of %u into %u, block %u word %u: version %u of block %u, "
                    "not %u to %u",
                    (unsigned)w->seed, where, w->top, w->base, block, i, version, number, least,
                    most);
    }
}

static uint32_t next_version(World *w, unsigned block, bool is_zero)
{
    uint32_t version = ++w->issued.of[block];
    fiber_assert(version < MAX_VERSIONS);
    w->is_zero[block][version] = is_zero;
    return version;
}

static int change_block(Fiber *self, World *w, Node *node, unsigned block, RequestKind kind)
{
    GuestOff off = guest_off((uint64_t)block * BLOCK);
    NodeIoFlags flags = pick(w, 8) == 0 ? NODE_IO_FUA : 0;
    uint32_t version = next_version(w, block, kind != REQUEST_WRITE);
    int r;
    if (kind == REQUEST_WRITE) {
        uint64_t words[WORDS];
        for (unsigned i = 0; i < WORDS; i++)
            words[i] = (uint64_t)version << 32 | block;
        r = node_write(self, node, off, words, BLOCK, flags);
    } else if (kind == REQUEST_ZERO) {
        r = node_zero(self, node, off, BLOCK, flags);
    } else {
        r = node_discard(self, node, off, BLOCK, flags);
    }
    if (r == 0)
        w->acked.of[block] = version;
    if (r == 0 && flags & NODE_IO_FUA)
        w->durable.of[block] = version;
    return r;
}

// -- guests ---------------------------------------------------------------------------------------

static void flush(Fiber *self, World *w)
{
    Node *node = port_enter(self, &w->port, REQUEST_FLUSH);
    Versions covered = w->acked;
    int r = node_flush(self, node);
    port_leave(&w->port, REQUEST_FLUSH);
    fiber_assert_equal(r, 0);
    for (unsigned i = 0; i < BLOCKS; i++)
        w->durable.of[i] = MAX(w->durable.of[i], covered.of[i]);
}

static void read_block(Fiber *self, World *w, unsigned block)
{
    uint64_t words[WORDS];
    Node *node = port_enter(self, &w->port, REQUEST_READ);
    fiber_assert_equal(node_read(self, node, guest_off((uint64_t)block * BLOCK), words, BLOCK), 0);
    port_leave(&w->port, REQUEST_READ);
    check_block(w, "read", block, words, w->acked.of[block], w->issued.of[block]);
}

// A discard makes zeros of whole clusters only.
static RequestKind pick_change(World *w)
{
    static const RequestKind kinds[] = {REQUEST_ZERO, REQUEST_DISCARD};
    uint64_t what = pick(w, 6);
    bool has_small_clusters = w->cluster_bytes[w->n_layers - 1] <= BLOCK &&
                              w->cluster_bytes[w->base] <= BLOCK; // the head later
    return what < (has_small_clusters ? 2 : 1) ? kinds[what] : REQUEST_WRITE;
}

static void worker(Fiber *self, void *arg)
{
    World *w = arg;
    unsigned first = w->next_worker++;
    while (!w->stop) {
        unsigned block = first + WORKERS * (unsigned)pick(w, BLOCKS / WORKERS);
        uint64_t what = pick(w, 16);
        if (what == 0) {
            flush(self, w);
        } else if (what < 6) {
            read_block(self, w, block);
        } else {
            RequestKind kind = pick_change(w);
            Node *node = port_enter(self, &w->port, kind);
            fiber_assert_equal(change_block(self, w, node, block, kind), 0);
            port_leave(&w->port, kind);
        }
        fiber_sleep(self, pick(w, 400000));
    }
    fiber_wait_group_done(&w->workers);
}

// -- layers ---------------------------------------------------------------------------------------

static Node *open_layer(Fiber *self, const World *w, unsigned number, bool is_writable)
{
    char path[16];
    name_layer(path, number);
    g_autoptr(GError) error = NULL;
    LayerOptions options = {.memory = w->memory,
                            .format = "qcow2",
                            .read_only = !is_writable,
                            .force_share = !is_writable};
    Node *node;
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        g_error("seed %u: %s", (unsigned)w->seed, error->message);
    return node;
}

static void check_layer(Fiber *self, const World *w, const char *where, unsigned number,
                        const Versions *least, const Versions *most)
{
    Node *node = open_layer(self, w, number, false);
    uint64_t words[WORDS];
    g_autofree char *what = g_strdup_printf("%s, layer %u", where, number);
    for (unsigned i = 0; i < BLOCKS && (uint64_t)i * BLOCK < node->size_bytes; i++) {
        fiber_assert_equal(node_read(self, node, guest_off((uint64_t)i * BLOCK), words, BLOCK), 0);
        check_block(w, what, i, words, least->of[i], most->of[i]);
    }
    node_unref_close(self, node);
}

static void check_image(Fiber *self, const World *w, unsigned number, bool may_leak)
{
    char path[16];
    File *file;
    Qcow2CheckResult result;
    name_layer(path, number);
    fiber_assert_equal(file_open(self, path, 0, &file, NULL), 0);
    fiber_assert_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_check_errors || (result.n_leaks && !may_leak))
        g_error("seed %u, layer %u: %s", (unsigned)w->seed, number,
                (const char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

// Each layer from a disk of its own time: some of its blocks are written, some zeroed.
static void make_layer(Fiber *self, World *w, unsigned number)
{
    static const uint32_t clusters[] = {512, 4096, 65536};
    char path[16], below[16];
    name_layer(path, number);
    if (number)
        name_layer(below, number == BRANCH ? w->base : number - 1);
    w->cluster_bytes[number] = clusters[pick(w, G_N_ELEMENTS(clusters))];
    bool is_short = number + 1 < w->n_layers && pick(w, 3) == 0;
    w->sizes[number] = is_short ? BLOCK * (1 + pick(w, BLOCKS)) : DISK;
    Qcow2CreateOptions options = {.size_bytes = w->sizes[number],
                                  .cluster_bytes = w->cluster_bytes[number],
                                  .backing_name = number ? below + 1 : NULL,
                                  .backing_format = number ? "qcow2" : NULL};
    fiber_assert_equal(qcow2_create(self, path, &options, NULL), 0);
    Node *node = open_layer(self, w, number, true);
    for (unsigned i = 0; i < BLOCKS; i++) {
        bool is_inside = (uint64_t)i * BLOCK < w->sizes[number];
        RequestKind kind = pick(w, 4) ? REQUEST_WRITE : REQUEST_ZERO;
        if (!is_inside)
            w->acked.of[i] = next_version(w, i, true); // hides what lies below
        else if (pick(w, 3) == 0)
            fiber_assert_equal(change_block(self, w, node, i, kind), 0);
    }
    fiber_assert_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
    w->kept[number] = w->durable = w->acked;
}

// Another state of the disk on the same base.
static void make_branch(Fiber *self, World *w)
{
    Versions acked = w->acked, durable = w->durable;
    make_layer(self, w, BRANCH);
    w->acked = acked;
    w->durable = durable;
}

static void open_branch(Fiber *self, World *w)
{
    char path[16];
    name_layer(path, BRANCH);
    LayerOptions options = {.memory = w->memory, .format = "qcow2"};
    Layer *layer;
    g_autoptr(GError) error = NULL;
    if (layer_open(self, path, &options, &layer, &error) < 0 ||
        layer_load(self, layer, &w->layers[BRANCH], &error) < 0)
        g_error("seed %u: %s", (unsigned)w->seed, error->message);
    layer_drop(self, layer);
    chain_set_backing(self, w->layers[BRANCH], w->layers[w->base], w->memory);
}

static void open_chain(Fiber *self, World *w)
{
    Node *node = open_layer(self, w, w->n_layers - 1, true);
    for (unsigned i = w->n_layers; i-- > 0; node = chain_backing(node))
        w->layers[i] = node_ref(node);
    node_unref_close(self, w->layers[w->n_layers - 1]);
    port_init(&w->port, w->layers[w->n_layers - 1], "guests");
    if (w->course.keeps_points)
        open_branch(self, w);
}

static void close_chain(Fiber *self, World *w)
{
    port_done(self, &w->port);
    node_unref_close(self, w->layers[BRANCH]);
    for (unsigned i = w->n_layers; i-- > 0;)
        node_unref_close(self, w->layers[i]);
}

// -- power cuts -----------------------------------------------------------------------------------

static unsigned head_of(const World *w)
{
    return w->port.node == w->layers[w->base] ? w->base : w->n_layers - 1;
}

typedef struct AfterCut {
    World *before;
    MapMemory *memory;
} AfterCut;

// What keeps its point in time, whatever becomes of the commit.
static void check_points(Fiber *self, const World *w, const char *where)
{
    for (unsigned i = 0; i <= BRANCH; i++) {
        bool is_below = i < w->base;
        bool is_kept =
            w->course.keeps_points && i > w->base && (i + 1 < w->n_layers || i == BRANCH);
        if (is_below || is_kept)
            check_layer(self, w, where, i, &w->kept[i], &w->kept[i]);
        if (is_kept && i == BRANCH)
            check_image(self, w, i, true);
    }
}

static void after_cut(Fiber *self, void *arg)
{
    World *w = ((AfterCut *)arg)->before;
    MapMemory *memory = w->memory;
    w->memory = map_memory_new(1 << 20);
    check_layer(self, w, "after a cut", head_of(w), &w->durable, &w->issued);
    check_points(self, w, "after a cut");
    for (unsigned i = 0; i < w->n_layers; i++)
        check_image(self, w, i, true);
    map_memory_free(w->memory);
    w->memory = memory;
}

static void cut_power(World *w)
{
    AfterCut after = {.before = w};
    Sim *sim = sim_clone_after_power_cut(w->sim, w->seed * 1000 + w->n_cuts++);
    fiber_assert(sim_run(sim, after_cut, &after));
    sim_free(sim);
}

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    char base[16];
    name_layer(base, w->base + w->course.fails_in_point);
    bool is_base = strcmp(path, base) == 0;
    if (w->course.cuts_power && op != SIM_OP_READ && n % 24 == w->seed % 24)
        cut_power(w);
    if (!is_base || !w->is_copying)
        return 0;
    if (op == SIM_OP_FLUSH)
        return w->course.flush_fails ? -EIO : 0;
    return op == SIM_OP_WRITE && ++w->n_base_writes % 8 == 0 && w->n_base_writes <= 64
               ? w->course.fails_with
               : 0;
}

// -- the job --------------------------------------------------------------------------------------

static void hear(void *arg, const JobNews *news)
{
    World *w = arg;
    w->is_ready |= news->kind == JOB_NEWS_READY;
    w->is_copying &= !w->is_ready || w->course.flush_fails;
    if (news->kind == JOB_NEWS_PAUSED && w->course.fails_with)
        job_control_resume(w->control); // somebody made room
    fiber_queue_wake_all(&w->changed);
}

static CommitSpec spec_of(World *w)
{
    static char path[16];
    static Node *points[2];
    name_layer(path, w->base);
    points[0] = w->layers[w->base + 1];
    points[1] = w->layers[BRANCH];
    return (CommitSpec){
        .name = "job",
        .top = w->layers[w->top],
        .base = w->layers[w->base],
        .overlays = &w->layers[w->top + 1],
        .n_overlays = w->course.is_active ? 0 : 1,
        .points = points,
        .n_points = w->course.keeps_points ? G_N_ELEMENTS(points) : 0,
        .backing_name = path + 1,
        .backing_format = "qcow2",
        .on_error = w->course.on_error,
        .copy_mode = w->course.mode,
        .keeps_top = w->course.keeps_top,
        .completes_itself = w->course.completes_itself,
        .memory = w->memory,
    };
}

static void set_mode(Fiber *self, const World *w, Node *node, bool is_writable)
{
    g_autoptr(GError) error = NULL;
    if (node_change_mode(self, node, is_writable, &error) < 0 && !w->course.flush_fails)
        g_error("seed %u: %s", (unsigned)w->seed, error->message);
}

static void set_modes(Fiber *self, const World *w, bool is_writable)
{
    unsigned overlay = w->top + 1;
    if (w->course.keeps_top)
        overlay = w->top;
    if (head_of(w) != w->base)
        set_mode(self, w, w->layers[w->base], is_writable);
    if (overlay + 1 < w->n_layers)
        set_mode(self, w, w->layers[overlay], is_writable);
    if (w->course.keeps_points && w->base + 2 < w->n_layers)
        set_mode(self, w, w->layers[w->base + 1], is_writable);
}

// Does something in the same granule, or cluster, as `block` differ from what it was at the start?
static bool may_have_stayed(const World *w, unsigned block)
{
    unsigned n = MAX(65536, w->cluster_bytes[w->top]) / BLOCK, first = block / n * n;
    for (unsigned i = first; i < MIN(first + n, BLOCKS); i++)
        if (w->issued.of[i] != w->at_start.of[i])
            return true;
    return false;
}

// What the top owns in the end is what guests wrote.
static void check_given_back(Fiber *self, const World *w)
{
    Node *top = w->layers[w->top];
    NodeExtent extent;
    if (w->given_back == -ECANCELED && w->course.is_cancelled)
        return;
    fiber_assert_equal(w->given_back, 0);
    for (uint64_t off = 0; off < top->size_bytes; off += extent.len) {
        fiber_assert_equal(
            node_map(self, top, guest_off(off), MIN(512, top->size_bytes - off), &extent), 0);
        if (extent.kind != NODE_EXTENT_BELOW && !may_have_stayed(w, off / BLOCK))
            g_error("seed %u: the top keeps what it has at %u", (unsigned)w->seed, (unsigned)off);
    }
}

static void check_recorded(const World *w, unsigned number)
{
    char path[16];
    name_layer(path, number - 1);
    const char *name = qcow2_image_backing_name(qcow2_node_image(w->layers[number]));
    if (!g_str_equal(name, path + 1))
        g_error("seed %u: the header of layer %u names %s", (unsigned)w->seed, number, name);
}

// A request that is held up keeps the graph as it is, and then headers are to say so: what they
// would name otherwise is the base, which the next commit may overwrite.
static int switch_or_not(Fiber *self, World *w, Commit *commit)
{
    g_autoptr(GError) error = NULL;
    if (w->course.is_held_up)
        port_enter(self, &w->port, REQUEST_READ);
    int r = commit_switch(self, commit, &w->is_switched, &error);
    if (!w->course.is_held_up)
        return r;
    port_leave(&w->port, REQUEST_READ);
    fiber_assert(r < 0);
    check_recorded(w, w->course.keeps_top ? w->top : w->top + 1);
    return r;
}

static void job(Fiber *self, void *arg)
{
    World *w = arg;
    CommitSpec spec = spec_of(w);
    Commit *commit;
    g_autoptr(GError) error = NULL;
    set_modes(self, w, true);
    w->at_start = w->issued;
    if (commit_begin(self, &spec, &commit, &error) < 0)
        g_error("seed %u: %s", (unsigned)w->seed, error->message);
    w->is_copying = true;
    w->result = commit_run(self, w->control, commit, &error);
    w->is_copying &= w->course.flush_fails;
    while (w->result == 0 && (w->result = commit_come_close(self, commit, &error)) == 0 &&
           (w->result = switch_or_not(self, w, commit)) > 0)
        w->result = 0;
    if (w->result == 0)
        w->given_back = commit_give_back(self, commit);
    if (w->is_switched && w->course.keeps_top)
        check_given_back(self, w);
    commit_end(self, commit);
    set_modes(self, w, false);
    w->is_over = true;
    job_control_end(w->control);
    fiber_queue_wake_all(&w->changed);
}

static void ask(Fiber *self, World *w)
{
    for (unsigned i = 0; i < 4 && w->course.is_asked; i++) {
        fiber_sleep(self, pick(w, 2000000));
        uint64_t what = pick(w, 3);
        if (what == 0)
            job_control_pause(w->control);
        job_control_set_speed(w->control, what == 1 ? 10000000 : 0);
        fiber_sleep(self, pick(w, 2000000));
        if (!job_is_cancelled(w->control))
            job_control_resume(w->control);
    }
    job_control_set_speed(w->control, 0);
    if (w->course.is_cancelled) {
        fiber_sleep(self, pick(w, 3000000));
        job_control_cancel(w->control);
    }
}

static void run_job(Fiber *self, World *w)
{
    w->control = job_control_new(0);
    job_control_begin(w->control, fiber_loop(self), fiber_loop(self), hear, w);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "job", job, w, NULL), 0);
    ask(self, w);
    while (!w->is_over && !(w->is_ready && w->course.is_active))
        fiber_queue_wait(self, &w->changed, false, "the job");
    fiber_sleep(self, pick(w, 1000000));
    if (!w->is_over)
        job_control_ask_end(w->control, w->course.is_left ? JOB_END_CANCEL : JOB_END_COMPLETE);
    while (!w->is_over)
        fiber_queue_wait(self, &w->changed, false, "the job's end");
    fiber_sleep(self, 1000000); // its last messages
    job_control_drop(w->control);
}

// -- a whole commit -------------------------------------------------------------------------------

// What the base is beyond the end of the top does not show where overlays are no longer either.
static bool shows_end_of_base(const World *w)
{
    return w->sizes[w->base] <= w->sizes[w->top] || w->sizes[w->top + 1] > w->sizes[w->top];
}

static void check_end(Fiber *self, World *w)
{
    bool is_active = w->course.is_active;
    unsigned head = w->is_switched && is_active && !w->course.keeps_top ? w->base : w->n_layers - 1;
    const Versions *of_top = is_active ? &w->acked : &w->kept[w->top];
    check_layer(self, w, "at the end", head, &w->acked, &w->acked);
    check_points(self, w, "at the end");
    if (!w->is_switched || w->course.keeps_top)
        check_layer(self, w, "at the end", w->top, of_top, of_top);
    else if (!is_active && shows_end_of_base(w))
        check_layer(self, w, "at the end", w->base, of_top, of_top);
    for (unsigned i = 0; i < w->n_layers; i++)
        check_image(self, w, i, w->course.flush_fails);
}

static void check_modes(const World *w)
{
    for (unsigned i = 0; i < w->n_layers; i++) {
        bool is_head = i == w->n_layers - 1 || (i == w->base && head_of(w) == w->base);
        fiber_assert_equal(w->layers[i]->read_only, !is_head);
    }
}

static void commit_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    w->memory = map_memory_new(1 << 20);
    w->n_layers = (w->course.is_active ? 2 : 3) + (unsigned)pick(w, MAX_LAYERS - 2);
    w->top = w->course.is_active ? w->n_layers - 1 : 1 + (unsigned)pick(w, w->n_layers - 2);
    w->base = (unsigned)pick(w, w->top);
    for (unsigned i = 0; i < w->n_layers; i++) {
        make_layer(self, w, i);
        if (i == w->base && w->course.keeps_points)
            make_branch(self, w);
    }
    open_chain(self, w);
    w->hook.fn = hook;
    sim_set_hook(w->sim, &w->hook);
    fiber_wait_group_add(&w->workers, WORKERS);
    for (int i = 0; i < WORKERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", worker, w, NULL), 0);
    run_job(self, w);
    w->stop = true;
    fiber_wait_group_wait(self, &w->workers);
    for (unsigned i = 0; i < BLOCKS; i++)
        read_block(self, w, i);
    flush(self, w);
    if (w->course.cuts_power)
        cut_power(w);
    check_modes(w);
    sim_set_hook(w->sim, NULL);
    close_chain(self, w);
    check_end(self, w);
    map_memory_free(w->memory);
}

static void run_world(uint64_t seed, const Course *course)
{
    SimConfig config = {.seed = seed,
                        .inline_completion = seed % 2,
                        .short_transfers = seed % 3,
                        .can_copy = seed % 4 < 2};
    g_autofree World *w = g_new0(World, 1);
    w->seed = seed;
    w->course = *course;
    w->sim = sim_new(&config);
    assert_true(sim_run(w->sim, commit_under_load, w));
    sim_free(w->sim);
    if (course->is_held_up || (course->flush_fails && !course->is_left))
        assert_false(w->is_switched);
    else if (!course->is_cancelled && !course->is_left)
        assert_true(w->is_switched);
}

static void run_course(Course course, unsigned n_seeds)
{
    static uint64_t seed;
    for (unsigned i = 0; i < n_seeds; i++)
        run_world(++seed, &course);
}

static void layers_are_left_out_and_nobody_sees_a_difference(void **state)
{
    run_course((Course){0}, 12);
    run_course((Course){.is_asked = true}, 8);
}

static void a_commit_that_is_cancelled_leaves_the_chain_as_it_was(void **state)
{
    run_course((Course){.is_cancelled = true}, 12);
    run_course((Course){.is_cancelled = true, .is_active = true}, 12);
}

static void the_head_is_left_for_the_base_under_writing_guests(void **state)
{
    run_course((Course){.is_active = true}, 8);
    run_course((Course){.is_active = true, .mode = COPY_MODE_BACKGROUND, .is_asked = true}, 8);
    run_course((Course){.is_active = true, .mode = COPY_MODE_WRITE_BLOCKING}, 8);
}

static void an_active_commit_can_end_as_it_is(void **state)
{
    run_course((Course){.is_active = true, .is_left = true}, 8);
}

static void after_a_power_cut_there_is_what_was_flushed(void **state)
{
    run_course((Course){.cuts_power = true}, 12);
    run_course((Course){.cuts_power = true, .is_active = true}, 12);
}

static void a_full_base_pauses_the_job_which_goes_on_later(void **state)
{
    Course course = {.fails_with = -ENOSPC, .on_error = JOB_ON_ERROR_ENOSPC};
    run_course(course, 6);
    course.is_active = true;
    run_course(course, 6);
    course.mode = COPY_MODE_WRITE_BLOCKING;
    run_course(course, 6);
}

static void errors_that_are_ignored_are_tried_again(void **state)
{
    run_course((Course){.fails_with = -EIO, .on_error = JOB_ON_ERROR_IGNORE}, 6);
}

static void a_base_that_does_not_get_durable_is_not_switched_to(void **state)
{
    run_course((Course){.flush_fails = true}, 6);
    run_course((Course){.flush_fails = true, .is_active = true}, 6);
    run_course((Course){.flush_fails = true, .is_active = true, .keeps_top = true}, 6);
}

static void a_top_that_stays_gives_back_what_the_base_has(void **state)
{
    run_course((Course){.keeps_top = true}, 12);
    run_course((Course){.keeps_top = true, .is_asked = true, .is_active = true}, 16);
    run_course((Course){.keeps_top = true, .is_active = true, .completes_itself = true}, 16);
    run_course((Course){.keeps_top = true, .is_cancelled = true}, 12);
    run_course((Course){.keeps_top = true, .is_cancelled = true, .is_active = true}, 24);
    run_course((Course){.keeps_top = true, .is_active = true, .is_left = true}, 8);
}

static void a_power_cut_beside_a_top_that_stays_loses_nothing(void **state)
{
    run_course((Course){.keeps_top = true, .cuts_power = true}, 12);
    run_course((Course){.keeps_top = true, .cuts_power = true, .is_active = true}, 24);
}

static void points_are_kept_below_a_top_that_stays(void **state)
{
    Course course = {.keeps_top = true, .keeps_points = true, .is_active = true};
    run_course(course, 12);
    course.cuts_power = true;
    run_course(course, 12);
}

static void overlays_of_the_base_stay_valid_points_in_time(void **state)
{
    run_course((Course){.keeps_points = true}, 12);
    run_course((Course){.keeps_points = true, .is_cancelled = true}, 12);
    run_course((Course){.keeps_points = true, .cuts_power = true}, 16);
    run_course((Course){.keeps_points = true,
                        .fails_in_point = true,
                        .fails_with = -ENOSPC,
                        .on_error = JOB_ON_ERROR_ENOSPC},
               8);
}

static void a_commit_that_guests_hold_up_leaves_headers_as_they_were(void **state)
{
    run_course((Course){.is_held_up = true}, 6);
    run_course((Course){.is_held_up = true, .keeps_top = true, .is_active = true}, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_that_guests_hold_up_leaves_headers_as_they_were),
        cmocka_unit_test(layers_are_left_out_and_nobody_sees_a_difference),
        cmocka_unit_test(a_commit_that_is_cancelled_leaves_the_chain_as_it_was),
        cmocka_unit_test(the_head_is_left_for_the_base_under_writing_guests),
        cmocka_unit_test(an_active_commit_can_end_as_it_is),
        cmocka_unit_test(after_a_power_cut_there_is_what_was_flushed),
        cmocka_unit_test(a_full_base_pauses_the_job_which_goes_on_later),
        cmocka_unit_test(errors_that_are_ignored_are_tried_again),
        cmocka_unit_test(overlays_of_the_base_stay_valid_points_in_time),
        cmocka_unit_test(a_top_that_stays_gives_back_what_the_base_has),
        cmocka_unit_test(a_power_cut_beside_a_top_that_stays_loses_nothing),
        cmocka_unit_test(points_are_kept_below_a_top_that_stays),
        cmocka_unit_test(a_base_that_does_not_get_durable_is_not_switched_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
