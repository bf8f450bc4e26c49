// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: fibers that read and write blocks of their own through one port, each checking that it
// reads what it wrote last, while the test changes the graph underneath.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "chain-core/switch.h"
#include "pass-filter.h"

enum {
    LOAD_BLOCK = 4096,
    LOAD_FIBERS = 48,
    LOAD_BLOCKS_EACH = 8,
    LOAD_SIZE = LOAD_FIBERS * LOAD_BLOCKS_EACH * LOAD_BLOCK,
};

static uint64_t load_seed = 7;

typedef struct Load {
    Port *port;
    bool stop;
    FiberWaitGroup running;
    uint64_t n_requests;
    uint64_t max_ns, total_ns;
    unsigned next_index;
} Load;

static inline uint64_t load_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline void load_one_request(Fiber *self, Load *load, GRand *rand, unsigned index,
                                    uint8_t *expected)
{
    unsigned b = (unsigned)g_rand_int_range(rand, 0, LOAD_BLOCKS_EACH);
    GuestOff off = guest_off((index * LOAD_BLOCKS_EACH + b) * (uint64_t)LOAD_BLOCK);
    uint8_t buf[LOAD_BLOCK];
    uint64_t start = load_clock_ns();
    RequestKind kind = g_rand_boolean(rand) ? REQUEST_WRITE : REQUEST_READ;
    Node *node = port_enter(self, load->port, kind);
    if (kind == REQUEST_WRITE) {
        memset(buf, ++expected[b], LOAD_BLOCK);
        assert_int_equal(node_write(self, node, off, buf, LOAD_BLOCK, 0), 0);
    } else {
        assert_int_equal(node_read(self, node, off, buf, LOAD_BLOCK), 0);
        assert_int_equal(buf[0], expected[b]);
        assert_int_equal(buf[LOAD_BLOCK - 1], expected[b]);
    }
    port_leave(load->port, kind);
    uint64_t took = load_clock_ns() - start;
    load->max_ns = MAX(load->max_ns, took);
    load->total_ns += took;
    load->n_requests++;
}

static inline void load_fiber(Fiber *self, void *arg)
{
    Load *load = arg;
    unsigned index = load->next_index++;
    GRand *rand = g_rand_new_with_seed((guint32)(load_seed + index));
    uint8_t expected[LOAD_BLOCKS_EACH] = {0};
    while (!load->stop) {
        load_one_request(self, load, rand, index, expected);
        fiber_yield(self); // inline completion must not starve the others
    }
    for (unsigned b = 0; b < LOAD_BLOCKS_EACH; b++) {
        uint8_t buf[LOAD_BLOCK];
        Node *node = port_enter(self, load->port, REQUEST_READ);
        assert_int_equal(node_read(self, node,
                                   guest_off((index * LOAD_BLOCKS_EACH + b) * (uint64_t)LOAD_BLOCK),
                                   buf, LOAD_BLOCK),
                         0);
        port_leave(load->port, REQUEST_READ);
        assert_int_equal(buf[17], expected[b]);
    }
    g_rand_free(rand);
    fiber_wait_group_done(&load->running);
}

static inline void load_start(Fiber *self, Load *load, Port *port)
{
    *load = (Load){.port = port};
    fiber_wait_group_add(&load->running, LOAD_FIBERS);
    for (int i = 0; i < LOAD_FIBERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "load", load_fiber, load, NULL), 0);
}

static inline void load_stop(Fiber *self, Load *load)
{
    load->stop = true;
    fiber_wait_group_wait(self, &load->running);
}

// Between two changes at least one request of `load` ends.
static inline void load_insert_and_remove(Fiber *self, const Load *load, Node *node, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        uint64_t n_before = load->n_requests;
        Node *filter = pass_filter_new(node->loop, "pass", node->size_bytes);
        node_insert_filter(self, node, filter);
        for (unsigned turns = i % 5; turns; turns--)
            fiber_yield(self);
        node_remove_filter(self, filter);
        node_unref_close(self, filter);
        do
            fiber_yield(self);
        while (load->n_requests == n_before);
    }
}

// `idle` (NULL: not measured) is the same load without changes.
static inline void load_print_stall(const char *what, const Load *idle, const Load *load,
                                    unsigned times)
{
    print_message("# %s: %u insertions and removals, %" G_GUINT64_FORMAT
                  " requests; slowest %.0f us, mean %.1f us\n",
                  what, times, load->n_requests, (double)load->max_ns / 1e3,
                  (double)load->total_ns / 1e3 / (double)load->n_requests);
    if (idle)
        print_message("# %s without changes: slowest %.0f us, mean %.1f us\n", what,
                      (double)idle->max_ns / 1e3,
                      (double)idle->total_ns / 1e3 / (double)MAX(idle->n_requests, 1));
}
