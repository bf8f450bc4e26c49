// SPDX-License-Identifier: LGPL-2.1-or-later
// Views: making and closing them, and looking up guest offsets. A look-up that finds its slice
// cached takes an L1 entry, one hash probe and one decode; nothing is locked or allocated.

#include "qcow2/view.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/writeback.h"

// Entries from `index` that lie in the same slice and below the view's end.
static uint32_t entries_left(const Qcow2View *view, GuestOff off, uint32_t index_in_slice)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t to_end =
        (view->node.size_bytes - off.v + qcow2_in_cluster(g, off) + g->cluster_bytes - 1) >>
        g->cluster_bits;
    return MIN(g->slice_entries - index_in_slice, to_end);
}

// Where the slice is: 0 and *ret_slice; 1 when there is no L2 table; -EIO for a bad L1 entry,
// -ESTALE for one that names a place past the end of a shared image.
static inline int slice_place(Qcow2View *view, GuestOff off, HostOff *ret_slice,
                              EntryPlace *ret_place)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t i1 = qcow2_l1_index(g, off);
    uint32_t i2 = qcow2_l2_index(g, off), in_slice = i2 & (g->slice_entries - 1);
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[i1]);
    if (!l1.l2.v && !l1.reserved_set) {
        // Nothing here, up to the next L1 entry; callers skip at most that far.
        *ret_place = (EntryPlace){NULL, i2, g->l2_entries - i2};
        return 1;
    }
    bool is_outside = image_cluster_of(image, l1.l2) >= image->allocator.tail;
    bool is_broken = l1.reserved_set || l1.l2.v & (g->cluster_bytes - 1);
    if (G_UNLIKELY(is_outside && !is_broken && image->is_shared))
        return -ESTALE;
    if (G_UNLIKELY(is_broken || is_outside))
        return image_mark_corrupt(
            image, "L1 entry %" G_GUINT64_FORMAT " (%#" G_GINT64_MODIFIER "x) is damaged", i1,
            be64_get(view->l1.entries[i1]));
    *ret_slice = host_off(l1.l2.v + (uint64_t)(i2 - in_slice) * g->l2_entry_bytes);
    *ret_place = (EntryPlace){NULL, in_slice, entries_left(view, off, in_slice)};
    return 0;
}

int view_try_find_entry(Qcow2View *view, GuestOff off, EntryPlace *ret_place)
{
    HostOff place = {0};
    int r = slice_place(view, off, &place, ret_place);
    if (r)
        return r < 0 ? r : 0;
    TableSlice *slice = table_cache_find(view->image->cache, view->image, place);
    if (!slice || slice->kind != TABLE_SLICE_L2)
        return -EAGAIN;
    ret_place->slice = slice->data;
    return 0;
}

static int load_slice(Fiber *self, Qcow2View *view, HostOff place, TableSlice **ret_slice)
{
    Qcow2Image *image = view->image;
    int r = image_see_end(self, image, image->file, place.v + image->geometry.slice_bytes);
    if (r == 0)
        r = image_get_slice(self, image, place, TABLE_SLICE_L2, ret_slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "L2 table at offset %#" G_GINT64_MODIFIER "x overlaps a refcount block",
            place.v);
    return r;
}

int view_find_entry(Fiber *self, Qcow2View *view, GuestOff off, EntryPlace *ret_place)
{
    int r;
    while ((r = view_try_find_entry(view, off, ret_place)) == -EAGAIN) {
        HostOff place = {0};
        TableSlice *slice;
        r = slice_place(view, off, &place, ret_place);
        if (r == 0)
            r = load_slice(self, view, place, &slice);
        if (r < 0)
            return r;
        table_slice_release(slice);
        // Loaded and, since nothing suspends before the next look, still there.
    }
    return r;
}

