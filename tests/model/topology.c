// SPDX-License-Identifier: LGPL-2.1-or-later
// Which trees there are, and how one becomes images.
#include "topology.h"

#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/qcow2-create.h"

enum { MEMORY_BYTES = 8 << 20, CELL_WORDS = TOPOLOGY_CELL / sizeof(uint64_t) };

// --- shapes --------------------------------------------------------------------------------------

bool topology_is_over(const Topology *t, unsigned layer, unsigned below)
{
    while (layer != below && layer != TOPOLOGY_NONE)
        layer = t->below[layer];
    return layer == below;
}

unsigned topology_count_over(const Topology *t, unsigned layer)
{
    unsigned n = 0;
    for (unsigned i = 1; i < t->n; i++)
        n += t->below[i] == layer;
    return n;
}

bool topology_is_head(const Topology *t, unsigned layer)
{
    return topology_count_over(t, layer) == 0;
}

static gint compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// The same for trees that are equal but for numbers: brackets, those of the layers above in order.
static char *name_of(const Topology *t, unsigned layer)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    for (unsigned i = 1; i < t->n; i++)
        if (t->below[i] == layer)
            g_ptr_array_add(names, name_of(t, i));
    g_ptr_array_sort(names, compare_names);
    GString *name = g_string_new("(");
    for (guint i = 0; i < names->len; i++)
        g_string_append(name, names->pdata[i]);
    g_string_append_c(name, ')');
    return g_string_free(name, false);
}

GArray *topologies_of(unsigned n)
{
    GArray *all = g_array_new(false, false, sizeof(Topology));
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    unsigned n_ways = 1;
    for (unsigned i = 1; i < n; i++)
        n_ways *= i;
    for (unsigned way = 0; way < n_ways; way++) {
        Topology t = {.n = n, .below = {TOPOLOGY_NONE}};
        for (unsigned i = 1, rest = way; i < n; rest /= i, i++)
            t.below[i] = rest % i;
        if (g_hash_table_add(seen, name_of(&t, 0)))
            g_array_append_val(all, t);
    }
    return all;
}

// --- what is seen --------------------------------------------------------------------------------

void picture_fill_cell(const Picture *picture, unsigned cell, void *buf)
{
    uint64_t *words = buf, tag = picture->cells[cell];
    for (unsigned i = 0; i < CELL_WORDS; i++)
        words[i] = tag ? tag << 32 | cell << 8 | i : 0;
}

char *picture_check(Fiber *self, const Picture *picture, uint8_t also, Node *node)
{
    uint64_t data[TOPOLOGY_MAX_CELLS][CELL_WORDS], wanted[CELL_WORDS];
    unsigned n_cells = picture->n_cells;
    if (node->size_bytes < (uint64_t)n_cells * TOPOLOGY_CELL)
        return g_strdup_printf("has %u bytes", (unsigned)node->size_bytes);
    int r = node_read(self, node, guest_off(0), data, (size_t)n_cells * TOPOLOGY_CELL);
    if (r < 0)
        return g_strdup_printf("cannot be read: %s", g_strerror(-r));
    Picture others = *picture;
    memset(others.cells, also, n_cells);
    for (unsigned cell = 0; cell < n_cells; cell++) {
        bool is_right = false;
        picture_fill_cell(picture, cell, wanted);
        is_right |= memcmp(data[cell], wanted, TOPOLOGY_CELL) == 0;
        picture_fill_cell(&others, cell, wanted);
        is_right |= also && memcmp(data[cell], wanted, TOPOLOGY_CELL) == 0;
        if (!is_right)
            return g_strdup_printf("has the tag %u in cell %u, not %u",
                                   (unsigned)(data[cell][0] >> 32), cell, picture->cells[cell]);
    }
    return NULL;
}

// --- images --------------------------------------------------------------------------------------

static void name_layer(char path[8], unsigned layer)
{
    g_snprintf(path, 8, "/n%u", layer);
}

static uint64_t pick(const Tree *tree, uint64_t bound)
{
    return sim_random(tree->sim, bound);
}

static void create_raw(const Tree *tree)
{
    const Picture *p = &tree->pictures[0];
    uint8_t data[TOPOLOGY_MAX_CELLS][TOPOLOGY_CELL];
    for (unsigned cell = 0; cell < p->n_cells; cell++)
        picture_fill_cell(p, cell, data[cell]);
    sim_write_file(tree->sim, "/n0", data, (uint64_t)p->n_cells * TOPOLOGY_CELL);
}

