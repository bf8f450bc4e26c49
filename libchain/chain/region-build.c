// SPDX-License-Identifier: LGPL-2.1-or-later
// Each layer is mapped by a helper fiber, which ends at once when the layer's tables are cached.
// When it has to wait for the disk the next layers' helpers start meanwhile, up to a window, so
// that a cold region of a deep chain costs few disk latencies instead of one per layer. Results are
// laid into the draft in the order of the layers. A helper that runs ahead may look at places that
// a layer above turns out to decide; that costs a table read and nothing else.
//
// What a build holds counts as memory of regions, from the start: one entry for each granule of a
// layer, twice (the layer's answer, and the draft). The builds of one loop together may hold a
// quarter of the budget; one that finds no room waits for others to end. None of them waits for
// anything but files, so they do end.
#include "chain/region-build.h"

#include "chain-core/fiber-sync.h"
#include "loop/loop-slot.h"

enum { WINDOW = 16, PIECES_PER_COUNT = 512 };

// The builds of one loop; there while some run or wait.
typedef struct BuildGate {
    unsigned n_running, n_waiting;
    uint64_t bytes; // held by those that run
    FiberQueue waiting;
} BuildGate;

typedef struct LayerTask {
    struct RegionBuild *build;
    unsigned layer;
    GArray *spans;  // copy of what was open when the task started
    GArray *pieces; // result
    bool is_done;
} LayerTask;

typedef struct RegionBuild {
    Fiber *fiber;
    bool is_waiting;
    const MapLayer *layers;
    unsigned n_layers;
    uint64_t base; // guest offset of the region
    MapMemory *memory;
    BuildGate *gate;
    uint64_t reserved, held; // bytes; what is charged is the larger
    RegionDraft draft;
    LayerTask tasks[WINDOW]; // a ring
    unsigned first, n_tasks;
} RegionBuild;

// -- memory ---------------------------------------------------------------------------------------

static void set_held(RegionBuild *build, uint64_t bytes)
{
    int64_t more = (int64_t)MAX(bytes, build->reserved) - (int64_t)build->held;
    build->held += more;
    build->gate->bytes += more;
    map_memory_add(build->memory, MAP_MEMORY_REGIONS, more);
}

static void count_held(RegionBuild *build)
{
    uint64_t n_spans = build->draft.open->len, n_pieces = build->draft.pieces->len;
    for (unsigned i = 0; i < build->n_tasks; i++) {
        const LayerTask *task = &build->tasks[(build->first + i) % WINDOW];
        n_spans += task->spans->len;
        n_pieces += task->pieces->len;
    }
    set_held(build, n_spans * sizeof(Span) + n_pieces * sizeof(Piece));
}

static const char gate_key[] = "chain map: builds";

static void enter_gate(Fiber *self, RegionBuild *build)
{
    void **slot = loop_slot(fiber_loop(self), gate_key);
    if (!*slot)
        *slot = g_new0(BuildGate, 1);
    BuildGate *gate = build->gate = *slot;
    uint64_t most = map_memory_limit(build->memory) / 4;
    gate->n_waiting++;
    while (gate->n_running && gate->bytes + build->reserved > most)
        fiber_queue_wait(self, &gate->waiting, false, "chain map: memory for a region");
    gate->n_waiting--;
    gate->n_running++;
    set_held(build, 0);
}

static void leave_gate(Fiber *self, RegionBuild *build)
{
    BuildGate *gate = build->gate;
    build->reserved = 0;
    set_held(build, 0);
    gate->n_running--;
    fiber_queue_wake_all(&gate->waiting);
    if (gate->n_running || gate->n_waiting)
        return;
    *loop_slot(fiber_loop(self), gate_key) = NULL;
    g_free(gate);
}

static uint64_t bytes_for_a_layer(const RegionBuild *build)
{
    uint64_t granule = build->draft.len;
    for (unsigned i = 0; i < build->n_layers; i++)
        granule = MIN(granule, build->layers[i].node->preferred_bytes);
    return build->draft.len / MAX(granule, 512) * 2 * sizeof(Piece);
}

// -- layers ---------------------------------------------------------------------------------------

static void add_piece(LayerTask *task, uint32_t start, uint32_t end, NodeExtentKind kind,
                      uint64_t host)
{
    Piece piece = {.span = {start, end},
                   .run = {.host = host, .layer = (uint16_t)task->layer, .kind = (uint8_t)kind}};
    g_array_append_val(task->pieces, piece);
    if (task->pieces->len % PIECES_PER_COUNT == 0)
        count_held(task->build);
}

// A run names its layer, and so the layer's one file: data elsewhere is read through the node.
static NodeExtentKind usable_kind(const MapLayer *layer, const NodeExtent *extent)
{
    bool is_elsewhere = extent->kind == NODE_EXTENT_DATA && extent->file != layer->file;
    return is_elsewhere ? NODE_EXTENT_OPAQUE : extent->kind;
}

