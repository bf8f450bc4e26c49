// SPDX-License-Identifier: LGPL-2.1-or-later
// How long writes wait while internal snapshots of an image are made and deleted: fibers write at
// full rate through a port, each write's time is taken. Prints the slowest write without a
// snapshot, while one is made, just after, and while it is deleted; how long making and deleting
// took; and how long the writers were held at the moment itself, beside the slowest write in flight.
//
// usage: snapshot-bench IMAGE [WRITERS [ROUNDS [WRITE-KIB]]]     (IMAGE is written over)
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"

enum { MAX_WRITERS = 256, HOT_BYTES = 1 << 30 };

typedef enum Phase { PLAIN, MAKING, AFTER, DELETING, N_PHASES } Phase;
static const char *const phase_names[] = {"plain", "making", "after", "deleting"};

typedef struct Bench {
    const char *path;
    unsigned n_writers, n_rounds, write_bytes;
    MapMemory *memory;
    Node *head;
    Port port;
    Phase phase;
    GArray *times[N_PHASES]; // double, ms
    bool is_over;
    FiberWaitGroup writers;
    uint64_t random;
} Bench;

static double now_ms(void)
{
    return g_get_monotonic_time() / 1000.0;
}

static uint64_t pick(Bench *b, uint64_t bound)
{
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return b->random % bound;
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
        double begun = now_ms();
        Phase phase = b->phase;
        Node *node = port_enter(self, &b->port, REQUEST_WRITE);
        int r = node_write(self, node, off, buf, b->write_bytes, 0);
        port_leave(&b->port, REQUEST_WRITE);
        double took = now_ms() - begun;
        if (r < 0) {
            printf("a write fails: %s\n", g_strerror(-r));
            b->is_over = true;
        }
        // In whichever of the phases it began or ended.
        g_array_append_val(b->times[MAX(phase, b->phase)], took);
        fiber_yield(self);
    }
    fiber_wait_group_done(&b->writers);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(Bench *b)
{
    for (unsigned i = 0; i < N_PHASES; i++) {
        GArray *t = b->times[i];
        g_array_sort(t, compare);
        if (t->len)
            printf("  writes %-9s %8u  p50 %8.3f  p99 %8.3f  max %8.3f ms\n", phase_names[i],
                   t->len, g_array_index(t, double, t->len / 2),
                   g_array_index(t, double, (guint64)t->len * 99 / 100),
                   g_array_index(t, double, t->len - 1));
        g_array_set_size(t, 0);
    }
}

static void one_round(Fiber *self, Bench *b)
{
    g_autoptr(GError) error = NULL;
    Qcow2NewSnapshot *s;
    b->phase = PLAIN;
    fiber_sleep(self, UINT64_C(2000000000));
    double t0 = now_ms();
    b->phase = MAKING;
    if (qcow2_snapshot_prepare(self, b->head, "bench", &s, &error) < 0) {
        printf("%s\n", error->message);
        return;
    }
    double t1 = now_ms();
    node_drain_begin(self, b->head, REQUESTS_THAT_WRITE);
    double t2 = now_ms();
    qcow2_snapshot_take(s);
    node_drain_end(b->head, REQUESTS_THAT_WRITE);
    double t3 = now_ms();
    if (qcow2_snapshot_finish(self, s, NULL, &error) < 0) {
        printf("%s\n", error->message);
        return;
    }
    double t4 = now_ms();
    b->phase = AFTER;
    fiber_sleep(self, UINT64_C(1000000000));
    double t5 = now_ms();
    b->phase = DELETING;
    if (qcow2_snapshot_delete(self, b->head, NULL, "bench", NULL, &error) < 0)
        printf("%s\n", error->message);
    printf("made in %.1f ms (ahead %.1f, drain %.3f, moment %.3f, counting and disk %.1f), deleted "
           "in %.1f ms\n",
           t4 - t0, t1 - t0, t2 - t1, t3 - t2, t4 - t3, now_ms() - t5);
    print_times(b);
    fflush(stdout);
}

static void open_head(Fiber *self, Bench *b)
{
    g_autoptr(GError) error = NULL;
    Qcow2OpenOptions options = {.memory = b->memory};
    Qcow2Image *image = NULL;
    File *file;
    if (file_open(self, b->path, FILE_WRITABLE, &file, &error) < 0 ||
        qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &b->head, &error) < 0) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    qcow2_image_unref_close(self, image);
}

static void bench_fiber(Fiber *self, void *arg)
{
    Bench *b = arg;
    open_head(self, b);
    port_init(&b->port, b->head, "bench");
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
    loop_stop(fiber_loop(self));
}

static unsigned number(int argc, char **argv, int i, unsigned fallback)
{
    return argc > i ? (unsigned)atoi(argv[i]) : fallback;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    Loop *loop = argc > 1 ? loop_new(&(LoopConfig){0}, &error) : NULL;
    if (!loop) {
        fprintf(stderr, "%s\n", error ? error->message : "usage: snapshot-bench IMAGE …");
        return 1;
    }
    Bench b = {.path = argv[1],
               .n_writers = MIN(number(argc, argv, 2, 16), MAX_WRITERS),
               .n_rounds = number(argc, argv, 3, 3),
               .write_bytes = number(argc, argv, 4, 64) << 10,
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
