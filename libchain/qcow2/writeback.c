// SPDX-License-Identifier: LGPL-2.1-or-later
// When metadata is written back, and who waits for it. What a pass does is the second chapter,
// writeback-pass.c.
//
// Terms
//   dirty      changed in memory since it was last copied: slices, entries of the L1 and the
//              refcount table
//   pass       a copy of all that is dirty, taken in one step, and its way to the disk
//   durable    covered by a sync that succeeded
//   counted    a cluster whose refcount on disk is at least what memory says
//   unlinked   a cluster that an entry named, before it was changed in memory (freed.c)
//
// Invariants
//   1. Dirty metadata has its space on the host (metadata-set.c). A pass needs none.
//   2. An L2 entry in memory names data whose write has completed, so a pass that copies the entry
//      syncs the data before the entry is written.
//   3. An entry on disk names only what is counted: refcounts are durable before L2 slices and L1
//      entries, a refcount block before the entry that names it, an L2 table before its L1 entry.
//   4. The refcount of an unlinked cluster is lowered only when the change that unlinked it is
//      durable and no pin from before is left.
//   5. What a pass could not write is dirty again, together with what must not be written before
//      it; all else of the pass is durable. `rest` names it until the next pass ends.
//   6. What a failed pass left does not call for another one in the background: as much again must
//      have become dirty or unlinked. Flushes, and writes that find no memory left, always try
//      anew.
//   7. Once a sync has failed, nothing is written any more (docs/ordering.md §9).
//
// States of an image's write-back, and what changes them
//
//              writeback_run()                 the pass ends, nobody waits
//        idle ────────────────▶ running ───────────────────────────────▶ idle
//                               │  ▲  └─ callers meanwhile wait: the running pass may have been
//                               │  │     copied before their changes
//                               │  └──── the pass ends: the first of them runs the next, for all
//                               ▼
//                             ended    writeback_end(), or a failed sync: -EIO for good
//
// In fibers on the image's loop.

#include "qcow2/writeback.h"
#include "chain-core/mutant.h"

#include <errno.h>
#include <stddef.h>

enum {
    // Write back once this much is dirty, even without a flush by the guest: bounds memory.
    BACKGROUND_DIRTY_BYTES = 4 << 20,
    MAX_DIRTY_BYTES = 16 << 20,
    BACKGROUND_FREED_BYTES = 64 << 20,
};

static void start_for_others(TableSliceList *list);

void writeback_init(Writeback *w)
{
    w->rest.places = g_array_new(false, false, sizeof(uint64_t));
    w->parts.dirty.start_write = start_for_others;
}

void writeback_done(Writeback *w)
{
    g_clear_pointer(&w->rest.places, g_array_unref);
}

void writeback_end(Writeback *w)
{
    w->has_ended = true;
}

static void run_pass(Fiber *self, Writeback *w)
{
    // §9: nothing more is written once a sync has failed, for no order can be kept any longer.
    const File *data = w->parts.data_file;
    if (!MUTANT("write-back-ends") &&
        (w->has_ended || file_flush_failed(w->parts.file) || (data && file_flush_failed(data)))) {
        w->rest.result = -EIO;
        return;
    }
    WritebackPass *pass = writeback_pass_begin(&w->parts);
    int r = writeback_pass_write(self, pass);
    writeback_pass_end(pass, r, &w->rest);
    freed_turn(w->parts.freed);
}

// Of the last pass: of all, not of a part.
static int last_result(const Writeback *w)
{
    return w->rest.result == 0 && w->rest.places->len ? w->rest.error : w->rest.result;
}

int writeback_run(Fiber *self, Writeback *w)
{
    if (w->running) {
        // The running one may have been copied before our changes: share the next.
        uint64_t wanted = w->n_started + !MUTANT("shared-pass-starts-later");
        while (w->n_done < wanted && w->running)
            fiber_queue_wait(self, &w->next, false, "write-back");
        if (w->n_done >= wanted)
            return last_result(w);
    }
    w->running = true;
    w->n_started++;
    run_pass(self, w);
    bool has_failed = last_result(w) < 0;
    w->left_bytes = has_failed ? w->parts.dirty.pinned_bytes : 0;
    w->left_unlinked = has_failed ? w->parts.freed->n_unlinked : 0;
    w->n_done = w->n_started;
    w->running = false;
    fiber_queue_wake_all(&w->next);
    return last_result(w);
}