static int bad_entry(Qcow2View *view, GuestOff off)
{
    return image_mark_corrupt(
        view->image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", off.v);
}

// Extended L2: what subcluster `s` of an entry shows.
static Qcow2ClusterKind subcluster_kind(const Qcow2L2Entry *e, uint32_t s)
{
    uint32_t bit = UINT32_C(1) << s;
    if (e->alloc_bitmap & bit)
        return QCOW2_CLUSTER_DATA;
    if (e->zero_bitmap & bit)
        return e->kind == QCOW2_CLUSTER_DATA ? QCOW2_CLUSTER_ZERO_ALLOCATED : QCOW2_CLUSTER_ZERO;
    return QCOW2_CLUSTER_UNALLOCATED;
}

static bool data_is_sane(Qcow2Image *image, HostOff cluster)
{
    return image->geometry.external_data
               ? image->data_file && !(cluster.v & (image->geometry.cluster_bytes - 1))
               : image_host_is_sane(image, cluster);
}

// The general decoder: any entry kind, extended L2, external data file.
static int decode_run_slow(Qcow2View *view, const EntryPlace *place, GuestOff off, uint64_t len,
                           ViewRun *run)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint32_t sub_bytes = 1u << g->subcluster_bits;
    *run = (ViewRun){0};
    uint64_t done = 0;
    for (uint32_t i = 0; i < place->n_left && done < len; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index + i);
        if (e.kind == QCOW2_CLUSTER_BAD)
            return done ? 0 : bad_entry(view, off);
        bool has_host = e.kind == QCOW2_CLUSTER_DATA || e.kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
        bool is_sane = !has_host || data_is_sane(image, e.host);
        if (!is_sane && !done && image->is_shared && !g->external_data)
            return -ESTALE;
        if (!is_sane)
            return done ? 0
                        : image_mark_corrupt(image,
                                             "guest offset %#" G_GINT64_MODIFIER
                                             "x maps to host offset %#" G_GINT64_MODIFIER "x, %s",
                                             off.v + done, e.host.v,
                                             metadata_set_contains(&image->metadata,
                                                                   image_cluster_of(image, e.host))
                                                 ? "which holds metadata"
                                                 : "outside the file");
        uint32_t in_cluster = i ? 0 : qcow2_in_cluster(g, off);
        if (e.kind == QCOW2_CLUSTER_COMPRESSED) {
            if (done)
                return 0;
            *run = (ViewRun){e.kind, MIN(len, g->cluster_bytes - in_cluster), e.host,
                             e.compressed_bytes, false};
            return 0;
        }
        for (uint32_t s = in_cluster >> g->subcluster_bits; s < g->subclusters && done < len; s++) {
            Qcow2ClusterKind kind = g->extended_l2 ? subcluster_kind(&e, s) : e.kind;
            uint64_t within = MAX(in_cluster, s << g->subcluster_bits);
            HostOff host = kind == QCOW2_CLUSTER_DATA ? host_off(e.host.v + within) : host_off(0);
            uint64_t n = MIN(((uint64_t)s << g->subcluster_bits) + sub_bytes - within, len - done);
            if (!done)
                *run = (ViewRun){kind, n, host, 0, e.copied};
            else if (kind == run->kind &&
                     (kind != QCOW2_CLUSTER_DATA ||
                      (host.v == run->host.v + done && e.copied == run->copied)))
                run->len += n;
            else
                return 0;
            done += n;
        }
    }
    return 0;
}

int view_decode_run(Qcow2View *view, const EntryPlace *place, GuestOff off, uint64_t len,
                    ViewRun *run)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint32_t in_cluster = qcow2_in_cluster(g, off);
    if (!place->slice) {
        uint64_t n = ((uint64_t)place->n_left << g->cluster_bits) - in_cluster;
        *run = (ViewRun){QCOW2_CLUSTER_UNALLOCATED, MIN(n, len), host_off(0), 0, false};
        return 0;
    }
    HostOff host;
    bool copied;
    if (!qcow2_l2_entry_is_plain(g, place->slice, place->index, &host, &copied) ||
        !image_host_is_sane(image, host))
        return decode_run_slow(view, place, off, len, run);
    *run = (ViewRun){QCOW2_CLUSTER_DATA, g->cluster_bytes - in_cluster,
                     host_off(host.v + in_cluster), 0, copied};
    for (uint32_t i = 1; run->len < len && i < place->n_left; i++) {
        HostOff next;
        bool next_copied;
        if (!qcow2_l2_entry_is_plain(g, place->slice, place->index + i, &next, &next_copied) ||
            next_copied != copied || next.v != run->host.v + run->len ||
            !image_host_is_sane(image, next))
            break;
        run->len += g->cluster_bytes;
    }
    run->len = MIN(run->len, len);
    return 0;
}

