// SPDX-License-Identifier: LGPL-2.1-or-later
// From the bitmap directory to dirty bitmaps. What a bitmap's table names is read only as far as
// the file could hold it once: tables that are shared, or named many times, do not multiply. Holes
// make a file as long as its maker likes, so there are bounds besides.
#include "qcow2/bitmap-load.h"

#include <errno.h>
#include <string.h>

#include "chain-core/dirty-bitmap.h"
#include "qcow2/bitmap-directory.h"

enum { WINDOW_BYTES = 64 << 10 };

typedef struct Load {
    Qcow2Image *image;
    uint64_t left_bytes; // that may still be read
    uint8_t *data;       // a cluster
    Be64 *window;        // of a table
    ClusterSet clusters; // of bitmaps, so far
    unsigned n_inconsistent;
    char *first; // of those: its name, and why
} Load;

static bool may_read(Load *load, uint64_t off, uint64_t bytes)
{
    uint64_t end = file_size(load->image->file);
    if (off >= end || bytes > load->left_bytes)
        return false;
    load->left_bytes -= bytes;
    // A file may end inside its last cluster.
    return bytes <= end - off || (bytes <= load->image->geometry.cluster_bytes);
}

// Bytes past the file's end read as zeros.
static int read_some(Fiber *self, Load *load, HostOff off, void *buf, uint64_t bytes)
{
    uint64_t inside = MIN(bytes, file_size(load->image->file) - off.v);
    memset(buf, 0, bytes);
    return file_read(self, load->image->file, off, buf, inside);
}

// Clusters that bitmaps use hold no other metadata, and no other bitmap's. (Whether a guest has its
// data there nobody knows: it keeps them.)
static bool claim_clusters(Load *load, HostOff off, uint64_t n)
{
    uint64_t first = image_cluster_of(load->image, off);
    bool is_free = true;
    for (uint64_t i = 0; i < n; i++) {
        is_free &= cluster_set_add(&load->clusters, first + i);
        if (load->image->writable)
            is_free &= !metadata_set_contains(&load->image->metadata, first + i);
    }
    return is_free;
}

// One entry of a table: the bits from granule `first` on. `bits` NULL: only what the entry names is
// looked at.
static const char *load_cluster(Fiber *self, Load *load, Be64 raw, uint64_t first, Bitmap *bits)
{
    HostOff cluster;
    uint32_t cluster_bytes = load->image->geometry.cluster_bytes;
    if (!qcow2_bitmap_table_entry_decode(be64_get(raw), &cluster) || cluster.v % cluster_bytes)
        return "an entry of its table is impossible";
    if (!cluster.v && be64_get(raw) && bits)
        bitmap_set(bits, first << bitmap_granularity_bits(bits),
                   (uint64_t)cluster_bytes * 8 << bitmap_granularity_bits(bits));
    if (!cluster.v)
        return NULL;
    if (!may_read(load, cluster.v, cluster_bytes))
        return "its table names what does not lie in the file";
    if (!claim_clusters(load, cluster, 1))
        return "it lies on other metadata";
    if (!bits)
        return NULL;
    if (read_some(self, load, cluster, load->data, cluster_bytes) < 0)
        return "it cannot be read";
    bitmap_set_bits(bits, first, load->data, cluster_bytes);
    return NULL;
}

