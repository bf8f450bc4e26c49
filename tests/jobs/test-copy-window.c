// SPDX-License-Identifier: LGPL-2.1-or-later
// The window of a copy, and the limit on its rate, over made-up time.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "copy-rate.h"
#include "copy-window.h"

#define MS UINT64_C(1000000)
enum { MIN_BYTES = 1 << 20, MAX_BYTES = 16 << 20 };

typedef struct Guests {
    CopyWindow window;
    uint64_t now_ns;
    PortLoad load;
} Guests;

// Samples meet none of the guests' requests, so short they are.
static void pass_between_samples(Guests *g, uint64_t for_ns)
{
    uint64_t end_ns = g->now_ns + for_ns;
    for (g->load.n_in_flight = 0; g->now_ns < end_ns; g->now_ns += MS) {
        g->load.n_ended++;
        if (copy_window_wants_sample(&g->window, g->now_ns))
            copy_window_sample(&g->window, g->load, g->now_ns);
    }
}

// So long each of `n` requests at a time takes `latency_ns`.
static void pass(Guests *g, uint64_t for_ns, unsigned n, uint64_t latency_ns)
{
    uint64_t end_ns = g->now_ns + for_ns;
    double ended = 0;
    for (; g->now_ns < end_ns; g->now_ns += MS) {
        g->load.n_in_flight = n;
        for (ended += (double)n * MS / (double)latency_ns; ended >= 1; ended--)
            g->load.n_ended++;
        if (copy_window_wants_sample(&g->window, g->now_ns))
            copy_window_sample(&g->window, g->load, g->now_ns);
    }
}

static void the_window_gives_way_to_guests_and_grows_back(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    pass(&g, 1000 * MS, 0, MS);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
    pass(&g, 1000 * MS, 4, MS);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
    pass(&g, 200 * MS, 4, 5 * MS);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
    pass(&g, 200 * MS, 4, MS);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
}

static void a_window_begins_small_and_is_whole_where_there_are_no_guests(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
    pass(&g, 15 * MS, 4, MS);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
    pass(&g, 200 * MS, 4, 5 * MS);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
    pass(&g, 60 * MS, 0, MS);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
}

static void requests_too_short_to_be_met_let_it_grow(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    pass_between_samples(&g, 200 * MS);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
}

static void requests_that_do_not_end_count_too(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    pass(&g, 1000 * MS, 1, MS);
    pass(&g, 200 * MS, 1, 100000 * MS);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
}

static void what_guests_always_have_is_no_reason_for_ever(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    pass(&g, 100 * MS, 4, MS);
    pass(&g, 200 * MS, 4, 5 * MS);
    assert_int_equal(g.window.limit_bytes, MIN_BYTES);
    pass(&g, 8000 * MS, 4, 5 * MS); // their load has changed, not the job's
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
}

static void short_latencies_are_nobodys_fault(void **state)
{
    Guests g = {.now_ns = 1000 * MS};
    copy_window_init(&g.window, MIN_BYTES, MAX_BYTES, g.now_ns);
    pass(&g, 200 * MS, 4, MS / 100);
    pass(&g, 200 * MS, 4, MS / 10);
    assert_int_equal(g.window.limit_bytes, MAX_BYTES);
}

static uint64_t bytes_in(CopyRate *rate, uint64_t *now_ns, uint64_t for_ns, uint64_t chunk)
{
    uint64_t end_ns = *now_ns + for_ns, bytes = 0;
    for (;;) {
        uint64_t wait_ns = copy_rate_wait_ns(rate, *now_ns);
        if (*now_ns + wait_ns >= end_ns) {
            *now_ns = end_ns;
            return bytes;
        }
        *now_ns += wait_ns;
        if (wait_ns)
            continue;
        copy_rate_take(rate, (int64_t)chunk);
        bytes += chunk;
    }
}

static void the_rate_holds_for_chunks_of_any_size(void **state)
{
    static const uint64_t chunks[] = {512, 65536, 1 << 20, 64 << 20};
    for (unsigned i = 0; i < 4; i++) {
        CopyRate rate = {0};
        uint64_t now_ns = 5 * MS;
        assert_int_equal(copy_rate_wait_ns(&rate, now_ns), 0);
        copy_rate_set(&rate, 1 << 20, now_ns);
        uint64_t bytes = bytes_in(&rate, &now_ns, 1000000 * MS, chunks[i]);
        assert_in_range(bytes, (UINT64_C(1000) << 20) - chunks[i],
                        (UINT64_C(1000) << 20) + (1 << 20) + chunks[i]);
    }
}

static void what_was_not_needed_is_given_back(void **state)
{
    CopyRate rate = {0};
    copy_rate_set(&rate, 1000, 0);
    copy_rate_wait_ns(&rate, 1000 * MS);
    copy_rate_take(&rate, 100000);
    assert_true(copy_rate_wait_ns(&rate, 1000 * MS) > 90000 * MS);
    copy_rate_take(&rate, -100000);
    assert_int_equal(copy_rate_wait_ns(&rate, 1000 * MS), 0);
}

static void another_rate_holds_at_once(void **state)
{
    CopyRate rate = {0};
    uint64_t now_ns = MS;
    copy_rate_set(&rate, 1000, now_ns);
    now_ns += 1000 * MS;
    assert_int_equal(copy_rate_wait_ns(&rate, now_ns), 0);
    copy_rate_take(&rate, 100000);
    assert_true(copy_rate_wait_ns(&rate, now_ns) > 90000 * MS);
    copy_rate_set(&rate, 1000000, now_ns);
    assert_in_range(copy_rate_wait_ns(&rate, now_ns), 90 * MS, 110 * MS);
    copy_rate_set(&rate, 0, now_ns);
    assert_int_equal(copy_rate_wait_ns(&rate, now_ns), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_window_gives_way_to_guests_and_grows_back),
        cmocka_unit_test(a_window_begins_small_and_is_whole_where_there_are_no_guests),
        cmocka_unit_test(requests_too_short_to_be_met_let_it_grow),
        cmocka_unit_test(requests_that_do_not_end_count_too),
        cmocka_unit_test(what_guests_always_have_is_no_reason_for_ever),
        cmocka_unit_test(short_latencies_are_nobodys_fault),
        cmocka_unit_test(the_rate_holds_for_chunks_of_any_size),
        cmocka_unit_test(what_was_not_needed_is_given_back),
        cmocka_unit_test(another_rate_holds_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
