// SPDX-License-Identifier: LGPL-2.1-or-later
// How long writes wait while snapshots are made: fibers write at full rate through a port, and each
// write's time is taken. Prints for each phase how long it took, and the slowest write that was in
// flight in it, so that a slow one shows what it lay beside.
//
// usage: snapshot-bench KIND IMAGE [WRITERS [ROUNDS [WRITE-KIB]]]     (IMAGE is written over)
//
// KIND: internal; external (overlays IMAGE.1, IMAGE.2, … are made, and removed at the end); or
// sync, the measure for both: nothing but an fdatasync() of the image beside the same load.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/external-snapshot.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"

enum { MAX_WRITERS = 256, HOT_BYTES = 1 << 30 };

// In the order in which a round has them.
typedef enum Phase { PLAIN, AHEAD, HELD, FINISHING, AFTER, DELETING, N_PHASES } Phase;
static const char *const phase_names[] = {"plain",     "ahead", "held",
                                          "finishing", "after", "deleting"};

typedef struct Bench Bench;

typedef struct Kind {
    const char *name;
    int (*round)(Fiber *self, Bench *b, GError **error);
} Kind;

struct Bench {
    const char *path;
    const Kind *kind;
    unsigned n_writers, n_rounds, write_bytes, n_overlays;
    MapMemory *memory;
    Node *head;
    Port port;
    Phase phase;
    double since;             // of the phase
    double took[N_PHASES];    // ms
    double slowest[N_PHASES]; // write that was in flight in it, ms
    GArray *times[N_PHASES];  // of writes that ended in it
    bool is_over;
    FiberWaitGroup writers;
    uint64_t random;
};

static double now_ms(void)
{
    return g_get_monotonic_time() / 1000.0;
}

// -- writers --------------------------------------------------------------------------------------

static uint64_t pick(Bench *b, uint64_t bound)
{
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return b->random % bound;
}

static void note(Bench *b, Phase begun_in, double took)
{
    for (Phase p = MIN(begun_in, b->phase); p <= b->phase; p++)
        b->slowest[p] = MAX(b->slowest[p], took);
    g_array_append_val(b->times[b->phase], took);
}

static void writer(Fiber *self, void *arg)
{
    Bench *b = arg;
    g_autofree uint8_t *buf = g_malloc(b->write_bytes);
    memset(buf, 0x5a, b->write_bytes);
    uint64_t room = MIN(b->head->size_bytes, HOT_BYTES) / b->write_bytes;
    uint64_t stride = b->head->size_bytes / MIN(b->head->size_bytes, HOT_BYTES) * b->write_bytes;
    while (!b->is_over) {
        GuestOff off = guest_off(pick(b, room) * stride);
        Phase begun_in = b->phase;
        double begun = now_ms();
        Node *node = port_enter(self, &b->port, REQUEST_WRITE);
        int r = node_write(self, node, off, buf, b->write_bytes, 0);
        port_leave(&b->port, REQUEST_WRITE);
        note(b, begun_in, now_ms() - begun);
        if (r < 0) {
            printf("a write fails: %s\n", g_strerror(-r));
            b->is_over = true;
        }
        fiber_yield(self);
    }
    fiber_wait_group_done(&b->writers);
}

// -- rounds ---------------------------------------------------------------------------------------

static void begin_phase(Bench *b, Phase phase)
{
    double now = now_ms();
    b->took[b->phase] = now - b->since;
    b->phase = phase;
    b->since = now;
}

static int open_qcow2(Fiber *self, Bench *b, const char *path, Node **ret_node, GError **error)
{
    Qcow2OpenOptions options = {.memory = b->memory};
    Qcow2Image *image;
    File *file;
    int r = file_open(self, path, FILE_WRITABLE, &file, error);
    if (r == 0)
        r = qcow2_image_open(self, file, &options, &image, error);
    if (r < 0)
        return r;
    r = qcow2_view_new(self, image, NULL, ret_node, error);
    qcow2_image_unref_close(self, image);
    return r;
}

static int sync_round(Fiber *self, Bench *b, GError **error)
{
    File *file;
    int r = file_open(self, b->path, 0, &file, error);
    if (r < 0)
        return r;
    begin_phase(b, AHEAD);
    r = file_flush(self, file);
    begin_phase(b, AFTER);
    file_close(self, file);
    return r;
}

static int internal_round(Fiber *self, Bench *b, GError **error)
{
    Qcow2NewSnapshot *s;
    begin_phase(b, AHEAD);
    int r = qcow2_snapshot_prepare(self, b->head, "bench", &s, error);
    if (r < 0)
        return r;
    begin_phase(b, HELD);
    node_drain_begin(self, b->head, REQUESTS_THAT_WRITE);
    qcow2_snapshot_take(s);
    node_drain_end(b->head, REQUESTS_THAT_WRITE);
    begin_phase(b, FINISHING);
    r = qcow2_snapshot_finish(self, s, NULL, error);
    begin_phase(b, AFTER);
    fiber_sleep(self, UINT64_C(1000000000));
    begin_phase(b, DELETING);
    return r < 0 ? r : qcow2_snapshot_delete(self, b->head, NULL, "bench", NULL, error);
}

static char *overlay_path(const Bench *b, unsigned number)
{
    return number ? g_strdup_printf("%s.%u", b->path, number) : g_strdup(b->path);
}

