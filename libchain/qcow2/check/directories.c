// SPDX-License-Identifier: LGPL-2.1-or-later
// The scan's part for what the specification lists in directories: snapshots with their L1 tables,
// persistent bitmaps with their tables and clusters. In a check's fiber; reads only.

#include <errno.h>
#include <inttypes.h>

#include "format/qcow2-snapshot.h"
#include "qcow2/check/state.h"

enum { WINDOW_BYTES = 256 << 10 };
// Tables of all bitmaps together; real ones have a few entries each.
#define MAX_BITMAP_ENTRIES_IN_ALL (UINT64_C(64) << 20)

// Reads a directory of variable-length entries from front to back.
typedef struct Window {
    Check *check;
    const char *what;
    uint64_t start;     // of the directory
    uint64_t max_bytes; // nothing is read beyond
    uint64_t pos;       // next entry, from the start
    uint8_t *buf;       // holds [buf_pos, buf_pos + buf_len)
    uint64_t buf_pos;
    size_t buf_len, buf_size;
} Window;

static bool window_init(Window *w, Check *c, const char *what, uint64_t start, uint64_t max_bytes)
{
    *w = (Window){.check = c, .what = what, .start = start, .max_bytes = max_bytes};
    uint64_t in_file = start < c->file_bytes ? c->file_bytes - start : 0;
    w->max_bytes = MIN(max_bytes, in_file + c->g.cluster_bytes);
    w->buf_size = MIN(w->max_bytes, WINDOW_BYTES);
    w->buf = g_try_malloc(w->buf_size);
    return w->buf || !w->buf_size;
}

// Bytes at the next entry: as many as are at hand; after window_refill() at least an entry.
static const uint8_t *window_get(const Window *w, size_t *ret_len)
{
    *ret_len = w->buf_pos + w->buf_len - w->pos;
    return w->buf + (w->pos - w->buf_pos);
}

// 0; 1 when there is nothing more to be had; -errno.
static int window_refill(Window *w)
{
    if (w->pos >= w->max_bytes || (w->buf_len && w->pos == w->buf_pos))
        return 1;
    w->buf_pos = w->pos;
    w->buf_len = MIN(w->buf_size, w->max_bytes - w->pos);
    int r = check_read(w->check, w->start + w->pos, w->buf, w->buf_len, w->what);
    if (r < 0)
        w->buf_len = 0;
    return r < 0 ? r : 0;
}

// --- Snapshots

static void take_snapshot(Check *c, const Qcow2Snapshot *s, uint32_t number)
{
    const char *fault = NULL;
    uint64_t len = (uint64_t)s->l1_entries * sizeof(Be64);
    if (s->l1_entries > QCOW2_MAX_L1_BYTES / sizeof(Be64))
        fault = "has an L1 table over the limit";
    else if (s->l1.v & (c->g.cluster_bytes - 1))
        fault = "has an L1 table at an unaligned offset";
    else if (s->l1_entries && (!s->l1.v || !check_in_file(c, s->l1.v, len)))
        fault = "has an L1 table outside the file";
    if (fault) {
        g_autofree char *name = g_strescape(s->name, NULL);
        check_fault(c, false, "snapshot %" PRIu32 " ('%.100s') %s", number, name, fault);
        c->incomplete = true;
        return;
    }
    CheckL1 table = {.off = s->l1.v, .n_entries = s->l1_entries, .weight = 1};
    g_array_append_val(c->l1s, table);
}

// Version 3 requires extra data up to the disk size.
static bool lacks_extra_data(const Check *c, const uint8_t *entry)
{
    return c->h.version >= 3 && be32_get(*(const Be32 *)(entry + 36)) < 16;
}

static int scan_snapshot_entries(Check *c, Window *w)
{
    for (uint32_t i = 0; i < c->h.n_snapshots;) {
        size_t len;
        const uint8_t *entry = window_get(w, &len);
        Qcow2Snapshot s;
        g_autoptr(GError) error = NULL;
        int r = len ? qcow2_snapshot_decode_any(entry, len, c->h.size_bytes, &s, &error) : -EAGAIN;
        if (r == -EAGAIN) {
            r = window_refill(w);
            if (r == 0)
                continue;
        } else if (r > 0) {
            if (lacks_extra_data(c, entry))
                check_fault(c, false, "snapshot %" PRIu32 " lacks the data that version 3 requires",
                            i);
            take_snapshot(c, &s, i++);
            qcow2_snapshot_clear(&s);
            w->pos += r;
            continue;
        }
        check_fault(c, false, "the snapshot table ends early, at entry %" PRIu32 "%s%s", i,
                    error ? ": " : "", error ? error->message : "");
        c->incomplete = true;
        return 0;
    }
    return check_add(c, w->start, w->pos, 1);
}

