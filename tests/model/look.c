// SPDX-License-Identifier: LGPL-2.1-or-later
// A look at the files that operations have left, in the middle or at their end: are they what they
// may be? In a fiber of another simulation.
#include <errno.h>
#include <inttypes.h>

#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"
#include "operations.h"

// All of a node against a model. `read_begun` 0: what may be there after a crash.
static void compare(Fiber *self, Work *work, Node *node, const ShadowModel *model,
                    uint64_t read_begun, uint32_t *ret_versions, const char *what)
{
    char problem[256];
    g_autofree uint8_t *data = g_malloc(MAX_DISK_BYTES);
    if (!shadow_model_may_have_size(model, node->size_bytes)) {
        work_fail(work, "%s has %" PRIu64 " bytes", what, node->size_bytes);
        return;
    }
    int r = node_read(self, node, guest_off(0), data, node->size_bytes);
    if (r < 0)
        work_fail(work, "%s cannot be read: %s", what, g_strerror(-r));
    else if (!shadow_model_check(model, 0, data, node->size_bytes, read_begun, ret_versions,
                                 problem))
        work_fail(work, "%s: %s", what, problem);
}

// An internal snapshot shows its moment, all of it: it is there once that is durable.
static void look_at_snapshot(Fiber *self, Work *work, const Chain *chain, const Kept *kept)
{
    Node *view;
    g_autoptr(GError) error = NULL;
    if (kept->layer > chain->top)
        return; // its layer is none yet
    int r =
        qcow2_snapshot_view_new(self, chain_layer(chain, kept->layer), kept->name, &view, &error);
    if (r == -ENOENT) {
        if (kept->state == KEPT_MADE)
            work_fail(work, "snapshot '%s' is not there", kept->name);
        return;
    }
    if (kept->state == KEPT_GONE)
        work_fail(work, "snapshot '%s' is there", kept->name);
    if (r < 0)
        work_fail(work, "snapshot '%s': %s", kept->name, error->message);
    else if (kept->model)
        compare(self, work, view, kept->model, MAX(shadow_model_kept_at(kept->model), 1), NULL,
                kept->name);
    if (r == 0)
        node_unref_close(self, view);
}

static void look_at_snapshots(Fiber *self, Work *work, const Chain *chain)
{
    if (work->place->job)
        return; // there are none, and a stream leaves layers out
    look_at_snapshot(self, work, chain, &work->old);
    for (unsigned i = 0; i < work->n_snapshots; i++)
        look_at_snapshot(self, work, chain, &work->snapshots[i]);
}

// The one that is version `version` at `off`; NULL: it was there at the beginning, or came
// otherwise.
static const Change *find_change(const Work *work, uint32_t version, uint64_t off)
{
    for (unsigned i = work->n_changes; i-- > 0;) {
        const Change *c = &work->changes[i];
        if (c->version <= version && off - c->off < c->len)
            return version <= c->version + 1 ? c : NULL;
    }
    return NULL;
}

// One that is to be believed has each change that came after it was cleared, and what was dirty
// before as long as it is not: docs/ordering.md §20 (c) for one that a backup was handed.
static void look_at_bitmap(Work *work, const Chain *chain, const uint32_t *versions, bool is_closed)
{
    const World *world = chain->world;
    Node *first_head = chain_layer(chain, world->n_layers - 1);
    const DirtyBitmap *bitmap = dirty_bitmap_find(first_head, "p");
    const Bitmap *bits = bitmap ? dirty_bitmap_bits(bitmap) : NULL;
    if (world->n_layers == 2 && !bits && is_closed && !work->is_stored_leaving)
        work_fail(work, "the stored bitmap is %s", bitmap ? "inconsistent" : "not there");
    if (bits && !work->stored_cleared && !bitmap_is_dirty(bits, DIRTY_OFF))
        work_fail(work, "the stored bitmap has lost what was dirty");
    for (uint64_t cell = 0; bits && cell < first_head->size_bytes / CELL; cell++) {
        uint32_t version = versions[cell];
        const Change *change = find_change(work, version, cell * CELL);
        if (change && (!change->ended || change->ended > work->stored_cleared) &&
            !bitmap_is_dirty(bits, cell * CELL))
            work_fail(work, "the stored bitmap calls version %u at %" PRIu64 " clean", version,
                      cell * CELL);
    }
}

static void look_at_layers(Fiber *self, Work *work, const Chain *chain, bool is_closed)
{
    unsigned first_head = chain->world->n_layers - 1;
    unsigned first = chain->top == TARGET_LAYER ? TARGET_LAYER : MIN(first_head, chain->top);
    uint32_t versions[MAX_DISK_BYTES / CELL];
    for (unsigned i = first; i <= chain->top && !work->problem[0]; i++) {
        char name[16];
        layer_name(name, i);
        bool is_head = i == chain->top;
        if (!is_head && !work->layers[i])
            continue; // a job's
        compare(self, work, is_head ? chain->head : chain_layer(chain, i),
                is_head ? work->model : work->layers[i], 0, versions, name);
        if (i == first_head && !work->problem[0])
            look_at_bitmap(work, chain, versions, is_closed);
    }
}

// What a backup, or a mirror that was let go, has left is the disk of its moment.
static void look_at_copy(Fiber *self, Work *work)
{
    Chain chain;
    g_autoptr(GError) error = NULL;
    if (!work->copy || work->problem[0])
        return;
    if (chain_begin(self, work->world, TARGET_LAYER, false, &chain, &error) < 0) {
        work_fail(work, "%s", error->message);
        return;
    }
    compare(self, work, chain.head, work->copy, MAX(shadow_model_kept_at(work->copy), 1), NULL,
            "the target");
    chain_end(self, &chain);
}

static void check_layer(Fiber *self, Work *work, unsigned number)
{
    g_autofree char *problem = layer_check(self, number);
    if (problem)
        work_fail(work, "%s", problem);
}

static void check_layers(Fiber *self, Work *work, unsigned n)
{
    JobType job = work->place->job;
    for (unsigned i = 1; i < n; i++)
        check_layer(self, work, i);
    if (job == JOB_TYPE_MIRROR || job == JOB_TYPE_BACKUP)
        check_layer(self, work, TARGET_LAYER);
}

void work_look(Fiber *self, Work *work, bool is_closed)
{
    const World *world = work->world;
    Chain chain;
    g_autoptr(GError) error = NULL;
    unsigned n_layers = world->n_layers + work->chain.n_taken;
    check_layers(self, work, n_layers);
    if (chain_begin(self, world, work_top(work), false, &chain, &error) < 0) {
        work_fail(work, "%s", error->message);
        return;
    }
    look_at_layers(self, work, &chain, is_closed);
    look_at_snapshots(self, work, &chain);
    chain_end(self, &chain);
    look_at_copy(self, work);
    check_layers(self, work, n_layers);
}