// NULL, or what is wrong.
static const char *load_table(Fiber *self, Load *load, const Qcow2BitmapEntry *e, Bitmap *bits)
{
    uint64_t bytes = (uint64_t)e->table_entries * sizeof(Be64);
    uint64_t granules_per_cluster = (uint64_t)load->image->geometry.cluster_bytes * 8;
    const char *fault = NULL;
    if ((uint64_t)e->table_entries * load->image->geometry.cluster_bytes >
        QCOW2_MAX_BITMAP_BITS_BYTES)
        return "its table is larger than that of any bitmap";
    if (e->table.v % load->image->geometry.cluster_bytes || !may_read(load, e->table.v, bytes))
        return "its table does not lie in the file";
    if (!claim_clusters(load, e->table, image_clusters_for(load->image, bytes)))
        return "its table lies on other metadata";
    for (uint64_t done = 0; done < bytes && !fault; done += WINDOW_BYTES) {
        uint64_t n = MIN(bytes - done, WINDOW_BYTES), index = done / sizeof(Be64);
        if (read_some(self, load, host_off(e->table.v + done), load->window, n) < 0)
            return "its table cannot be read";
        for (uint64_t i = 0; i < n / sizeof(Be64) && !fault; i++)
            fault =
                load_cluster(self, load, load->window[i], (index + i) * granules_per_cluster, bits);
    }
    return fault;
}

// Tells the first one by name, the others by number.
static void note_inconsistent(Load *load, const char *name, const char *reason)
{
    if (!load->n_inconsistent++)
        load->first = g_strdup_printf("'%.100s' %s", name, reason);
}

static void load_one(Fiber *self, Load *load, StoredBitmap *stored, Node *node)
{
    const Qcow2BitmapEntry *e = &stored->entry;
    bool is_in_use = e->flags & QCOW2_BITMAP_IN_USE;
    uint64_t n_bits = (node->size_bytes >> e->granularity_bits) +
                      ((node->size_bytes & ((UINT64_C(1) << e->granularity_bits) - 1)) != 0);
    Bitmap *bits = is_in_use ? NULL : bitmap_new(node->size_bytes, e->granularity_bits);
    const char *reason = NULL;
    if (!is_in_use && e->table_entries != image_clusters_for(load->image, (n_bits + 7) / 8))
        reason = "is not of the disk's size";
    const char *fault = load_table(self, load, e, reason ? NULL : bits);
    stored->is_damaged = fault;
    if (is_in_use)
        reason = "was in use when its image was closed last, and not stored";
    else if (!reason)
        reason = fault;
    if (reason)
        g_clear_pointer(&bits, bitmap_free);
    DirtyBitmapSpec spec = {
        .name = e->name,
        .granularity_bits = e->granularity_bits,
        .is_persistent = true,
        .is_disabled = !(e->flags & QCOW2_BITMAP_AUTO),
    };
    dirty_bitmap_add_stored(node, &spec, bits, reason);
    if (reason)
        note_inconsistent(load, e->name, reason);
}

void bitmap_load_all(Fiber *self, Qcow2Image *image, Node *node)
{
    if (!bitmap_directory_is_valid(image) || image->is_shared || image->bitmaps)
        return;
    GArray *bitmaps;
    int r = bitmap_directory_load(self, image, &bitmaps);
    if (r == -EINVAL)
        image_tell(image, "%s: its bitmap directory is damaged and ignored", image->name);
    else if (r < 0)
        image_tell(image, "%s: its bitmap directory cannot be read: %s", image->name,
                   g_strerror(-r));
    if (r < 0)
        return;
    uint64_t max_bytes = image->max_bitmap_clusters << image->geometry.cluster_bits;
    Load load = {
        .image = image,
        .left_bytes = MIN(file_size(image->file), max_bytes) + image->geometry.cluster_bytes,
        .data = g_malloc(image->geometry.cluster_bytes),
        .window = g_malloc(WINDOW_BYTES),
    };
    for (guint i = 0; i < bitmaps->len; i++)
        load_one(self, &load, &g_array_index(bitmaps, StoredBitmap, i), node);
    image->bitmaps = bitmaps;
    if (load.n_inconsistent)
        image_tell(image,
                   "%s: %u of its %u dirty bitmaps %s inconsistent, and can only be removed: %s",
                   image->name, load.n_inconsistent, bitmaps->len,
                   load.n_inconsistent == 1 ? "is" : "are", load.first);
    cluster_set_done(&load.clusters);
    g_free(load.first);
    g_free(load.data);
    g_free(load.window);
}
