// SPDX-License-Identifier: LGPL-2.1-or-later
// One write-back takes a copy of everything dirty in one step (no suspend point), so that it is
// consistent in itself: each L2 entry in it points at data whose write has completed and whose
// refcount is in it too. Then, in this order (docs/ordering.md §2, §3):
//
//     A  refcount slices, slices of L2 tables that nothing names yet   → sync (data and COW edges
//     too) A2 refcount table entries of new blocks                          → sync, only when there
//     are any B  slices of linked L2 tables, L1 entries                        → sync
//
// Requests go on meanwhile; what they change is dirty again and belongs to the next one.
//
// Freed clusters (docs/ordering.md §4):
//
//     freed ──(written back: unlinking durable)──▶ settling ──(pin turn)──▶ releasing ──(old pins
//     drained)──▶ released
//
// Two generations of pins: requests hold pins[pin_now]. When a batch of ranges starts to be
// released the turn passes to the other pin (which nobody holds), and the ranges wait until the old
// one has no holder: every request that could have looked them up has then ended.

#include "qcow2/writeback.h"

#include <errno.h>
#include <string.h>

#include "qcow2/allocator.h"
#include "qcow2/view.h"

enum {
    // Write back once this much is dirty, even without a flush by the guest: bounds memory.
    BACKGROUND_DIRTY_BYTES = 4 << 20,
    MAX_DIRTY_BYTES = 16 << 20,
    BACKGROUND_FREED_BYTES = 64 << 20,
};

// One piece of metadata on its way to the disk: a copy, so that the original may change.
typedef struct Piece {
    HostOff off;
    uint32_t bytes;
    uint8_t *data;
} Piece;

typedef struct Snapshot {
    GArray *before;    // A
    GArray *ref_table; // A2
    GArray *after;     // B
    GPtrArray *slices; // TableSlice, to be marked dirty again on failure (held)
    GArray *table_indices, *l1_indices;
    GArray *new_tables; // uint64_t clusters: linked durably once this is done
    GArray *freed;      // ClusterRange
    uint8_t *copies;    // the pieces' memory
} Snapshot;

void writeback_init(Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    w->freed = g_array_new(false, false, sizeof(ClusterRange));
    w->settling = g_array_new(false, false, sizeof(ClusterRange));
    w->releasing = g_array_new(false, false, sizeof(ClusterRange));
    for (unsigned i = 0; i < 2; i++)
        image->pins[i] = (ImagePin){{.drained = writeback_pin_drained}, image, i};
}

void writeback_done(Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    g_clear_pointer(&w->freed, g_array_unref);
    g_clear_pointer(&w->settling, g_array_unref);
    g_clear_pointer(&w->releasing, g_array_unref);
}

// Adds sector-sized pieces for the changed entries of a table (entries are 8 bytes; `table` is
// padded to whole sectors). Sorts and consumes `indices`' duplicates.
static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void add_table_sectors(GArray *pieces, HostOff table_off, const Be64 *table,
                              uint64_t n_table, GArray *indices)
{
    g_array_sort(indices, compare_u64);
    uint64_t last_sector = UINT64_MAX;
    for (guint i = 0; i < indices->len; i++) {
        uint64_t sector = g_array_index(indices, uint64_t, i) / 64;
        if (sector == last_sector)
            continue;
        last_sector = sector;
        // A copy of its own: there are few of these.
        uint64_t n = MIN(64, n_table - sector * 64);
        Piece p = {host_off(table_off.v + sector * 512), n * 8,
                   g_memdup2(table + sector * 64, n * 8)};
        g_array_append_val(pieces, p);
    }
}

static bool slice_is_of_new_table(const Qcow2Image *image, const TableSlice *s)
{
    return image->metadata.new_tables.n &&
           cluster_set_contains(&image->metadata.new_tables, image_cluster_of(image, s->host));
}