// Loads the slices for [off, off+len) that are not there, at once instead of one after the other as
// the caller comes to them. What fails to load is met again by who needs it.
static void fetch_ahead(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    enum { MAX_FETCH_BYTES = 128 << 10 }; // what one miss may add to the cache
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    unsigned n_looks = MAX_FETCH_BYTES / g->slice_bytes;
    uint64_t end = MIN(off.v + len, view->node.size_bytes);
    TableFetch fetch;
    table_fetch_begin(self, &fetch, image->cache, image, image->file, g->slice_bytes);
    while (off.v < end && n_looks-- > 0) {
        HostOff host = {0};
        EntryPlace place;
        int r = slice_place(view, off, &host, &place);
        if (r < 0)
            break;
        if (r == 0)
            table_fetch_add(&fetch, host, TABLE_SLICE_L2);
        off.v = ((off.v >> g->cluster_bits) + place.n_left) << g->cluster_bits;
    }
    table_fetch_end(self, &fetch);
}

static int find_and_decode(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len,
                           ViewRun *ret_run)
{
    EntryPlace place;
    int r = view_try_find_entry(view, off, &place);
    if (G_UNLIKELY(r == -EAGAIN)) {
        bool has_more = (uint64_t)place.n_left << view->image->geometry.cluster_bits < len;
        if (has_more && !view->image->is_shared)
            fetch_ahead(self, view, off, len);
        r = view_find_entry(self, view, off, &place);
    }
    return r < 0 ? r : view_decode_run(view, &place, off, len, ret_run);
}

// Of a shared image: what the other program has added lies past the end as we knew it.
static int find_shared_run(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len,
                           ViewRun *ret_run)
{
    Qcow2Image *image = view->image;
    File *data = image->data_file ? image->data_file : image->file;
    int r = find_and_decode(self, view, off, len, ret_run);
    if (r == -ESTALE) {
        r = image_remeasure(self, image, image->file);
        if (r == 0)
            r = find_and_decode(self, view, off, len, ret_run);
    }
    if (r == 0 && ret_run->kind == QCOW2_CLUSTER_DATA)
        r = image_see_end(self, image, data, ret_run->host.v + ret_run->len);
    return r == -ESTALE ? -EIO : r;
}

int view_find_run(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, ViewRun *ret_run)
{
    return G_UNLIKELY(view->image->is_shared) ? find_shared_run(self, view, off, len, ret_run)
                                              : find_and_decode(self, view, off, len, ret_run);
}

static File *view_file(Node *node)
{
    const Qcow2Image *image = view_of(node)->image;
    return image->data_file ? image->data_file : image->file;
}

static File *view_metadata_file(Node *node)
{
    const Qcow2Image *image = view_of(node)->image;
    return image->data_file ? image->file : NULL;
}

