// SPDX-License-Identifier: LGPL-2.1-or-later
// docs/ordering.md §4 (b): a request that looked a host cluster up, and whose transfer is slow,
// must not land in what has become another's data, or a table, once the cluster was discarded, the
// discard flushed and the cluster taken again. Held back at each of its steps until all else is
// over, and with many seeds of a simulation with slow transfers.
#include <inttypes.h>
#include <stdio.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim-choice.h"
#include "crash-qcow2-image.h"
#include "crash-workload.h"

enum { FIRST_BYTES = 4096, N_OTHERS = 12, STRIDE = 32 * 1024 };

typedef struct Race {
    SimChooser chooser; // first
    const CrashCase *c;
    ShadowModel *model;
    Node *node;
    bool late_is_read;
    const Fiber *late;
    unsigned n_steps, n_allowed; // operations of the late one that took effect; before it is held
    FiberWaitGroup group;
    char problem[256];
} Race;

static void write_some(Fiber *self, Race *race, uint64_t off, size_t len)
{
    g_autofree uint8_t *buf = g_malloc(len);
    uint32_t version = shadow_model_begin(race->model, SHADOW_DATA, off, len);
    shadow_model_fill(race->model, version, off, buf, len);
    int r = node_write(self, race->node, guest_off(off), buf, len, 0);
    shadow_model_end(race->model, version, r, false);
}

// The request that may come late: into, or from, the clusters that are there at the start.
static void late_fiber(Fiber *self, void *arg)
{
    Race *race = arg;
    uint8_t buf[FIRST_BYTES];
    race->late = self;
    if (race->late_is_read) {
        uint64_t begun = shadow_model_read_begin(race->model);
        if (node_read(self, race->node, guest_off(0), buf, sizeof(buf)) == 0)
            shadow_model_check(race->model, 0, buf, sizeof(buf), begun, NULL, race->problem);
        shadow_model_read_end(race->model);
    } else {
        write_some(self, race, 0, FIRST_BYTES);
    }
    fiber_wait_group_done(&race->group);
}

static void flush(Fiber *self, Race *race)
{
    uint64_t begun = shadow_model_flush_begin(race->model);
    shadow_model_flush_end(race->model, begun, node_flush(self, race->node));
}

// Frees those clusters and takes them again, as data and as L2 tables.
static void reuse_fiber(Fiber *self, void *arg)
{
    Race *race = arg;
    uint32_t version = shadow_model_begin(race->model, SHADOW_ZEROS, 0, FIRST_BYTES);
    int r = node_discard(self, race->node, guest_off(0), FIRST_BYTES, 0);
    shadow_model_end(race->model, version, r, false);
    flush(self, race);
    for (unsigned i = 1; i <= N_OTHERS; i++) {
        write_some(self, race, (uint64_t)i * STRIDE, 512);
        if (i % 4 == 0)
            flush(self, race);
    }
    fiber_wait_group_done(&race->group);
}

static void check(Fiber *self, Race *race)
{
    CrashImage image;
    g_autoptr(GError) error = NULL;
    g_autofree char *problem = crash_qcow2_check(self, race->c);
    if (problem)
        g_snprintf(race->problem, sizeof(race->problem), "%s", problem);
    else if (crash_qcow2_open(self, race->c, &image, &error) < 0)
        g_snprintf(race->problem, sizeof(race->problem), "%s", error->message);
    else {
        crash_compare(self, image.node, race->model, NULL, race->problem);
        crash_qcow2_close(self, race->c, &image);
    }
}

static void race_main(Fiber *self, void *arg)
{
    Race *race = arg;
    CrashImage image;
    g_autoptr(GError) error = NULL;
    if (crash_qcow2_open(self, race->c, &image, &error) < 0) {
        g_snprintf(race->problem, sizeof(race->problem), "%s", error->message);
        return;
    }
    race->node = image.node;
    fiber_wait_group_add(&race->group, 2);
    fiber_spawn(fiber_loop(self), "late", late_fiber, race, NULL);
    fiber_spawn(fiber_loop(self), "reuse", reuse_fiber, race, NULL);
    fiber_wait_group_wait(self, &race->group);
    crash_qcow2_close(self, race->c, &image);
    if (!race->problem[0])
        check(self, race);
}

