// SPDX-License-Identifier: LGPL-2.1-or-later
// The life of a freed range:
//
//     freed_add()             freed_add_durable()          freed_turn()
//     ───────────▶ unlinked ─────────────────────▶ durable ────────────▶ releasing
//                     ▲ │  written back                      turn of pins    │ old pins drained
//                     └─┘  not written                                       ▼
//                                                                     release() in a fiber
//
// Two generations of pins: requests hold pins[pin_now]. When ranges begin to be released the turn
// passes to the other pin, which nobody holds, and the ranges wait until the old one has no holder:
// every request that could have looked them up has then ended.

#include "qcow2/freed.h"
#include "chain-core/mutant.h"

static void pin_drained(IoPin *pin);

void freed_init(FreedClusters *f, Loop *loop, FiberWaitGroup *fibers, FreedReleaseFn *release,
                void *arg)
{
    *f = (FreedClusters){
        .loop = loop,
        .fibers = fibers,
        .release = release,
        .release_arg = arg,
        .unlinked = g_array_new(false, false, sizeof(FreedRange)),
        .durable = g_array_new(false, false, sizeof(ClusterRange)),
        .releasing = g_array_new(false, false, sizeof(ClusterRange)),
    };
    for (unsigned i = 0; i < 2; i++)
        f->pins[i] = (FreedPin){{.drained = pin_drained}, f, i};
}

void freed_done(FreedClusters *f)
{
    g_clear_pointer(&f->unlinked, g_array_unref);
    g_clear_pointer(&f->durable, g_array_unref);
    g_clear_pointer(&f->releasing, g_array_unref);
}

void freed_add(FreedClusters *f, ClusterRange range, HostOff by)
{
    if (MUTANT("freed-only-when-durable")) {
        freed_add_durable(f, range);
        freed_turn(f);
        return;
    }
    guint n = f->unlinked->len;
    FreedRange *last = n ? &g_array_index(f->unlinked, FreedRange, n - 1) : NULL;
    if (last && last->by.v == by.v && last->range.first + last->range.n == range.first) {
        last->range.n += range.n;
    } else {
        FreedRange freed = {range, by};
        g_array_append_val(f->unlinked, freed);
    }
    f->n_unlinked += range.n;
}

GArray *freed_take(FreedClusters *f)
{
    GArray *unlinked = f->unlinked;
    f->unlinked = g_array_new(false, false, sizeof(FreedRange));
    f->n_unlinked = 0;
    return unlinked;
}

void freed_add_durable(FreedClusters *f, ClusterRange range)
{
    g_array_append_val(f->durable, range);
}

void freed_turn(FreedClusters *f)
{
    unsigned old = f->pin_now;
    // One fiber releases at a time: where damaged tables name a cluster twice, a second one would
    // punch what the first has made free.
    if (!f->durable->len || f->releasing->len || f->n_fibers)
        return;
    if (f->pins[!old].pin.n_holders && !MUTANT("freed-waits-for-pins"))
        return;
    if (f->n_holds && !MUTANT("freed-held-for-snapshot"))
        return;
    GArray *empty = f->releasing;
    f->releasing = f->durable;
    f->durable = empty;
    // Punching takes few calls then. A shared cluster that was freed twice stays there twice.
    cluster_ranges_merge(f->releasing);
    f->pin_now = !old;
    if (f->pins[old].pin.n_holders == 0 || MUTANT("freed-waits-for-pins"))
        pin_drained(&f->pins[old].pin);
}

static void release_fiber(Fiber *self, void *arg)
{
    FreedClusters *f = arg;
    g_autoptr(GArray) ranges = f->releasing;
    f->releasing = g_array_new(false, false, sizeof(ClusterRange));
    for (guint i = 0; i < ranges->len; i++)
        f->release(self, f->release_arg, g_array_index(ranges, ClusterRange, i));
    f->n_fibers--;
    f->n_released++;
    freed_turn(f);
    fiber_queue_wake_all(&f->released);
    fiber_wait_group_done(f->fibers);
}

static void pin_drained(IoPin *pin)
{
    const FreedPin *own = (const FreedPin *)pin;
    FreedClusters *f = own->freed;
    if (own->index == f->pin_now || !f->releasing->len)
        return;
    fiber_wait_group_add(f->fibers, 1);
    f->n_fibers++;
    if (fiber_spawn(f->loop, "release clusters", release_fiber, f, NULL) < 0) {
        // No stack to be had: keep them; the next write-back tries again.
        g_array_append_vals(f->durable, f->releasing->data, f->releasing->len);
        g_array_set_size(f->releasing, 0);
        f->n_fibers--;
        fiber_queue_wake_all(&f->released);
        fiber_wait_group_done(f->fibers);
    }
}

void freed_hold(FreedClusters *f)
{
    f->n_holds++;
}

void freed_resume(FreedClusters *f)
{
    if (--f->n_holds)
        return;
    freed_turn(f);
    fiber_queue_wake_all(&f->released);
}

bool freed_is_pending(const FreedClusters *f)
{
    return f->unlinked->len || f->durable->len || f->releasing->len || f->n_fibers;
}

static uint64_t n_clusters(const GArray *ranges)
{
    uint64_t n = 0;
    for (guint i = 0; i < ranges->len; i++)
        n += g_array_index(ranges, ClusterRange, i).n;
    return n;
}

uint64_t freed_n_pending(const FreedClusters *f)
{
    return f->n_unlinked + n_clusters(f->durable) + n_clusters(f->releasing);
}

void freed_wait(Fiber *self, FreedClusters *f)
{
    while (f->n_holds)
        fiber_queue_wait(self, &f->released, false, "release of freed clusters is held");
    // What is durable now may stand behind one batch that waits for its pins and one that is being
    // released.
    for (unsigned n = 0; n < 3 && (f->releasing->len || f->n_fibers); n++)
        fiber_queue_wait(self, &f->released, false, "release of freed clusters");
}