static int view_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    static const NodeExtentKind kinds[] = {
        [QCOW2_CLUSTER_UNALLOCATED] = NODE_EXTENT_BELOW,
        [QCOW2_CLUSTER_ZERO] = NODE_EXTENT_ZERO,
        [QCOW2_CLUSTER_ZERO_ALLOCATED] = NODE_EXTENT_ZERO_ALLOCATED,
        [QCOW2_CLUSTER_DATA] = NODE_EXTENT_DATA,
        [QCOW2_CLUSTER_COMPRESSED] = NODE_EXTENT_OPAQUE,
    };
    Qcow2View *view = view_of(node);
    ViewRun run;
    IoBatch batch; // only for the pin
    io_batch_init(&batch, self);
    image_pin(self, view->image, &batch);
    int r = view_find_run(self, view, off, len, &run);
    io_batch_wait(self, &batch);
    if (r < 0)
        return r;
    *ret_extent = (NodeExtent){
        .len = run.len,
        .kind = kinds[run.kind],
        .file = view_file(node),
        .host = run.host,
        .node = node,
    };
    // A compressed cluster's neighbour is a read of its own, but one extent may cover many.
    while (run.kind == QCOW2_CLUSTER_COMPRESSED && ret_extent->len < len) {
        EntryPlace place;
        GuestOff next = guest_off(off.v + ret_extent->len);
        if (view_try_find_entry(view, next, &place) < 0 || !place.slice ||
            view_decode_run(view, &place, next, len - ret_extent->len, &run) < 0 ||
            run.kind != QCOW2_CLUSTER_COMPRESSED)
            break;
        ret_extent->len += run.len;
    }
    return 0;
}

static bool view_may_have(Node *node, GuestOff off, uint64_t len)
{
    const Qcow2View *view = view_of(node);
    const Qcow2Geometry *g = &view->image->geometry;
    if (off.v >= node->size_bytes || !len)
        return false;
    uint64_t last = MIN(off.v + len, node->size_bytes) - 1;
    for (uint64_t i = qcow2_l1_index(g, off); i <= qcow2_l1_index(g, guest_off(last)); i++)
        if (view->l1.entries[i].raw)
            return true;
    return false;
}

static void view_close(Fiber *self, Node *node)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    if (view->is_head && image->head == view) {
        // Without its L1 later write-backs would make half of its changes durable: there must be
        // none. Nor may one be under way when it goes.
        int r;
        do
            r = writeback_run(self, &image->writeback);
        while (image->writeback.running);
        if (r < 0)
            writeback_end(&image->writeback);
        for (uint64_t i = 0; i < view->l1.n; i++)
            if (view->l1.entries[i].raw)
                metadata_set_remove(
                    &image->metadata,
                    image_cluster_of(image, qcow2_l1_entry_decode(view->l1.entries[i]).l2));
        image->head = NULL;
        image->writeback.parts.l1 = NULL;
    }
    qcow2_image_unref_close(self, image);
    entry_table_done(&view->l1);
}

static const NodeOps view_ops = {
    .driver = "qcow2",
    .read_start = view_read_start,
    .write = view_write,
    .zero = view_zero,
    .discard = view_discard,
    .flush = view_flush,
    .map = view_map,
    .file = view_file,
    .metadata_file = view_metadata_file,
    .may_have = view_may_have,
    .data_may_be_hole = view_data_may_be_hole,
    .close = view_close,
};

static const Qcow2Snapshot *find_snapshot(const Qcow2Image *image, const char *wanted)
{
    for (uint32_t i = 0; i < image->header.n_snapshots; i++)
        if (strcmp(image->snapshots[i].id, wanted) == 0)
            return &image->snapshots[i];
    for (uint32_t i = 0; i < image->header.n_snapshots; i++)
        if (strcmp(image->snapshots[i].name, wanted) == 0)
            return &image->snapshots[i];
    return NULL;
}

static char *snapshot_names(const Qcow2Image *image)
{
    GString *s = g_string_new(NULL);
    for (uint32_t i = 0; i < image->header.n_snapshots && s->len < 400; i++)
        g_string_append_printf(s, "%s%.100s (%.100s)", i ? ", " : "", image->snapshots[i].id,
                               image->snapshots[i].name);
    return g_string_free(s, false);
}

