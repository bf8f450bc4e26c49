// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-images.h"

#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"

void guest_image_name(char path[GUEST_IMAGE_PATH], unsigned number)
{
    g_snprintf(path, GUEST_IMAGE_PATH, "/layer-%u", number);
}

// -- making them ----------------------------------------------------------------------------------

uint32_t guest_image_pick_cluster_bytes(Guests *g)
{
    static const uint32_t clusters[] = {512, 4096, 65536};
    return clusters[guests_pick(g, G_N_ELEMENTS(clusters))];
}

void guest_image_create(Fiber *self, const char *path, const char *backing, uint64_t size_bytes,
                        uint32_t cluster_bytes)
{
    Qcow2CreateOptions options = {.size_bytes = size_bytes,
                                  .cluster_bytes = cluster_bytes,
                                  .backing_name = backing ? backing + 1 : NULL,
                                  .backing_format = backing ? "qcow2" : NULL};
    fiber_assert_equal(qcow2_create(self, path, &options, NULL), 0);
}

uint32_t guest_image_make_layer(Fiber *self, Guests *g, const char *path, const char *backing)
{
    uint32_t cluster_bytes = guest_image_pick_cluster_bytes(g);
    guest_image_create(self, path, backing, GUEST_DISK, cluster_bytes);
    Node *node = guest_image_open(self, g, path, true);
    for (unsigned i = 0; i < GUEST_BLOCKS; i++)
        if (guests_pick(g, 3) == 0)
            fiber_assert_equal(
                guests_change_block(self, g, node, i,
                                    guests_pick(g, 4) ? REQUEST_WRITE : REQUEST_ZERO),
                0);
    fiber_assert_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
    g->durable = g->acked;
    return cluster_bytes;
}

void guest_image_make_raw(Fiber *self, Guests *g, const char *path)
{
    File *file;
    g->raw_path = path;
    fiber_assert_equal(file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
    fiber_assert_equal(file_truncate(self, file, GUEST_DISK), 0);
    file_close(self, file);
    fiber_assert_equal(file_sync_dir(self, path, NULL), 0);
}

void guest_image_fill_with_other(Fiber *self, Node *node)
{
    g_autofree uint8_t *other = g_malloc(GUEST_DISK);
    memset(other, 0xee, GUEST_DISK);
    fiber_assert_equal(node_write(self, node, guest_off(0), other, GUEST_DISK, 0), 0);
}

// -- opening them ---------------------------------------------------------------------------------

Node *guest_image_open(Fiber *self, const Guests *g, const char *path, bool is_writable)
{
    g_autoptr(GError) error = NULL;
    bool is_raw = g->raw_path && strcmp(path, g->raw_path) == 0;
    LayerOptions options = {.memory = g->memory,
                            .format = is_raw ? "raw" : "qcow2",
                            .read_only = !is_writable,
                            .force_share = !is_writable};
    Node *node;
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        g_error("seed %u: %s", (unsigned)g->seed, error->message);
    return node;
}

Node *guest_image_open_alone(Fiber *self, const Guests *g, const char *path)
{
    g_autoptr(GError) error = NULL;
    LayerOptions options = {.memory = g->memory, .format = "qcow2"};
    Layer *layer;
    Node *node;
    if (layer_open(self, path, &options, &layer, &error) < 0 ||
        layer_load(self, layer, &node, &error) < 0)
        g_error("seed %u: %s", (unsigned)g->seed, error->message);
    layer_drop(self, layer);
    return node;
}

// -- looking at them ------------------------------------------------------------------------------

void guest_image_check_content(Fiber *self, const Guests *g, const char *where, const char *path,
                               const Versions *least, const Versions *most)
{
    Node *node = guest_image_open(self, g, path, false);
    g_autofree char *what = g_strdup_printf("%s, %s", where, path);
    guests_check_node(self, g, what, node, least, most);
    node_unref_close(self, node);
}

void guest_image_check(Fiber *self, const Guests *g, const char *path, bool may_leak)
{
    File *file;
    Qcow2CheckResult result;
    fiber_assert_equal(file_open(self, path, 0, &file, NULL), 0);
    fiber_assert_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_check_errors || (result.n_leaks && !may_leak))
        g_error("seed %u, %s, %s: %s", (unsigned)g->seed, g->what, path,
                (const char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}
