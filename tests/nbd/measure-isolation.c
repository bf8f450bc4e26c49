// SPDX-License-Identifier: LGPL-2.1-or-later
// What one client suffers from another: latency of 4 KiB reads, one at a time, alone and beside a
// client that misbehaves, and the memory that the server holds meanwhile. Each flood is also aimed
// at another server in the same process: what that costs is the machine's doing, not the server's.
// Prints; judges nothing, because the machine may be busy. usage: measure-isolation [SECONDS-EACH]
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "client.h"
#include "export.h"
#include "fixture.h"

enum { SIZE = 64 << 20, MAX_SAMPLES = 1 << 20 };

typedef struct Nuisance {
    const char *name;
    uint16_t type;
    uint32_t length;
    bool reads_replies;
    bool sends_partly; // stops in the middle of a request
    Fixture *f;
    atomic_bool is_over;
    atomic_bool has_begun;
} Nuisance;

static bool can(int fd, short events)
{
    struct pollfd p = {fd, events, 0};
    return poll(&p, 1, 2) == 1 && p.revents & events;
}

// Sends as fast as the socket takes it.
static void *annoy(void *arg)
{
    Nuisance *n = arg;
    static const ClientConfig config = {.style = NBDS_STYLE_SIMPLE};
    g_autoptr(Client) c = client_new(n->f->socket_path, &config);
    g_autofree uint8_t *data = g_malloc0(1 << 20);
    uint8_t batch[64 * 28];
    size_t batch_bytes = sizeof batch, sent = 0;
    for (unsigned i = 0; i < 64; i++) {
        uint8_t *p = batch + i * 28;
        nbds_wire_put_u32(p, 0x25609513);
        nbds_wire_put_u16(p + 4, 0);
        nbds_wire_put_u16(p + 6, n->type);
        nbds_wire_put_u64(p + 8, i);
        nbds_wire_put_u64(p + 16, n->length ? (uint64_t)i * n->length % SIZE : 0);
        nbds_wire_put_u32(p + 24, n->length);
    }
    if (n->sends_partly) {
        client_send(c, batch, 28 + 14);
        batch_bytes = 0;
    }
    while (!n->is_over) {
        short events = (batch_bytes ? POLLOUT : 0) | (n->reads_replies ? POLLIN : 0);
        if (!events || !can(c->fd, events)) {
            n->has_begun = true;
            if (!events)
                g_usleep(2000);
            continue;
        }
        if (batch_bytes) {
            ssize_t r = send(c->fd, batch + sent, batch_bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (r > 0)
                sent = (sent + r) % batch_bytes;
        }
        if (n->reads_replies) {
            recv(c->fd, data, 1 << 20, MSG_DONTWAIT);
            n->has_begun = true;
        }
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

typedef struct Held {
    Fixture *f;
    uint64_t bytes;
} Held;

static void look(Fiber *self, void *arg)
{
    Held *held = arg;
    held->bytes = held->f->exports[0]->server_loop->pool.taken_bytes;
}

static void measure(Fixture *f, const char *name, double seconds)
{
    static const ClientConfig config = {.style = NBDS_STYLE_STRUCTURED};
    g_autoptr(Client) c = client_new(f->socket_path, &config);
    g_autofree uint32_t *samples = g_new(uint32_t, MAX_SAMPLES);
    unsigned n = 0;
    uint8_t data[4096];
    int64_t end = g_get_monotonic_time() + seconds * 1e6;
    uint64_t most_held = 0;
    while (n < MAX_SAMPLES) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        client_do(c, NBDS_CMD_READ, 0, (n * 7919ull % (SIZE / 4096)) * 4096, 4096, data);
        clock_gettime(CLOCK_MONOTONIC, &b);
        samples[n++] = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
        if (n % 1024 == 0) {
            Held held = {f, 0};
            fixture_run(f, look, &held);
            most_held = MAX(most_held, held.bytes);
            if (g_get_monotonic_time() > end)
                break;
        }
    }
    qsort(samples, n, sizeof *samples, compare);
    printf("%-34s %8u reads  p50 %7.1f us  p99 %7.1f us  p99.9 %7.1f us  buffers %6.1f MiB\n", name,
           n, samples[n / 2] / 1e3, samples[n - 1 - n / 100] / 1e3, samples[n - 1 - n / 1000] / 1e3,
           most_held / 1048576.0);
    fflush(stdout);
}

static Fixture *new_server(void)
{
    FixtureConfig config = {.size_bytes = SIZE, .busy_poll_ns = 50000}; // the daemon's default
    Fixture *f = fixture_new(&config);
    memset(f->nodes[0]->kinds, NODE_EXTENT_OPAQUE, SIZE / MEMORY_NODE_BLOCK);
    return f;
}

static void measure_beside(Nuisance *n, bool at_another_server, double seconds)
{
    g_autoptr(Fixture) f = new_server();
    if (!n) {
        measure(f, "alone", seconds);
        return;
    }
    g_autoptr(Fixture) other = new_server();
    n->f = at_another_server ? other : f;
    n->is_over = n->has_begun = false;
    GThread *thread = g_thread_new("nuisance", annoy, n);
    while (!n->has_begun)
        g_usleep(1000);
    measure(f, at_another_server ? "(the next one, elsewhere)" : n->name, seconds);
    n->is_over = true;
    g_thread_join(thread);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    Nuisance nuisances[] = {
        {.name = "stalls in the middle of a request", .type = NBDS_CMD_WRITE, .sends_partly = true},
        {.name = "reads 256 KiB, never takes replies", .type = NBDS_CMD_READ, .length = 256 << 10},
        {.name = "reads 4 KiB, never takes replies", .type = NBDS_CMD_READ, .length = 4096},
        {.name = "flushes, never takes replies", .type = NBDS_CMD_FLUSH},
        {.name = "floods with 4 KiB reads",
         .type = NBDS_CMD_READ,
         .length = 4096,
         .reads_replies = true},
        {.name = "floods with 256 KiB reads",
         .type = NBDS_CMD_READ,
         .length = 256 << 10,
         .reads_replies = true},
        {.name = "floods with flushes", .type = NBDS_CMD_FLUSH, .reads_replies = true},
        {.name = "floods with nonsense", .type = 99, .reads_replies = true},
    };
    measure_beside(NULL, false, seconds);
    for (unsigned i = 0; i < G_N_ELEMENTS(nuisances); i++) {
        if (nuisances[i].reads_replies)
            measure_beside(&nuisances[i], true, seconds);
        measure_beside(&nuisances[i], false, seconds);
    }
    return 0;
}
