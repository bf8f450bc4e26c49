// SPDX-License-Identifier: LGPL-2.1-or-later
// Once a tick: the window is halved when guests' latency is over twice what it could be, else it
// doubles: the job may not be what is in their way. Where there are none all of it is used. It
// begins small, before it is known whether there are any. Pure.
#include "copy-window.h"

#include <glib.h>

#define SAMPLE_NS 500000
#define TICK_NS 20000000
#define SPAN_NS UINT64_C(3000000000)
#define SHORT_NS 200000.0 // what is below is short, whatever it could be: no disk comes into it

void copy_window_init(CopyWindow *window, uint64_t min_bytes, uint64_t max_bytes, uint64_t now_ns)
{
    *window = (CopyWindow){.limit_bytes = min_bytes,
                           .min_bytes = min_bytes,
                           .max_bytes = max_bytes,
                           .tick_ns = now_ns,
                           .span_ns = now_ns};
}

bool copy_window_wants_sample(const CopyWindow *window, uint64_t now_ns)
{
    return window->min_bytes < window->max_bytes && now_ns - window->sampled_ns >= SAMPLE_NS;
}

static double best_ns(const CopyWindow *window)
{
    double a = window->best_ns[0], b = window->best_ns[1];
    return a && b ? MIN(a, b) : MAX(a, b);
}

static void note_latency(CopyWindow *window, double latency_ns, uint64_t now_ns)
{
    if (now_ns - window->span_ns >= SPAN_NS) {
        window->best_ns[1] = window->best_ns[0];
        window->best_ns[0] = 0;
        window->span_ns = now_ns;
    }
    if (!window->best_ns[0] || latency_ns < window->best_ns[0])
        window->best_ns[0] = latency_ns;
}

static void begin_tick(CopyWindow *window, PortLoad load, uint64_t now_ns)
{
    window->tick_ns = now_ns;
    window->n_ended_before = load.n_ended;
    window->in_flight_sum = 0;
    window->n_samples = 0;
}

static void set_limit(CopyWindow *window, double latency_ns)
{
    bool is_long = latency_ns > SHORT_NS && latency_ns > 2 * best_ns(window);
    uint64_t limit = is_long ? window->limit_bytes / 2 : window->limit_bytes * 2;
    window->limit_bytes = CLAMP(limit, window->min_bytes, window->max_bytes);
}

void copy_window_sample(CopyWindow *window, PortLoad load, uint64_t now_ns)
{
    window->sampled_ns = now_ns;
    window->in_flight_sum += load.n_in_flight;
    window->n_samples++;
    if (load.n_ended < window->n_ended_before) // a port is gone
        begin_tick(window, load, now_ns);
    uint64_t took_ns = now_ns - window->tick_ns, n = load.n_ended - window->n_ended_before;
    if (took_ns < TICK_NS)
        return;
    double in_flight = window->in_flight_sum / window->n_samples;
    // None ended: those in flight have taken that long at least.
    double latency_ns = in_flight * (double)took_ns / (double)MAX(n, 1);
    if (latency_ns > 0)
        note_latency(window, latency_ns, now_ns);
    if (latency_ns > 0 || n > 0)
        set_limit(window, latency_ns);
    else
        window->limit_bytes = window->max_bytes;
    begin_tick(window, load, now_ns);
}