// The one step. Nothing here suspends.
static void snapshot_take(Qcow2Image *image, Snapshot *s)
{
    Writeback *w = &image->writeback;
    uint32_t slice_bytes = image->geometry.slice_bytes;
    *s = (Snapshot){
        .before = g_array_new(false, false, sizeof(Piece)),
        .ref_table = g_array_new(false, false, sizeof(Piece)),
        .after = g_array_new(false, false, sizeof(Piece)),
        .slices = g_ptr_array_sized_new(w->dirty.n),
        .new_tables = g_array_new(false, false, sizeof(uint64_t)),
        .copies = w->dirty.n ? g_malloc(w->dirty.n * slice_bytes) : NULL,
    };
    uint8_t *copy = s->copies;
    while (w->dirty.first) {
        TableSlice *slice = w->dirty.first;
        memcpy(copy, slice->data, slice_bytes);
        Piece p = {slice->host, slice_bytes, copy};
        copy += slice_bytes;
        bool early = slice->kind == TABLE_SLICE_REFCOUNT || slice_is_of_new_table(image, slice);
        g_array_append_val(early ? s->before : s->after, p);
        slice->n_holders++; // stays in memory until it is on disk
        g_ptr_array_add(s->slices, slice);
        table_slice_set_clean(slice, &w->dirty);
    }
    s->table_indices = image->dirty_refcount_table;
    image->dirty_refcount_table = g_array_new(false, false, sizeof(uint64_t));
    add_table_sectors(s->ref_table, image->header.refcount_table, image->refcount_table,
                      image->n_refcount_table, s->table_indices);
    if (image->head) {
        s->l1_indices = image->head->dirty_l1;
        image->head->dirty_l1 = g_array_new(false, false, sizeof(uint64_t));
        add_table_sectors(s->after, image->header.l1, image->head->l1, image->head->n_l1,
                          s->l1_indices);
    }
    for (uint64_t i = 0; image->metadata.new_tables.n && i <= image->metadata.new_tables.mask;
         i++) {
        if (image->metadata.new_tables.slots[i]) {
            uint64_t cluster = image->metadata.new_tables.slots[i] - 1;
            g_array_append_val(s->new_tables, cluster);
        }
    }
    s->freed = w->freed;
    w->freed = g_array_new(false, false, sizeof(ClusterRange));
    w->n_freed_clusters = 0;
}

static void free_piece_copies(GArray *pieces, const Snapshot *s, uint64_t copies_bytes)
{
    for (guint i = 0; i < pieces->len; i++) {
        uint8_t *data = g_array_index(pieces, Piece, i).data;
        if (data < s->copies || data >= s->copies + copies_bytes)
            g_free(data);
    }
    g_array_unref(pieces);
}

static void snapshot_drop(Qcow2Image *image, Snapshot *s, bool durable)
{
    Writeback *w = &image->writeback;
    for (guint i = 0; i < s->slices->len; i++) {
        TableSlice *slice = s->slices->pdata[i];
        slice->n_holders--;
        if (!durable)
            table_slice_set_dirty(slice, &w->dirty);
    }
    if (!durable) {
        g_array_append_vals(image->dirty_refcount_table, s->table_indices->data,
                            s->table_indices->len);
        if (s->l1_indices && image->head)
            g_array_append_vals(image->head->dirty_l1, s->l1_indices->data, s->l1_indices->len);
        for (guint i = 0; i < s->freed->len; i++)
            writeback_free(image, g_array_index(s->freed, ClusterRange, i));
    } else {
        g_array_append_vals(w->settling, s->freed->data, s->freed->len);
    }
    uint64_t bytes = (uint64_t)s->slices->len * image->geometry.slice_bytes;
    free_piece_copies(s->before, s, bytes);
    free_piece_copies(s->ref_table, s, bytes);
    free_piece_copies(s->after, s, bytes);
    g_ptr_array_unref(s->slices);
    g_array_unref(s->table_indices);
    if (s->l1_indices)
        g_array_unref(s->l1_indices);
    g_array_unref(s->new_tables);
    g_array_unref(s->freed);
    g_free(s->copies);
}

static int compare_pieces(const void *a, const void *b)
{
    const Piece *x = a, *y = b;
    return (x->off.v > y->off.v) - (x->off.v < y->off.v);
}