static int make_overlay(Fiber *self, Bench *b, Node **ret_overlay, GError **error)
{
    g_autofree char *below = overlay_path(b, b->n_overlays);
    g_autofree char *path = overlay_path(b, ++b->n_overlays);
    g_autofree char *name = g_path_get_basename(below);
    Qcow2CreateOptions options = {
        .size_bytes = b->head->size_bytes, .backing_name = name, .backing_format = "qcow2"};
    int r = qcow2_create(self, path, &options, error);
    return r < 0 ? r : open_qcow2(self, b, path, ret_overlay, error);
}

static int external_round(Fiber *self, Bench *b, GError **error)
{
    Node *overlay;
    Switch *s;
    begin_phase(b, AHEAD);
    int r = make_overlay(self, b, &overlay, error);
    if (r == 0)
        r = external_snapshot_prepare(self, b->head, overlay, b->memory, &s, error);
    if (r < 0)
        return r;
    begin_phase(b, HELD);
    switch_drain_always(self, s);
    switch_commit(s);
    switch_resume(s);
    begin_phase(b, FINISHING);
    switch_end(self, s);
    Node *old = b->head;
    b->head = overlay;
    r = external_snapshot_finish(self, old, error);
    node_unref_close(self, old);
    begin_phase(b, AFTER);
    return r;
}

static const Kind kinds[] = {
    {"internal", internal_round},
    {"external", external_round},
    {"sync", sync_round},
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_round(Bench *b)
{
    for (unsigned i = 0; i < N_PHASES; i++) {
        GArray *t = b->times[i];
        g_array_sort(t, compare);
        if (t->len)
            printf("  %-9s %9.2f ms %8u writes  p50 %8.3f  p99 %8.3f  slowest in flight %8.3f ms\n",
                   phase_names[i], b->took[i], t->len, g_array_index(t, double, t->len / 2),
                   g_array_index(t, double, (guint64)t->len * 99 / 100), b->slowest[i]);
        else if (b->took[i] > 0)
            printf("  %-9s %9.2f ms        0 writes%44s %8.3f ms\n", phase_names[i], b->took[i],
                   "slowest in flight", b->slowest[i]);
        g_array_set_size(t, 0);
        b->took[i] = b->slowest[i] = 0;
    }
}

static void one_round(Fiber *self, Bench *b)
{
    g_autoptr(GError) error = NULL;
    begin_phase(b, PLAIN);
    fiber_sleep(self, UINT64_C(2000000000));
    if (b->kind->round(self, b, &error) < 0) {
        printf("%s\n", error ? error->message : "it fails");
        b->is_over = true;
    }
    if (b->phase == AFTER)
        fiber_sleep(self, UINT64_C(1000000000));
    begin_phase(b, PLAIN);
    printf("%s:\n", b->kind->name);
    print_round(b);
    fflush(stdout);
}

static void remove_overlays(Fiber *self, Bench *b)
{
    for (unsigned i = 1; i <= b->n_overlays; i++) {
        g_autofree char *path = overlay_path(b, i);
        file_unlink(self, path, NULL);
    }
}

static void bench_fiber(Fiber *self, void *arg)
{
    Bench *b = arg;
    g_autoptr(GError) error = NULL;
    if (open_qcow2(self, b, b->path, &b->head, &error) < 0) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    port_init(&b->port, b->head, "bench");
    b->since = now_ms();
    fiber_wait_group_add(&b->writers, b->n_writers);
    for (unsigned i = 0; i < b->n_writers; i++)
        if (fiber_spawn(fiber_loop(self), "writer", writer, b, NULL) < 0)
            fiber_wait_group_done(&b->writers);
    for (unsigned i = 0; i < b->n_rounds && !b->is_over; i++)
        one_round(self, b);
    b->is_over = true;
    fiber_wait_group_wait(self, &b->writers);
    port_done(self, &b->port);
    node_unref_close(self, b->head);
    remove_overlays(self, b);
    loop_stop(fiber_loop(self));
}

// -- start ----------------------------------------------------------------------------------------

static const Kind *find_kind(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_equal(name, kinds[i].name))
            return &kinds[i];
    return NULL;
}

static unsigned number(int argc, char **argv, int i, unsigned fallback)
{
    return argc > i ? (unsigned)atoi(argv[i]) : fallback;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    const Kind *kind = argc > 2 ? find_kind(argv[1]) : NULL;
    Loop *loop = kind ? loop_new(&(LoopConfig){0}, &error) : NULL;
    if (!loop) {
        fprintf(stderr, "%s\n",
                error ? error->message : "usage: snapshot-bench internal|external|sync IMAGE …");
        return 1;
    }
    Bench b = {.path = argv[2],
               .kind = kind,
               .n_writers = MIN(number(argc, argv, 3, 16), MAX_WRITERS),
               .n_rounds = number(argc, argv, 4, 3),
               .write_bytes = number(argc, argv, 5, 64) << 10,
               .memory = map_memory_new(64 << 20),
               .random = 88172645463325252};
    for (unsigned i = 0; i < N_PHASES; i++)
        b.times[i] = g_array_new(false, false, sizeof(double));
    if (fiber_spawn(loop, "bench", bench_fiber, &b, NULL) == 0)
        loop_run(loop);
    loop_free(loop);
    map_memory_free(b.memory);
    for (unsigned i = 0; i < N_PHASES; i++)
        g_array_unref(b.times[i]);
    return 0;
}
