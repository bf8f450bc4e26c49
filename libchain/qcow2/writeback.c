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
//      it; the rest of the pass is durable. `failed` names all of it until the next pass ends.
//   6. Once a sync has failed, nothing is written any more (docs/ordering.md §9).
//
// States of an image's write-back, and what changes them
//
//              writeback_run()                 the pass ends, nobody waits
//        idle ────────────────▶ running ───────────────────────────────▶ idle
//                               │  ▲  └─ callers meanwhile wait: the running pass may have been
//                               │  │     copied before their changes
//                               │  └──── the pass ends: the first of them runs the next, for all
//                               ▼
//                             ended    abandoned, a failed sync, a corrupt image: -EIO for good
//
// In fibers on the image's loop.

#include "qcow2/writeback.h"

#include <errno.h>

#include "qcow2/writeback-pass.h"

enum {
    // Write back once this much is dirty, even without a flush by the guest: bounds memory.
    BACKGROUND_DIRTY_BYTES = 4 << 20,
    MAX_DIRTY_BYTES = 16 << 20,
    BACKGROUND_FREED_BYTES = 64 << 20,
};

void writeback_init(Qcow2Image *image)
{
    image->writeback.failed = g_array_new(false, false, sizeof(uint64_t));
}

void writeback_done(Qcow2Image *image)
{
    g_clear_pointer(&image->writeback.failed, g_array_unref);
}

static int run_once(Fiber *self, Qcow2Image *image)
{
    // §9: nothing more is written once a sync has failed, for no order can be kept any longer.
    if (image->corrupt || image->writeback.abandoned || file_flush_failed(image->file))
        return -EIO;
    WritebackPass *pass = writeback_pass_begin(image);
    int r = writeback_pass_write(self, pass);
    writeback_pass_end(pass, r);
    freed_turn(image);
    return r;
}

// The result of the last pass: of all, not of a part.
static int last_result(const Writeback *w)
{
    return w->last_result == 0 && w->failed->len ? w->error : w->last_result;
}

int writeback_run(Fiber *self, Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    if (w->running) {
        // The running one may have been copied before our changes: share the next.
        uint64_t wanted = w->n_started + 1;
        while (w->n_done < wanted && w->running)
            fiber_queue_wait(self, &w->next, false, "write-back");
        if (w->n_done >= wanted)
            return last_result(w);
    }
    w->running = true;
    w->n_started++;
    w->last_result = run_once(self, image);
    w->n_done = w->n_started;
    w->running = false;
    fiber_queue_wake_all(&w->next);
    return last_result(w);
}

bool writeback_has_failed(const Qcow2Image *image, HostOff place)
{
    return image->writeback.last_result < 0 || writeback_pass_failed(image, place);
}

int writeback_run_refcounts(Fiber *self, Qcow2Image *image)
{
    const Writeback *w = &image->writeback;
    writeback_run(self, image);
    if (w->last_result < 0)
        return w->last_result;
    return w->has_uncounted ? w->error : 0;
}

static void background_fiber(Fiber *self, void *arg)
{
    Qcow2Image *image = arg;
    writeback_run(self, image); // its error comes again at the next flush, or through throttle
    image->writeback.background = false;
    fiber_wait_group_done(&image->fibers);
}

static void start_background(Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    if (w->background)
        return;
    w->background = true;
    fiber_wait_group_add(&image->fibers, 1);
    if (fiber_spawn(image->loop, "write back", background_fiber, image, NULL) < 0) {
        w->background = false;
        fiber_wait_group_done(&image->fibers);
    }
}

bool writeback_reclaim(Fiber *self, Qcow2Image *image, uint64_t n_released)
{
    const FreedClusters *f = &image->freed;
    if (f->n_released == n_released && (freed_is_pending(image) || image->writeback.running)) {
        writeback_run(self, image); // what it could make durable will be released
        freed_wait(self, image);
    }
    return f->n_released != n_released;
}

static uint64_t dirty_bytes(const Qcow2Image *image)
{
    return image->writeback.dirty.n * image->geometry.slice_bytes;
}

int writeback_throttle(Fiber *self, Qcow2Image *image)
{
    uint64_t limit = map_memory_limit(image->memory) / 4;
    uint64_t max = MIN((uint64_t)MAX_DIRTY_BYTES, limit);
    uint64_t freed_bytes = image->freed.n_unlinked << image->geometry.cluster_bits;
    if (G_LIKELY(dirty_bytes(image) < MIN((uint64_t)BACKGROUND_DIRTY_BYTES, limit / 2) &&
                 freed_bytes < BACKGROUND_FREED_BYTES))
        return 0;
    if (dirty_bytes(image) >= max) {
        int r = writeback_run(self, image);
        return r < 0 && dirty_bytes(image) >= max ? r : 0;
    }
    if (!image->writeback.running)
        start_background(image);
    return 0;
}
