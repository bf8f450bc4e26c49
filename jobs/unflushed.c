// SPDX-License-Identifier: LGPL-2.1-or-later
// What is written while a flush is under way is left for the next one. On the target's loop.
#include "unflushed.h"

static void note(NodeWriteHook *hook, GuestOff off, uint64_t len)
{
    bitmap_set(((Unflushed *)hook)->bits, off.v, len);
}

void unflushed_begin(Unflushed *u, Node *target, uint32_t granularity_bits)
{
    u->target = target;
    u->bits = bitmap_new(target->size_bytes, granularity_bits);
    u->hook.fn = note;
    node_add_write_hook(target, &u->hook);
}

void unflushed_end(Unflushed *u)
{
    if (!u->bits)
        return;
    node_remove_write_hook(u->target, &u->hook);
    bitmap_free(u->bits);
    *u = (Unflushed){0};
}

static void make_work(CopyEngine *engine, const Bitmap *bits)
{
    BitmapRun run;
    uint64_t size = bitmap_size_bytes(bits);
    for (uint64_t off = 0; bitmap_next_dirty(bits, off, size - off, &run); off = run.off + run.len)
        copy_engine_add(engine, WORK_DATA, run.off, run.len);
}

int unflushed_flush(Fiber *self, Unflushed *u, CopyEngine *engine)
{
    Bitmap *covered = u->bits;
    u->bits = bitmap_new(bitmap_size_bytes(covered), bitmap_granularity_bits(covered));
    int r = node_flush(self, u->target);
    if (r < 0)
        make_work(engine, covered);
    bitmap_free(covered);
    return r;
}