// The late request first, as far as it may go; then everything else, as long as there is anything.
static unsigned choose(SimChooser *chooser, const SimAction *actions, unsigned n)
{
    Race *race = (Race *)chooser;
    int others = -1;
    for (unsigned i = 0; i < n; i++) {
        if (!race->late || actions[i].fiber != race->late) {
            others = others < 0 ? (int)i : others;
        } else if (!actions[i].is_effect) {
            return i;
        } else if (race->n_steps < race->n_allowed) {
            race->n_steps++;
            return i;
        }
    }
    return others < 0 ? 0 : (unsigned)others;
}

static bool run(Race *race, const SimConfig *config, bool is_held)
{
    const CrashCase *c = race->c;
    Sim *sim = sim_new(config);
    race->chooser.choose = choose;
    race->model = shadow_model_new(c->size_bytes, 512);
    crash_qcow2_prepare(c, sim, race->model);
    if (is_held)
        sim_set_chooser(sim, &race->chooser);
    sim_run(sim, race_main, race);
    sim_free(sim);
    shadow_model_free(race->model);
    return !race->problem[0];
}

static bool run_seed(const CrashCase *c, uint64_t seed, bool late_is_read)
{
    SimConfig config = {
        .seed = seed, .slow_percent = 30, .no_punch = seed % 2, .short_transfers = seed % 3 == 0};
    Race race = {.c = c, .late_is_read = late_is_read};
    if (!run(&race, &config, false))
        printf("# FAILED seed %" PRIu64 ": %s\n", seed, race.problem);
    return !race.problem[0];
}

// At every step that the late one has.
static bool run_held(const CrashCase *c, bool late_is_read, unsigned *ret_n_steps)
{
    for (unsigned n = 0;; n++) {
        Race race = {.c = c, .late_is_read = late_is_read, .n_allowed = n};
        if (!run(&race, &(SimConfig){.seed = 1}, true)) {
            printf("# FAILED, held after %u steps: %s\n", n, race.problem);
            return false;
        }
        *ret_n_steps = n;
        if (race.n_steps < n)
            return n > 1;
    }
}

int main(int argc, char **argv)
{
    const CrashCase c = {
        .name = "reuse race",
        .size_bytes = (N_OTHERS + 1) * STRIDE,
        .data = &(CrashQcow2){"qemu-img create -f qcow2 -o cluster_size=512 top $SIZE; "
                              "qemu-io -f qcow2 -c 'write -P 0 0 4k' top",
                              .is_empty = true},
    };
    CrashOptions options = {.seed = 1, .n_points = 300};
    crash_options_parse(&options, argc, argv);
    bool is_good = true;
    for (unsigned i = 0; i < 2; i++) {
        const char *what = i == 1 ? "read" : "write";
        unsigned n_steps = 0;
        bool is_fine = run_held(&c, i == 1, &n_steps);
        printf("%sok %u - a late %s does not meet a cluster taken again (§4): held at %u steps\n",
               is_fine ? "" : "not ", 2 * i + 1, what, n_steps);
        is_good &= is_fine;
        for (uint64_t seed = options.seed; seed < options.seed + options.n_points && is_fine;
             seed++)
            is_fine = run_seed(&c, seed, i == 1);
        printf("%sok %u - a late %s does not meet a cluster taken again (§4): %" PRIu64 " seeds\n",
               is_fine ? "" : "not ", 2 * i + 2, what, options.n_points);
        is_good &= is_fine;
    }
    printf("1..4\n");
    return is_good ? 0 : 1;
}