int check_scan_snapshots(Check *c)
{
    if (!c->h.n_snapshots)
        return 0;
    if (!check_in_file(c, c->h.snapshot_table.v, QCOW2_MIN_SNAPSHOT_ENTRY_BYTES)) {
        check_fault(c, false, "the snapshot table at offset %#" PRIx64 " lies outside the file",
                    c->h.snapshot_table.v);
        c->incomplete = true;
        return 0;
    }
    Window w;
    if (!window_init(&w, c, "snapshot table", c->h.snapshot_table.v,
                     QCOW2_MAX_SNAPSHOT_TABLE_BYTES))
        return -ENOMEM;
    int r = scan_snapshot_entries(c, &w);
    g_free(w.buf);
    return r;
}

// --- Bitmaps

// A broken directory makes the bitmaps useless; repair forgets them all, and says so.
static int lose_bitmaps(Check *c, const char *why)
{
    check_fault(c, true, "the persistent bitmaps are broken: %s", why);
    c->bitmaps_lost = true;
    if (c->fix & QCOW2_CHECK_FIX_ERRORS)
        c->drop_bitmaps = true;
    else
        c->incomplete = true;
    return 0;
}

static int scan_bitmap_table(Check *c, const Qcow2BitmapEntry *b)
{
    uint64_t len = (uint64_t)b->table_entries * sizeof(Be64);
    if ((b->table.v & (c->g.cluster_bytes - 1)) || !check_in_file(c, b->table.v, len))
        return lose_bitmaps(c, "a table lies outside the file or is unaligned");
    int r = check_add(c, b->table.v, len, 1);
    for (uint64_t pos = 0; pos < len && r >= 0; pos += c->buf_bytes) {
        size_t n = MIN(len - pos, c->buf_bytes);
        if (check_read(c, b->table.v + pos, c->buf, n, "bitmap table") < 0)
            continue;
        const Be64 *entries = (const Be64 *)c->buf;
        for (size_t i = 0; i < n / sizeof(Be64) && r >= 0; i++) {
            HostOff cluster;
            if (!qcow2_bitmap_table_entry_decode(be64_get(entries[i]), &cluster) ||
                (cluster.v & (c->g.cluster_bytes - 1)) ||
                (cluster.v && !check_in_file(c, cluster.v, c->g.cluster_bytes)))
                return lose_bitmaps(c, "an entry of a table is impossible");
            if (cluster.v)
                r = check_add(c, cluster.v, c->g.cluster_bytes, 1);
        }
    }
    return r;
}

static int scan_bitmap_entries(Check *c, Window *w)
{
    uint64_t n_in_all = 0;
    for (uint32_t i = 0; i < c->h.bitmaps.n_bitmaps;) {
        size_t len;
        const uint8_t *entry = window_get(w, &len);
        Qcow2BitmapEntry b;
        g_autoptr(GError) error = NULL;
        int r = len ? qcow2_bitmap_entry_decode(entry, len, &b, &error) : -EAGAIN;
        if (r == -EAGAIN) {
            r = window_refill(w);
            if (r == 0)
                continue;
            return lose_bitmaps(c, "the directory ends early");
        }
        if (r < 0)
            return lose_bitmaps(c, error->message);
        w->pos += r;
        i++;
        n_in_all += b.table_entries;
        r = n_in_all > MAX_BITMAP_ENTRIES_IN_ALL
                ? lose_bitmaps(c, "their tables are absurdly large")
                : scan_bitmap_table(c, &b);
        qcow2_bitmap_entry_clear(&b);
        if (r < 0 || c->bitmaps_lost)
            return r;
    }
    if (w->pos != c->h.bitmaps.directory_bytes)
        return lose_bitmaps(c, "the directory's length is not that of its entries");
    return check_add(c, w->start, w->pos, 1);
}

int check_scan_bitmaps(Check *c)
{
    const Qcow2BitmapsExtension *b = &c->h.bitmaps;
    if (!c->h.has_bitmaps_extension || !(c->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (c->drop_bitmaps) {
        check_fault(c, true, "the persistent bitmaps are broken and will be forgotten");
        return 0;
    }
    if (!check_in_file(c, b->directory.v, b->directory_bytes))
        return lose_bitmaps(c, "the directory lies outside the file");
    Window w;
    if (!window_init(&w, c, "bitmap directory", b->directory.v, b->directory_bytes))
        return -ENOMEM;
    int r = scan_bitmap_entries(c, &w);
    g_free(w.buf);
    return r;
}