// Writes all pieces, neighbours together, in one batch.
static int write_pieces(Fiber *self, Qcow2Image *image, GArray *pieces)
{
    IoBatch batch;
    io_batch_init(&batch, self);
    g_array_sort(pieces, compare_pieces);
    for (guint i = 0; i < pieces->len;) {
        struct iovec iov[FILE_MAX_IOV];
        unsigned n = 0;
        HostOff start = g_array_index(pieces, Piece, i).off;
        uint64_t end = start.v;
        while (i < pieces->len && n < FILE_MAX_IOV) {
            Piece *p = &g_array_index(pieces, Piece, i);
            if (p->off.v != end)
                break;
            iov[n++] = (struct iovec){p->data, p->bytes};
            end += p->bytes;
            i++;
        }
        file_write_start(image->file, start, iov, n, &batch);
    }
    return io_batch_wait(self, &batch);
}

static int write_in_order(Fiber *self, Qcow2Image *image, Snapshot *s)
{
    // §2: data and COW edges were complete when their L2 entries were made, so this sync covers
    // them.
    int r = write_pieces(self, image, s->before);
    if (r == 0)
        r = file_flush(self, image->file);
    // §6: the tables are durable. Whatever becomes of the L1 write below, it may reach the disk, so
    // from now on their slices are those of linked tables.
    for (guint i = 0; r == 0 && i < s->new_tables->len; i++)
        cluster_set_remove(&image->metadata.new_tables, g_array_index(s->new_tables, uint64_t, i));
    // §3: a table entry only after the block it names.
    if (r == 0 && s->ref_table->len) {
        r = write_pieces(self, image, s->ref_table);
        if (r == 0)
            r = file_flush(self, image->file);
    }
    if (r == 0 && s->after->len) {
        r = write_pieces(self, image, s->after);
        if (r == 0)
            r = file_flush(self, image->file);
    }
    return r;
}

static void turn_pins(Qcow2Image *image);

static void release_fiber(Fiber *self, void *arg)
{
    Qcow2Image *image = arg;
    Writeback *w = &image->writeback;
    g_autoptr(GArray) ranges = w->releasing;
    w->releasing = g_array_new(false, false, sizeof(ClusterRange));
    for (guint i = 0; i < ranges->len; i++)
        allocator_release(self, image, g_array_index(ranges, ClusterRange, i));
    turn_pins(image);
    w->n_releasing--;
    w->n_released++;
    fiber_queue_wake_all(&w->released);
    fiber_wait_group_done(&w->fibers);
}

