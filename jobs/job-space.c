// SPDX-License-Identifier: LGPL-2.1-or-later
// Counts what is to be copied and what of it the target has no place for yet, and compares that
// with the room that there is. A job that its user wants stopped for lack of space is not asked: he
// is going to make room.
//
// Tables of the target, what points in time are saved for, and clusters that stay compressed are
// left out; so what is refused would have failed for certain, and a job that is let through may
// find the target full all the same, at its very end.
#include "job-space.h"

#include <errno.h>
#include <inttypes.h>

#include "chain-core/chain.h"
#include "chain-core/node-compressed.h"
#include "jobs/job.h"

enum { STEPS_AT_ONCE = 512 }; // then others get their turn

typedef struct Count {
    const JobSpace *space;
    JobControl *control;
    NodeRoom room;
    uint64_t counted_to; // granules, of the target
    uint64_t new_bytes, old_bytes;
    unsigned n_steps;
} Count;

// Reflinks need none.
static bool may_be_shared(const JobSpace *space, const NodeRoom *room)
{
    File *target = node_file(space->target);
    uint64_t to[2], from[2];
    if (!room->can_share || !target)
        return false;
    file_identity(target, to);
    for (Node *node = space->source; node; node = chain_backing(node)) {
        File *file = node_file(node);
        if (!file)
            continue;
        file_identity(file, from);
        if (from[0] == to[0])
            return true;
    }
    return false;
}

// Has the target a place for data at `off`, and how far is that so?
static int find_place(Fiber *self, Node *target, uint64_t off, uint64_t len, bool *ret_has,
                      uint64_t *ret_len)
{
    NodeExtentKind kind;
    NodeExtent extent;
    *ret_has = false;
    *ret_len = len;
    if (off >= target->size_bytes)
        return 0;
    len = MIN(len, target->size_bytes - off);
    int r = node_find_kind(self, target, guest_off(off), len, &kind, ret_len);
    *ret_has = kind == NODE_EXTENT_DATA;
    if (r < 0 || kind != NODE_EXTENT_ZERO)
        return r;
    r = node_map(self, target, guest_off(off), *ret_len, &extent);
    if (r < 0)
        return r;
    *ret_has = extent.kind == NODE_EXTENT_ZERO_ALLOCATED;
    *ret_len = extent.len;
    return 0;
}

static void count_new(Count *c, uint64_t off, uint64_t end)
{
    uint64_t granule = c->room.granule_bytes;
    uint64_t first = MAX(off / granule, c->counted_to), last = (end + granule - 1) / granule;
    if (last <= first)
        return;
    c->new_bytes += (last - first) * granule;
    c->counted_to = last;
}

static int count_range(Fiber *self, Count *c, uint64_t off, uint64_t end, bool is_work)
{
    int r = 0;
    port_enter(self, c->space->port, REQUEST_READ);
    for (uint64_t len; r == 0 && off < end; off += len) {
        bool has;
        r = find_place(self, c->space->target, off, end - off, &has, &len);
        if (r == 0 && has)
            c->old_bytes += len;
        else if (r == 0 && is_work)
            count_new(c, off, off + len);
        c->n_steps++;
    }
    port_leave(c->space->port, REQUEST_READ);
    return r;
}

// How far what is at `off` stays compressed in the target, or does not.
static int find_compressed(Fiber *self, const JobSpace *space, uint64_t off, uint64_t len,
                           bool *ret_is, uint64_t *ret_len)
{
    *ret_is = false;
    *ret_len = len;
    port_enter(self, space->port, REQUEST_READ);
    uint64_t size = space->source->size_bytes;
    int r = off >= size
                ? 0
                : node_find_compressed(self, space->source, guest_off(off), MIN(len, size - off),
                                       node_compression(space->target), ret_is, ret_len);
    port_leave(space->port, REQUEST_READ);
    return r;
}

static int count_data(Fiber *self, Count *c, uint64_t off, uint64_t end)
{
    int r = 0;
    for (uint64_t len; r == 0 && off < end; off += len) {
        bool is_compressed;
        r = find_compressed(self, c->space, off, end - off, &is_compressed, &len);
        if (r == 0)
            r = count_range(self, c, off, off + len, !is_compressed);
    }
    return r;
}

static int count_all(Fiber *self, Count *c)
{
    const CopyEngineConfig *config = c->space->config;
    int r = 0;
    CopyExtent extent;
    for (uint64_t off = 0; r == 0 && off < config->size_bytes; off += extent.len) {
        r = config->ops->find(self, config->arg, off, config->size_bytes - off, &extent);
        bool is_work = r == 0 && extent.is_work && extent.kind == WORK_DATA;
        if (r == 0 && is_work)
            r = count_data(self, c, off, off + extent.len);
        else if (r == 0 && c->room.counts_all)
            r = count_range(self, c, off, off + extent.len, false);
        if (r == 0 && ++c->n_steps >= STEPS_AT_ONCE) {
            c->n_steps = 0;
            r = fiber_sleep(self, 0);
        }
        if (r == 0)
            r = job_pause_point(self, c->control);
    }
    return r;
}

static int compare(const Count *c, GError **error)
{
    const Node *target = c->space->target;
    uint64_t left = c->room.most_bytes;
    if (c->room.counts_all)
        left -= MIN(left, c->old_bytes);
    if (c->new_bytes <= left)
        return 0;
    g_set_error(
        error, JOB_ERROR, ENOSPC,
        "No space left on device: %s has room for %" PRIu64 " bytes at most, and needs %" PRIu64
        " at least. Nothing was copied; make room, or use on-error=enospc to be asked for it "
        "when it is full",
        target->name, left, c->new_bytes);
    return -ENOSPC;
}

int job_space_check(Fiber *self, const JobSpace *space, JobControl *control, JobOnError on_error,
                    GError **error)
{
    Count count = {.space = space, .control = control};
    uint64_t enough = space->config->size_bytes;
    if (on_error != JOB_ON_ERROR_REPORT)
        return 0;
    int r =
        node_room(self, space->target, enough, &count.room); // which the job holds: no drain waits
    if (r < 0 || count.room.most_bytes >= enough || may_be_shared(space, &count.room))
        return r == -ECANCELED ? r : 0;
    r = count_all(self, &count);
    if (r == 0)
        r = compare(&count, error);
    return r == -ENOSPC || r == -ECANCELED ? r : 0; // what cannot be read the copy will meet
}