static int load_l1(Fiber *self, Qcow2Image *image, HostOff l1, uint64_t n_l1, uint64_t size_bytes,
                   Qcow2View *view, GError **error)
{
    const Qcow2Geometry *g = &image->geometry;
    uint64_t bytes = n_l1 * sizeof(Be64);
    const char *problem = NULL;
    if (n_l1 < qcow2_l1_entries_for(g, size_bytes))
        problem = "is too small for its virtual size";
    else if (bytes > QCOW2_MAX_L1_BYTES)
        problem = "is larger than 32 MiB";
    else if (n_l1 && (l1.v & (g->cluster_bytes - 1) || l1.v > file_size(image->file) ||
                      bytes > file_size(image->file) - l1.v))
        problem = "does not lie inside the file";
    if (problem) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "%s: its L1 table (%" G_GUINT64_FORMAT " entries at offset %#" G_GINT64_MODIFIER
                    "x) %s: the image is damaged; try 'qemu-img check'",
                    image->name, n_l1, l1.v, problem);
        return -EINVAL;
    }
    int r = entry_table_load(self, &view->l1, image->file, l1, n_l1);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "%s: cannot read its L1 table at offset %#" G_GINT64_MODIFIER "x: %s",
                    image->name, l1.v, g_strerror(-r));
    return r;
}

// The head's L2 tables join the metadata set, which also finds tables claimed twice.
static int collect_l2_tables(Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    for (uint32_t i = 0; i < view->l1.n; i++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(view->l1.entries[i]);
        if (!e.l2.v && !e.reserved_set)
            continue;
        const char *problem = NULL;
        if (e.reserved_set || e.l2.v & (image->geometry.cluster_bytes - 1) ||
            image_cluster_of(image, e.l2) >= image->allocator.tail)
            problem = "is damaged";
        else if (!metadata_set_add(&image->metadata, image_cluster_of(image, e.l2)))
            problem = "names a cluster that holds other metadata";
        if (problem) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                        "%s: L1 entry %u (%#" G_GINT64_MODIFIER "x) %s: the image is corrupt; try "
                        "'qemu-img check -r all', or open it with --read-only",
                        image->name, i, be64_get(view->l1.entries[i]), problem);
            return -EUCLEAN;
        }
    }
    return 0;
}

int qcow2_view_new(Fiber *self, Qcow2Image *image, const char *wanted, Node **ret_node,
                   GError **error)
{
    const Qcow2Header *h = &image->header;
    const Qcow2Snapshot *snapshot = NULL;
    int r = image_load(self, image, error);
    if (r < 0)
        return r;
    if (wanted) {
        snapshot = find_snapshot(image, wanted);
        if (!snapshot) {
            g_autofree char *names = snapshot_names(image);
            return error_set(error, -ENOENT, "%s: has no internal snapshot '%s'; it has %s",
                             image->name, wanted, *names ? names : "none");
        }
    }
    bool head_for_writing = !snapshot && image->writable;
    if (head_for_writing && image->head) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "%s: its head is open for writing already", image->name);
        return -EBUSY;
    }
    Qcow2View *view = g_new0(Qcow2View, 1);
    uint64_t size = snapshot ? snapshot->size_bytes : h->size_bytes;
    g_autofree char *name =
        snapshot ? g_strdup_printf("%s@%s", image->name, wanted) : g_strdup(image->name);
    node_init(&view->node, &view_ops, image->loop, name, size);
    view->image = image;
    view->is_head = head_for_writing;
    view->node.read_only = !head_for_writing;
    view->node.preferred_bytes = image->geometry.cluster_bytes;
    // Without one where another program writes: what two nodes know of it may differ.
    if (!image->is_shared)
        file_identity(image->file, view->node.identity.file);
    if (!image->is_shared && snapshot)
        view->node.identity.view = 1 + (snapshot - image->snapshots);
    r = load_l1(self, image, snapshot ? snapshot->l1 : h->l1,
                snapshot ? snapshot->l1_entries : h->l1_entries, size, view, error);
    if (r == 0 && head_for_writing)
        r = collect_l2_tables(view, error);
    qcow2_image_ref(image);
    if (r < 0) {
        node_unref_close(self, &view->node);
        return r;
    }
    if (head_for_writing) {
        image->head = view;
        image->writeback.parts.l1 = &view->l1;
    }
    *ret_node = &view->node;
    return 0;
}