static int compare_ranges(const void *a, const void *b)
{
    const ClusterRange *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

// Merges neighbours, so that punching takes few calls. Ranges may repeat (a shared cluster freed
// twice): those stay apart.
static void merge_ranges(GArray *ranges)
{
    g_array_sort(ranges, compare_ranges);
    guint out = 0;
    for (guint i = 1; i < ranges->len; i++) {
        ClusterRange *last = &g_array_index(ranges, ClusterRange, out);
        ClusterRange next = g_array_index(ranges, ClusterRange, i);
        if (last->first + last->n == next.first)
            last->n += next.n;
        else
            g_array_index(ranges, ClusterRange, ++out) = next;
    }
    if (ranges->len)
        g_array_set_size(ranges, out + 1);
}

// Passes the turn to the other pin if ranges wait for that and nobody is waited for yet.
static void turn_pins(Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    unsigned old = image->pin_now;
    if (!w->settling->len || w->releasing->len || image->pins[!old].pin.n_holders)
        return;
    GArray *empty = w->releasing;
    w->releasing = w->settling;
    w->settling = empty;
    merge_ranges(w->releasing);
    image->pin_now = !old;
    if (image->pins[old].pin.n_holders == 0)
        writeback_pin_drained(&image->pins[old].pin);
}

void writeback_pin_drained(IoPin *pin)
{
    const ImagePin *image_pin = (const ImagePin *)pin;
    Qcow2Image *image = image_pin->image;
    Writeback *w = &image->writeback;
    if (image_pin->index == image->pin_now || !w->releasing->len)
        return;
    fiber_wait_group_add(&w->fibers, 1);
    w->n_releasing++;
    if (fiber_spawn(image->loop, "release clusters", release_fiber, image, NULL) < 0) {
        // No stack to be had: keep them; the next write-back tries again.
        g_array_append_vals(w->settling, w->releasing->data, w->releasing->len);
        g_array_set_size(w->releasing, 0);
        w->n_releasing--;
        fiber_queue_wake_all(&w->released);
        fiber_wait_group_done(&w->fibers);
    }
}

static int writeback_once(Fiber *self, Qcow2Image *image)
{
    // §9: nothing more is written once a sync has failed, for no order can be kept any longer.
    if (image->corrupt || image->writeback.abandoned || file_flush_failed(image->file))
        return -EIO;
    Snapshot s;
    snapshot_take(image, &s);
    int r = write_in_order(self, image, &s);
    snapshot_drop(image, &s, r == 0);
    turn_pins(image);
    return r;
}

int writeback_run(Fiber *self, Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    if (w->running) {
        // The running one may have taken its snapshot before our changes: share the next.
        uint64_t wanted = w->n_started + 1;
        while (w->n_done < wanted && w->running)
            fiber_queue_wait(self, &w->next, false, "write-back");
        if (w->n_done >= wanted)
            return w->last_result;
    }
    w->running = true;
    w->n_started++;
    int r = writeback_once(self, image);
    w->last_result = r;
    w->n_done = w->n_started;
    w->running = false;
    fiber_queue_wake_all(&w->next);
    return r;
}

static void background_fiber(Fiber *self, void *arg)
{
    Qcow2Image *image = arg;
    writeback_run(self, image); // its error comes again at the next flush, or through throttle
    image->writeback.background = false;
    fiber_wait_group_done(&image->writeback.fibers);
}

static void start_background(Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    if (w->background)
        return;
    w->background = true;
    fiber_wait_group_add(&w->fibers, 1);
    if (fiber_spawn(image->loop, "write back", background_fiber, image, NULL) < 0) {
        w->background = false;
        fiber_wait_group_done(&w->fibers);
    }
}

void writeback_free(Qcow2Image *image, ClusterRange range)
{
    Writeback *w = &image->writeback;
    ClusterRange *last =
        w->freed->len ? &g_array_index(w->freed, ClusterRange, w->freed->len - 1) : NULL;
    if (last && last->first + last->n == range.first)
        last->n += range.n;
    else
        g_array_append_val(w->freed, range);
    w->n_freed_clusters += range.n;
}

bool writeback_reclaim(Fiber *self, Qcow2Image *image, uint64_t n_released)
{
    Writeback *w = &image->writeback;
    bool is_pending =
        w->freed->len || w->settling->len || w->releasing->len || w->n_releasing || w->running;
    if (w->n_released != n_released || !is_pending || writeback_run(self, image) < 0)
        return w->n_released != n_released;
    // What this write-back settled may stand behind one batch that waits for its pins and one that
    // is being released.
    for (unsigned n = 0; n < 3 && (w->releasing->len || w->n_releasing); n++)
        fiber_queue_wait(self, &w->released, false, "release of freed clusters");
    return w->n_released != n_released;
}

int writeback_throttle(Fiber *self, Qcow2Image *image)
{
    Writeback *w = &image->writeback;
    uint64_t bytes = w->dirty.n * image->geometry.slice_bytes;
    uint64_t limit = map_memory_limit(image->memory) / 4;
    uint64_t freed_bytes = w->n_freed_clusters << image->geometry.cluster_bits;
    if (G_LIKELY(bytes < MIN((uint64_t)BACKGROUND_DIRTY_BYTES, limit / 2) &&
                 freed_bytes < BACKGROUND_FREED_BYTES))
        return 0;
    if (bytes >= MIN((uint64_t)MAX_DIRTY_BYTES, limit))
        return writeback_run(self, image);
    if (!w->running)
        start_background(image);
    return 0;
}
