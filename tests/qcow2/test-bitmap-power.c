// SPDX-License-Identifier: LGPL-2.1-or-later
// Persistent dirty bitmaps on the simulation, with the power cut before each operation of a life
// with writes, a new bitmap, a removed one and a close: what the file then calls consistent names
// every change (docs/ordering.md §7, §12). Then with each operation failing.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/dirty-bitmap.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image.qcow2"
enum { SIZE = 1 << 20, CUTS_PER_POINT = 2, GRANULE_BITS = 12, ROUNDS = 3 };

// What the guest saw, and what happened when.
typedef struct Life {
    uint64_t seed;
    uint8_t before[SIZE]; // as the image was made: "auto" notes changes from here on
    uint8_t at_add[SIZE]; // when "new" was added
    uint8_t now[SIZE];
    bool has_new, is_gone; // "new" was added; "gone" removed
    int result;            // of opening
} Life;

static Node *open_head(Fiber *self, MapMemory *memory, bool read_only)
{
    Qcow2OpenOptions options = {.read_only = read_only, .memory = memory};
    File *file;
    Qcow2Image *image;
    Node *node = NULL;
    if (file_open(self, PATH, read_only ? 0 : FILE_WRITABLE, &file, NULL) < 0 ||
        qcow2_image_open(self, file, &options, &image, NULL) < 0)
        return NULL;
    if (qcow2_view_new(self, image, NULL, &node, NULL) < 0)
        node = NULL;
    qcow2_image_unref_close(self, image);
    return node;
}

static void change_some(Fiber *self, Life *life, HostRandom *r, Node *node)
{
    for (int i = 0; i < 6; i++) {
        uint64_t off = host_random(r, SIZE / 512) * 512;
        uint64_t wanted = 512 + host_random(r, 40) * 512, len = MIN(wanted, SIZE - off);
        g_autofree uint8_t *data = g_malloc(len);
        memset(data, 1 + host_random(r, 255), len);
        switch (host_random(r, 4)) {
        case 0:
            memset(data, 0, len);
            if (node_zero(self, node, guest_off(off), len, 0) == 0)
                memcpy(life->now + off, data, len);
            break;
        case 1:
            node_flush(self, node);
            break;
        default:
            if (node_write(self, node, guest_off(off), data, len, 0) == 0)
                memcpy(life->now + off, data, len);
        }
    }
}

static void live(Fiber *self, void *arg)
{
    Life *life = arg;
    HostRandom r = {life->seed};
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_head(self, memory, false);
    life->result = node ? 0 : -EIO;
    if (node) {
        change_some(self, life, &r, node);
        // Of a write that failed nobody knows what it did; a read that fails can be repeated.
        while (node_read(self, node, guest_off(0), life->at_add, SIZE) < 0)
            ;
        DirtyBitmapSpec spec = {.name = "new",
                                .node_name = "disk",
                                .granularity_bits = GRANULE_BITS,
                                .is_persistent = true};
        DirtyBitmap *added, *gone = dirty_bitmap_find(node, "gone");
        life->has_new = dirty_bitmap_add(node, &spec, &added, NULL) == 0;
        change_some(self, life, &r, node);
        if (gone && dirty_bitmap_remove(self, gone, NULL) == 0)
            life->is_gone = true;
        change_some(self, life, &r, node);
        node_unref_close(self, node);
    }
    map_memory_free(memory);
}

// One write in place: nothing is freed, so all that the close takes was uncounted before.
static void live_quietly(Fiber *self, void *arg)
{
    Life *life = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_head(self, memory, false);
    if (node) {
        DirtyBitmapSpec spec = {.name = "new",
                                .node_name = "disk",
                                .granularity_bits = GRANULE_BITS,
                                .is_persistent = true};
        DirtyBitmap *added;
        memcpy(life->at_add, life->before, SIZE);
        dirty_bitmap_add(node, &spec, &added, NULL);
        node_write(self, node, guest_off(0), "x", 1, 0);
        node_unref_close(self, node);
    }
    map_memory_free(memory);
}

// What a file says after its life, or a part of it.
typedef struct Look {
    const Life *life;
    const char *what;
    bool is_whole; // the life ended without a failure
    unsigned n_trusted, n_new;
} Look;

static void names_every_change(const Look *look, const DirtyBitmap *b, const uint8_t *from,
                               const uint8_t *content)
{
    const Bitmap *bits = dirty_bitmap_bits(b);
    uint64_t granule = UINT64_C(1) << dirty_bitmap_granularity_bits(b);
    for (uint64_t off = 0; off < SIZE; off += granule)
        if (memcmp(from + off, content + off, granule) && !bitmap_is_dirty(bits, off))
            fail_msg("%s: '%s' calls what has changed at %" PRIu64 " clean", look->what,
                     dirty_bitmap_name(b), off);
}