// [start, end) lies inside the layer.
static void map_inside(Fiber *self, LayerTask *task, uint32_t start, uint32_t end)
{
    const MapLayer *layer = &task->build->layers[task->layer];
    Node *node = layer->node;
    if (layer->is_barrier) {
        add_piece(task, start, end, NODE_EXTENT_OPAQUE, 0);
        return;
    }
    while (start < end) {
        NodeExtent extent;
        GuestOff off = guest_off(task->build->base + start);
        if (node->ops->may_have && !node->ops->may_have(node, off, end - start))
            return;
        if (node_map(self, node, off, end - start, &extent) < 0) {
            add_piece(task, start, end, NODE_EXTENT_OPAQUE, 0);
            return;
        }
        if (extent.kind != NODE_EXTENT_BELOW)
            add_piece(task, start, start + (uint32_t)extent.len, usable_kind(layer, &extent),
                      extent.host.v);
        start += (uint32_t)extent.len;
    }
}

// A layer shorter than what is above it reads as zeros past its end and hides what lies below.
static uint32_t layer_end(const RegionBuild *build, unsigned layer)
{
    uint64_t size = build->layers[layer].node->size_bytes;
    return size <= build->base ? 0 : (uint32_t)MIN(size - build->base, build->draft.len);
}

static void map_layer(Fiber *self, LayerTask *task)
{
    uint32_t inside = layer_end(task->build, task->layer);
    for (guint i = 0; i < task->spans->len; i++) {
        Span span = g_array_index(task->spans, Span, i);
        if (span.start < inside)
            map_inside(self, task, span.start, MIN(span.end, inside));
        if (span.end > inside)
            add_piece(task, MAX(span.start, inside), span.end, NODE_EXTENT_ZERO, 0);
    }
}

static void helper(Fiber *self, void *arg)
{
    LayerTask *task = arg;
    map_layer(self, task);
    task->is_done = true;
    if (task->build->is_waiting)
        fiber_wake(task->build->fiber);
}

static bool layer_may_add(const RegionBuild *build, unsigned layer)
{
    const GArray *open = build->draft.open;
    uint32_t start = g_array_index(open, Span, 0).start;
    uint32_t end = g_array_index(open, Span, open->len - 1).end;
    uint32_t inside = layer_end(build, layer);
    Node *node = build->layers[layer].node;
    if (end > inside || build->layers[layer].is_barrier || !node->ops->may_have)
        return true;
    return node->ops->may_have(node, guest_off(build->base + start), end - start);
}

static void start_task(Fiber *self, RegionBuild *build, unsigned layer)
{
    LayerTask *task = &build->tasks[(build->first + build->n_tasks++) % WINDOW];
    *task = (LayerTask){.build = build,
                        .layer = layer,
                        .spans = g_array_copy(build->draft.open),
                        .pieces = g_array_new(FALSE, FALSE, sizeof(Piece))};
    bool is_alone = build->n_layers == 1 && build->n_tasks == 1;
    if (!is_alone && fiber_spawn(fiber_loop(self), "map layer", helper, task, NULL) == 0)
        return;
    map_layer(self, task);
    task->is_done = true;
}

static void finish_first_task(Fiber *self, RegionBuild *build)
{
    LayerTask *task = &build->tasks[build->first];
    build->is_waiting = true;
    while (!task->is_done)
        fiber_suspend(self, "chain map: layers");
    build->is_waiting = false;
    region_draft_add_layer(&build->draft, (const Piece *)task->pieces->data, task->pieces->len);
    g_array_unref(task->spans);
    g_array_unref(task->pieces);
    build->first = (build->first + 1) % WINDOW;
    build->n_tasks--;
    count_held(build);
}

static void map_layers(Fiber *self, RegionBuild *build)
{
    for (unsigned layer = 0; layer < build->n_layers; layer++) {
        if (build->n_tasks == WINDOW)
            finish_first_task(self, build);
        if (region_draft_is_complete(&build->draft))
            break;
        if (!layer_may_add(build, layer))
            continue;
        start_task(self, build, layer);
        while (build->n_tasks && build->tasks[build->first].is_done)
            finish_first_task(self, build);
    }
    while (build->n_tasks)
        finish_first_task(self, build);
}

static void add_region_below(RegionBuild *build, const Region *below)
{
    g_autoptr(GArray) pieces = g_array_sized_new(FALSE, FALSE, sizeof(Piece), below->n_runs);
    for (const Run *run = below->runs; run < below->runs + below->n_runs; run++) {
        if (run->kind == NODE_EXTENT_BELOW)
            continue;
        Piece piece = {.span = {run->start, region_run_end(below, run)}, .run = *run};
        piece.run.layer += (uint16_t)build->n_layers;
        g_array_append_val(pieces, piece);
    }
    region_draft_add_layer(&build->draft, (const Piece *)pieces->data, pieces->len);
    count_held(build);
}

int region_build(Fiber *self, const RegionPlan *plan, MapMemory *memory, Region **ret_region)
{
    RegionBuild build = {
        .fiber = self,
        .layers = plan->layers,
        .n_layers = plan->n_layers,
        .base = plan->number << REGION_BITS,
        .memory = memory,
    };
    region_draft_init(&build.draft, plan->len);
    build.reserved = bytes_for_a_layer(&build);
    enter_gate(self, &build);
    map_layers(self, &build);
    if (plan->below)
        add_region_below(&build, plan->below);
    Region *region = region_draft_finish(&build.draft, plan->number, memory);
    region_draft_done(&build.draft);
    leave_gate(self, &build);
    if (!region)
        return -ENOMEM;
    *ret_region = region;
    return 0;
}