bool writeback_has_failed(const Writeback *w, HostOff place)
{
    return w->rest.result < 0 || writeback_rest_has(&w->rest, place);
}

int writeback_run_all(Fiber *self, Writeback *w)
{
    int r = writeback_run(self, w);
    bool has_missing = w->rest.has_refcounts && !MUTANT("failed-refcounts-hold-back-header");
    return r == 0 && has_missing ? w->rest.error : r;
}

int writeback_run_refcounts(Fiber *self, Writeback *w)
{
    writeback_run(self, w);
    if (w->rest.result < 0)
        return w->rest.result;
    return w->rest.has_refcounts ? w->rest.error : 0;
}

static void background_fiber(Fiber *self, void *arg)
{
    Writeback *w = arg;
    writeback_run(self, w); // its error comes again at the next flush, or through throttle
    w->has_background = false;
    fiber_wait_group_done(w->fibers);
}

static void start_background(Writeback *w)
{
    if (w->has_background || w->running)
        return;
    w->has_background = true;
    fiber_wait_group_add(w->fibers, 1);
    if (fiber_spawn(w->loop, "write back", background_fiber, w, NULL) < 0) {
        w->has_background = false;
        fiber_wait_group_done(w->fibers);
    }
}

// For others that need the memory. An image that cannot be written keeps its part of the budget;
// its own writes and flushes meet the error.
static void start_for_others(TableSliceList *list)
{
    Writeback *w = (Writeback *)((char *)list - offsetof(Writeback, parts.dirty));
    if (last_result(w) == 0)
        start_background(w);
}

bool writeback_reclaim(Fiber *self, Writeback *w, uint64_t n_released)
{
    FreedClusters *f = w->parts.freed;
    if (f->n_released == n_released && (freed_is_pending(f) || w->running)) {
        writeback_run(self, w); // what it could make durable will be released
        freed_wait(self, f);
    }
    return f->n_released != n_released;
}

// More than this image may keep dirty, seeing what all images have.
static bool has_too_much(const Writeback *w)
{
    const TableSliceList *dirty = &w->parts.dirty;
    uint64_t own = dirty->pinned_bytes;
    return own >= MAX_DIRTY_BYTES ||
           (map_memory_dirty(w->memory) >= table_cache_dirty_limit(dirty->cache) &&
            own >= table_cache_dirty_share(dirty->cache));
}

static uint64_t beyond(uint64_t now, uint64_t left)
{
    return now > left ? now - left : 0;
}

int writeback_throttle(Fiber *self, Writeback *w)
{
    TableCache *cache = w->parts.dirty.cache;
    uint64_t own = w->parts.dirty.pinned_bytes, new_bytes = beyond(own, w->left_bytes);
    uint64_t freed_bytes = beyond(w->parts.freed->n_unlinked, w->left_unlinked)
                           << w->parts.geometry->cluster_bits;
    bool is_short = map_memory_dirty(w->memory) >= table_cache_dirty_limit(cache) / 2;
    if (G_LIKELY(!is_short && own < MAX_DIRTY_BYTES && new_bytes < BACKGROUND_DIRTY_BYTES &&
                 freed_bytes < BACKGROUND_FREED_BYTES))
        return 0;
    if (has_too_much(w)) {
        int r = writeback_run(self, w);
        return r < 0 && has_too_much(w) ? r : 0;
    }
    if (new_bytes >= BACKGROUND_DIRTY_BYTES || freed_bytes >= BACKGROUND_FREED_BYTES ||
        (is_short && new_bytes >= table_cache_dirty_share(cache) / 2))
        start_background(w);
    if (is_short)
        table_cache_press(cache);
    return 0;
}