// Some with subclusters.
static void create_qcow2(Fiber *self, const Tree *tree, unsigned layer)
{
    static const uint32_t clusters[] = {512, 1024, 4096, 16384};
    unsigned below = tree->shape.below[layer];
    char path[8], backing[8];
    name_layer(path, layer);
    name_layer(backing, below);
    uint32_t cluster_bytes = clusters[pick(tree, G_N_ELEMENTS(clusters))];
    Qcow2CreateOptions options = {
        .size_bytes = (uint64_t)tree->pictures[layer].n_cells * TOPOLOGY_CELL,
        .cluster_bytes = cluster_bytes,
        .extended_l2 = cluster_bytes == 16384,
        .backing_name = layer ? backing + 1 : NULL,
        .backing_format = !layer                       ? NULL
                          : below == 0 && tree->is_raw ? "raw"
                                                       : "qcow2",
    };
    g_assert(qcow2_create(self, path, &options, NULL) == 0);
}

static uint8_t seen_below(const Tree *tree, unsigned layer, unsigned cell)
{
    unsigned below = tree->shape.below[layer];
    if (below == TOPOLOGY_NONE || cell >= tree->pictures[below].n_cells)
        return 0;
    return tree->pictures[below].cells[cell];
}

// Of the layer's cells a third is written, a third zeroed or so, and the rest seen from below.
static void fill_layer(Fiber *self, Tree *tree, unsigned layer, MapMemory *memory)
{
    char path[8];
    name_layer(path, layer);
    Picture *p = &tree->pictures[layer];
    LayerOptions options = {.format = "qcow2", .memory = memory};
    uint8_t buf[TOPOLOGY_CELL];
    Node *node;
    g_assert(chain_open(self, path, &options, &node, NULL, NULL) == 0);
    for (unsigned cell = 0; cell < p->n_cells; cell++) {
        GuestOff off = guest_off((uint64_t)cell * TOPOLOGY_CELL);
        uint64_t what = pick(tree, 4);
        p->cells[cell] = what == 0 ? layer + 1 : what == 1 ? 0 : seen_below(tree, layer, cell);
        picture_fill_cell(p, cell, buf);
        if (what == 0)
            g_assert(node_write(self, node, off, buf, TOPOLOGY_CELL, 0) == 0);
        else if (what == 1)
            g_assert(node_zero(self, node, off, TOPOLOGY_CELL, 0) == 0);
    }
    g_assert(node_flush(self, node) == 0);
    node_unref_close(self, node);
}

static void make_images(Fiber *self, void *arg)
{
    Tree *tree = arg;
    MapMemory *memory = map_memory_new(MEMORY_BYTES);
    for (unsigned layer = 0; layer < tree->shape.n; layer++) {
        static const unsigned sizes[] = {32, 32, 32, 32, 20, TOPOLOGY_MAX_CELLS};
        tree->pictures[layer].n_cells = sizes[pick(tree, G_N_ELEMENTS(sizes))];
        if (layer == 0 && tree->is_raw) {
            for (unsigned cell = 0; cell < tree->pictures[0].n_cells; cell++)
                tree->pictures[0].cells[cell] = pick(tree, 3) ? 1 : 0;
            create_raw(tree);
            continue;
        }
        create_qcow2(self, tree, layer);
        fill_layer(self, tree, layer, memory);
    }
    map_memory_free(memory);
}

Tree *tree_new(const Topology *shape, uint64_t seed)
{
    Tree *tree = g_new0(Tree, 1);
    tree->shape = *shape;
    tree->is_raw = seed % 2;
    tree->sim = sim_new(&(SimConfig){.seed = seed});
    g_assert(sim_run(tree->sim, make_images, tree));
    return tree;
}

void tree_free(Tree *tree)
{
    sim_free(tree->sim);
    g_free(tree);
}

Node *tree_open_layer(Fiber *self, const Tree *tree, unsigned layer, MapMemory *memory,
                      GError **error)
{
    char path[8];
    name_layer(path, layer);
    LayerOptions options = {.format = layer == 0 && tree->is_raw ? "raw" : "qcow2",
                            .memory = memory,
                            .read_only = true,
                            .force_share = true};
    Node *node = NULL;
    chain_open(self, path, &options, &node, NULL, error);
    return node;
}
