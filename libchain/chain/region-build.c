// SPDX-License-Identifier: LGPL-2.1-or-later
// Each layer is mapped by a helper fiber, which ends at once when the layer's tables are cached.
// When it has to wait for the disk the next layers' helpers start meanwhile, up to a window, so
// that a cold region of a deep chain costs few disk latencies instead of one per layer. Results are
// laid into the draft in the order of the layers. A helper that runs ahead may look at places that
// a layer above turns out to decide; that costs a table read and nothing else.
#include "chain/region-build.h"

enum { WINDOW = 16 };

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
    RegionDraft draft;
    LayerTask tasks[WINDOW]; // a ring
    unsigned first, n_tasks;
} RegionBuild;

static void add_piece(LayerTask *task, uint32_t start, uint32_t end, NodeExtentKind kind,
                      uint64_t host)
{
    Piece piece = {.span = {start, end},
                   .run = {.host = host, .layer = (uint16_t)task->layer, .kind = (uint8_t)kind}};
    g_array_append_val(task->pieces, piece);
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

int region_build(Fiber *self, const MapLayer *layers, unsigned n_layers, uint64_t number,
                 uint32_t len, MapMemory *memory, Region **ret_region)
{
    RegionBuild build = {
        .fiber = self, .layers = layers, .n_layers = n_layers, .base = number << REGION_BITS};
    region_draft_init(&build.draft, len);
    map_layers(self, &build);
    Region *region = region_draft_finish(&build.draft, number, memory);
    region_draft_done(&build.draft);
    if (!region)
        return -ENOMEM;
    *ret_region = region;
    return 0;
}