static void look_at_bitmap(Look *look, const DirtyBitmap *b, const uint8_t *content)
{
    const char *name = dirty_bitmap_name(b);
    DirtyBitmapInfo info;
    dirty_bitmap_info(b, &info);
    if (look->is_whole && info.is_inconsistent)
        fail_msg("%s: '%s' is inconsistent", look->what, name);
    if (info.is_inconsistent)
        return;
    look->n_trusted++;
    bool is_new = strcmp(name, "new") == 0, is_off = strcmp(name, "off") == 0;
    look->n_new += is_new;
    assert_int_equal(info.is_enabled, !is_off);
    if (is_new)
        names_every_change(look, b, look->life->at_add, content);
    else if (!is_off)
        names_every_change(look, b, look->life->before, content);
    if (!is_new) // what was dirty when the image was made
        assert_true(bitmap_is_dirty(dirty_bitmap_bits(b), 100 << 10));
    if (is_off)
        assert_int_equal(info.dirty_granules, 2);
}

static void look_fiber(Fiber *self, void *arg)
{
    Look *look = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_head(self, memory, true);
    if (!node)
        fail_msg("%s: it cannot be opened", look->what);
    static uint8_t content[SIZE];
    assert_int_equal(node_read(self, node, guest_off(0), content, SIZE), 0);
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    for (guint i = 0; bitmaps && i < bitmaps->len; i++)
        look_at_bitmap(look, bitmaps->pdata[i], content);
    if (look->is_whole) {
        assert_memory_equal(content, look->life->now, SIZE);
        assert_int_equal(bitmaps->len, 3);
    }
    node_unref_close(self, node);
    map_memory_free(memory);
    File *file;
    Qcow2CheckResult counts = {0};
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &counts, NULL), 0);
    if (counts.n_corruptions || (look->is_whole && counts.n_leaks))
        fail_msg("%s: %s", look->what, (char *)g_ptr_array_index(counts.messages, 0));
    qcow2_check_result_clear(&counts);
    file_close(self, file);
}

typedef struct Cutter {
    SimHook hook;
    Sim *sim;
    Look look;
    uint64_t seed, fail_at;
    int error;
    bool has_failed;
    uint64_t bad_off, bad_end; // fails from then on
} Cutter;

static int cut_before(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Cutter *c = (Cutter *)hook;
    for (unsigned i = 0; op != SIM_OP_READ && i < CUTS_PER_POINT; i++) {
        uint64_t seed = c->seed + n * CUTS_PER_POINT + i;
        g_autofree char *what =
            g_strdup_printf("power cut before operation %" PRIu64 ", seed %#" PRIx64, n, seed);
        Sim *after = sim_clone_after_power_cut(c->sim, seed);
        c->look.what = what;
        assert_true(sim_run(after, look_fiber, &c->look));
        sim_free(after);
    }
    return 0;
}

static int fail_one(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Cutter *c = (Cutter *)hook;
    if (n != c->fail_at)
        return 0;
    c->has_failed = true;
    return c->error;
}

// The place of one write is bad from then on.
static int fail_place(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Cutter *c = (Cutter *)hook;
    if (op != SIM_OP_WRITE)
        return 0;
    if (n == c->fail_at) {
        c->has_failed = true;
        c->bad_off = off;
        c->bad_end = off + len;
    }
    return off < c->bad_end && off + len > c->bad_off ? c->error : 0;
}

static const char *const options[] = {"cluster_size=4k", "cluster_size=64k", "cluster_size=512"};

// An image with three bitmaps: one tracks, one does not, one will be removed.
static void make_image(const char *dir, const char *image_options)
{
    host_shell(dir,
               "qemu-img create -q -f qcow2 -o %s image 1M && "
               "qemu-io -c 'write -P 1 0 200k' -c 'write -P 2 500k 40k' image && "
               "for b in auto off gone; do qemu-img bitmap --add -g 4k image $b; done && "
               "qemu-io -c 'write -P 1 100k 8k' image && qemu-img bitmap --disable image off && "
               "qemu-img convert -f qcow2 -O raw image raw",
               image_options);
}

static Sim *load(const char *dir, uint64_t seed, Life *life)
{
    g_autofree char *path = g_build_filename(dir, "image", NULL);
    g_autofree char *raw = g_build_filename(dir, "raw", NULL), *content = NULL;
    gsize len;
    assert_true(g_file_get_contents(raw, &content, &len, NULL));
    assert_int_equal(len, SIZE);
    memcpy(life->before, content, SIZE);
    memcpy(life->now, content, SIZE);
    Sim *sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true});
    assert_int_equal(sim_import_file(sim, PATH, path), 0);
    return sim;
}

// QEMU says the same of the file.
static void qemu_trusts(const char *dir, Sim *sim)
{
    g_autofree char *path = g_build_filename(dir, "after", NULL), *info = NULL;
    assert_int_equal(sim_export_file(sim, PATH, path), 0);
    host_shell(dir, "qemu-img check -q after");
    assert_int_equal(host_try_shell(dir, &info, "qemu-img info after"), 0);
    assert_null(strstr(info, "in-use"));
    assert_non_null(strstr(info, "name: new"));
    assert_null(strstr(info, "name: gone"));
}

static void a_cut_leaves_no_bitmap_that_is_trusted_and_wrong(void **state)
{
    uint64_t seed = host_seed(0xb17);
    for (size_t i = 0; i < G_N_ELEMENTS(options) * ROUNDS; i++) {
        g_autofree char *dir = host_make_dir();
        make_image(dir, options[i % G_N_ELEMENTS(options)]);
        g_autofree Life *life = g_new0(Life, 1);
        life->seed = seed + i;
        Sim *sim = load(dir, seed + i, life);
        Cutter c = {.hook = {cut_before}, .sim = sim, .look = {life}, .seed = seed + i * 100000};
        sim_set_hook(sim, &c.hook);
        assert_true(sim_run(sim, live, life));
        sim_set_hook(sim, NULL);
        assert_true(life->result == 0 && life->has_new && life->is_gone);
        // Points from before the first write, and some behind the switch.
        assert_true(c.look.n_trusted > c.look.n_new && c.look.n_new > 0);
        Look look = {.life = life, .what = "at the end", .is_whole = true};
        assert_true(sim_run(sim, look_fiber, &look));
        assert_int_equal(look.n_trusted, 3);
        qemu_trusts(dir, sim);
        sim_free(sim);
        host_remove_dir(g_steal_pointer(&dir));
    }
}

static void a_failure_leaves_none_either(void **state)
{
    const int errors[] = {-EIO, -ENOSPC};
    g_autofree char *dir = host_make_dir();
    make_image(dir, options[0]);
    bool has_failed = true;
    for (uint64_t n = 1; has_failed; n++) {
        for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
            g_autofree Life *life = g_new0(Life, 1);
            life->seed = 5;
            Sim *sim = load(dir, 5, life);
            Cutter c = {.hook = {fail_one}, .sim = sim, .fail_at = n, .error = errors[i]};
            sim_set_hook(sim, &c.hook);
            assert_true(sim_run(sim, live, life));
            sim_set_hook(sim, NULL);
            has_failed = c.has_failed;
            g_autofree char *what = g_strdup_printf("operation %" PRIu64 " failed", n);
            Look look = {.life = life, .what = what, .is_whole = !has_failed};
            assert_true(sim_run(sim, look_fiber, &look));
            sim_free(sim);
        }
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// §12: what the new directory names is counted on disk, or the header does not name it. Nothing
// else would notice a refcount block that stays unwritable.
static void a_place_that_stays_bad_leaves_none_uncounted(void **state)
{
    g_autofree char *dir = host_make_dir();
    make_image(dir, options[0]);
    unsigned n_bad = 0;
    uint64_t n_ops = UINT64_MAX;
    for (uint64_t n = 1; n <= n_ops; n++) {
        g_autofree Life *life = g_new0(Life, 1);
        Sim *sim = load(dir, 5, life);
        Cutter c = {.hook = {fail_place}, .sim = sim, .fail_at = n, .error = -EIO};
        sim_set_hook(sim, &c.hook);
        assert_true(sim_run(sim, live_quietly, life));
        sim_set_hook(sim, NULL);
        if (!c.has_failed) // no write, and all that follows is the same in each life
            n_ops = sim_n_ops(sim);
        n_bad += c.has_failed;
        g_autofree char *what =
            g_strdup_printf("[%#" PRIx64 ", %#" PRIx64 ") bad from operation %" PRIu64 " on",
                            c.bad_off, c.bad_end, n);
        Look look = {.life = life, .what = what};
        assert_true(sim_run(sim, look_fiber, &look));
        sim_free(sim);
    }
    assert_true(n_bad > 5);
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_leaves_no_bitmap_that_is_trusted_and_wrong),
        cmocka_unit_test(a_failure_leaves_none_either),
        cmocka_unit_test(a_place_that_stays_bad_leaves_none_uncounted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
