// SPDX-License-Identifier: LGPL-2.1-or-later
// Images whose bitmap directory, tables or bits are garbage, opened for writing, written, their
// bitmaps changed and removed, and closed: the guest's data stay what they are, and no cluster of
// anything else is given away.
#include "host.h"

#include <inttypes.h>
#include <string.h>

#include "chain-core/dirty-bitmap.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "format/qcow2-header.h"
#include "format/qcow2-snapshot.h"
#include "qcow2/image.h"

#define PATH "/image.qcow2"
enum { SIZE = 4 << 20, CLUSTER = 4096, N_BITMAPS = 3, SEEDS = 200 };

typedef struct Image {
    uint8_t *data, *content;
    gsize len;
    Qcow2Header h;
    Qcow2BitmapEntry entries[N_BITMAPS];
    uint64_t entry_off[N_BITMAPS];
} Image;

static Image make_image(void)
{
    Image image = {0};
    gsize size;
    char *dir = host_make_dir();
    host_shell(dir, "qemu-img create -q -f qcow2 -o cluster_size=4k image 4M && "
                    "qemu-io -c 'write -P 1 0 200k' -c 'write -P 2 3M 40k' image && "
                    "for b in a b c; do qemu-img bitmap --add -g 512 image $b; done && "
                    "qemu-io -c 'write -P 1 100k 8k' -c 'write -P 3 2M 100k' image && "
                    "qemu-img bitmap --disable image c && "
                    "qemu-img convert -f qcow2 -O raw image raw");
    g_autofree char *path = g_build_filename(dir, "image", NULL);
    g_autofree char *raw = g_build_filename(dir, "raw", NULL);
    assert_true(g_file_get_contents(path, (char **)&image.data, &image.len, NULL));
    assert_true(g_file_get_contents(raw, (char **)&image.content, &size, NULL));
    assert_int_equal(size, SIZE);
    assert_int_equal(qcow2_header_decode(image.data, image.len, image.len, &image.h, NULL), 0);
    uint64_t off = image.h.bitmaps.directory.v;
    for (unsigned i = 0; i < N_BITMAPS; i++) {
        image.entry_off[i] = off;
        off +=
            qcow2_bitmap_entry_decode(image.data + off, image.len - off, &image.entries[i], NULL);
    }
    host_remove_dir(dir);
    return image;
}

static void image_clear(Image *image)
{
    for (unsigned i = 0; i < N_BITMAPS; i++)
        qcow2_bitmap_entry_clear(&image->entries[i]);
    qcow2_header_clear(&image->h);
    g_free(image->data);
    g_free(image->content);
}

typedef struct Life {
    HostRandom *r;
    const uint8_t *content;
    uint64_t max_clusters; // of all bitmaps; 0: as ever
    bool is_open;
    unsigned n_loaded, n_inconsistent;
} Life;

static Node *open_head(Fiber *self, MapMemory *memory, const Life *life, bool read_only)
{
    Qcow2OpenOptions options = {.read_only = read_only, .memory = memory};
    File *file;
    Qcow2Image *image;
    Node *node = NULL;
    assert_int_equal(file_open(self, PATH, read_only ? 0 : FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, NULL) < 0)
        return NULL;
    if (life->max_clusters)
        image->max_bitmap_clusters = life->max_clusters;
    if (qcow2_view_new(self, image, NULL, &node, NULL) < 0)
        node = NULL;
    qcow2_image_unref_close(self, image);
    return node;
}

// Removes the inconsistent bitmaps and some others, clears others, adds one.
static void change_bitmaps(Fiber *self, Life *life, Node *node)
{
    static const char *const names[] = {"a", "b", "c"};
    for (unsigned i = 0; i < N_BITMAPS; i++) {
        DirtyBitmap *b = dirty_bitmap_find(node, names[i]);
        if (!b)
            continue;
        life->n_loaded++;
        life->n_inconsistent += dirty_bitmap_reason(b) != NULL;
        if (dirty_bitmap_reason(b) || host_random(life->r, 2)) {
            assert_int_equal(dirty_bitmap_remove(self, b, NULL), 0);
        } else if (dirty_bitmap_bits(b) && dirty_bitmap_before_change(self, b) == 0) {
            bitmap_free(dirty_bitmap_swap_bits(
                b, bitmap_new(node->size_bytes, dirty_bitmap_granularity_bits(b))));
        }
    }
    DirtyBitmapSpec spec = {
        .name = "new", .node_name = "disk", .granularity_bits = 16, .is_persistent = true};
    DirtyBitmap *added;
    dirty_bitmap_add(node, &spec, &added, NULL);
}

static void assert_content(Fiber *self, const Life *life, Node *node)
{
    g_autofree uint8_t *now = g_malloc(SIZE);
    assert_int_equal(node_read(self, node, guest_off(0), now, SIZE), 0);
    assert_memory_equal(now, life->content, SIZE);
}

static void live(Fiber *self, void *arg)
{
    Life *life = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_head(self, memory, life, false);
    life->is_open = node;
    if (node) {
        uint8_t same[CLUSTER];
        memset(same, 2, sizeof(same));
        assert_int_equal(node_write(self, node, guest_off(3 << 20), same, sizeof(same), 0), 0);
        change_bitmaps(self, life, node);
        assert_int_equal(node_write(self, node, guest_off(3 << 20), same, sizeof(same), 0), 0);
        assert_content(self, life, node);
        node_unref_close(self, node);
        node = open_head(self, memory, life, true);
        assert_non_null(node);
        assert_non_null(dirty_bitmap_find(node, "new"));
        assert_content(self, life, node);
        node_unref_close(self, node);
    }
    map_memory_free(memory);
}

// Nothing but bitmaps may have been lost: their clusters may leak.
static void check_fiber(Fiber *self, void *arg)
{
    const uint64_t *seed = arg;
    File *file;
    Qcow2CheckResult counts = {0};
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &counts, NULL), 0);
    for (guint i = 0; counts.messages && i < counts.messages->len; i++) {
        const char *message = counts.messages->pdata[i];
        if (!strstr(message, "leaked") && !strstr(message, "bitmap"))
            fail_msg("seed %" PRIu64 ": %s", *seed, message);
    }
    qcow2_check_result_clear(&counts);
    file_close(self, file);
}

static void live_with(const Image *image, uint8_t *data, uint64_t seed, Life *life)
{
    HostRandom r = {seed};
    *life = (Life){.r = &r, .content = image->content};
    Sim *sim = sim_new(&(SimConfig){.seed = seed});
    assert_int_equal(sim_write_file(sim, PATH, data, image->len), 0);
    assert_true(sim_run(sim, live, life));
    assert_true(sim_run(sim, check_fiber, &seed));
    sim_free(sim);
}

// A place to put bytes: the header's extension, the directory, a table.
static uint64_t pick_place(const Image *image, HostRandom *r)
{
    unsigned i = host_random(r, N_BITMAPS);
    switch (host_random(r, 4)) {
    case 0:
        return image->h.bitmaps.directory.v + host_random(r, image->h.bitmaps.directory_bytes);
    case 1:
        return image->entry_off[i] + host_random(r, 24);
    default:
        return image->entries[i].table.v + host_random(r, image->entries[i].table_entries * 8);
    }
}

static void any_bytes_in_directory_and_tables_do_no_harm(void **state)
{
    Image image = make_image();
    uint64_t seed = host_seed(1);
    unsigned n_loaded = 0, n_inconsistent = 0;
    for (uint64_t i = 0; i < SEEDS; i++) {
        HostRandom r = {seed + i};
        g_autofree uint8_t *data = g_memdup2(image.data, image.len);
        for (uint64_t n = 1 + host_random(&r, 3); n; n--)
            data[pick_place(&image, &r)] = host_random(&r, 256);
        Life life;
        live_with(&image, data, seed + i, &life);
        assert_true(life.is_open);
        n_loaded += life.n_loaded;
        n_inconsistent += life.n_inconsistent;
    }
    assert_true(n_loaded > SEEDS / 4 && n_inconsistent > SEEDS / 40);
    image_clear(&image);
}

// Tables and their entries point at each other, at themselves, and at all other metadata.
static void tables_that_name_other_metadata_are_inconsistent_and_never_freed(void **state)
{
    Image image = make_image();
    uint64_t l2 = host_get64(image.data, image.h.l1.v) & UINT64_C(0x00fffffffffffe00);
    const uint64_t targets[] = {CLUSTER * 0,
                                image.h.l1.v,
                                image.h.refcount_table.v,
                                l2,
                                image.h.bitmaps.directory.v,
                                image.entries[0].table.v,
                                image.entries[2].table.v,
                                host_get64(image.data, image.entries[2].table.v),
                                host_get64(image.data, image.h.refcount_table.v),
                                (image.len + CLUSTER) / CLUSTER * CLUSTER,
                                UINT64_C(1) << 40};
    for (unsigned where = 0; where < 2; where++) {
        for (size_t i = 1; i < G_N_ELEMENTS(targets); i++) {
            g_autofree uint8_t *data = g_memdup2(image.data, image.len);
            uint64_t place = where ? image.entry_off[1] : image.entries[1].table.v;
            if (targets[i] == image.entries[0].table.v && !where)
                continue; // ends as the first one of two; covered by the next
            host_put64(data, place, targets[i]);
            Life life;
            live_with(&image, data, i, &life);
            assert_true(life.is_open);
            assert_int_equal(life.n_loaded, N_BITMAPS);
            assert_in_range(life.n_inconsistent, 1, 2);
        }
    }
    image_clear(&image);
}

// Many entries that name one cluster cost no more than the file is large.
static void a_small_file_cannot_ask_for_much_memory(void **state)
{
    Image image = make_image();
    g_autofree uint8_t *data = g_memdup2(image.data, image.len);
    const Qcow2BitmapEntry *e = &image.entries[1];
    for (uint32_t i = 0; i < e->table_entries; i++)
        host_put64(data, e->table.v + i * 8, host_get64(data, image.entries[0].table.v));
    Life life;
    live_with(&image, data, 1, &life);
    assert_int_equal(life.n_inconsistent, 1);
    image_clear(&image);
}

typedef struct Reads {
    SimHook hook;
    uint64_t from, bytes; // that were read from there on
} Reads;

static int count_read(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Reads *reads = (Reads *)hook;
    if (op == SIM_OP_READ && off >= reads->from)
        reads->bytes += len;
    return 0;
}

// A long file costs its maker nothing: a table that is too large for any bitmap is not looked at.
static void a_table_beyond_all_bounds_is_not_read(void **state)
{
    enum { ENTRIES = (512 << 20) / CLUSTER + 1, TABLE = 2 << 20 };
    Image image = make_image();
    uint64_t table = (image.len + CLUSTER - 1) / CLUSTER * CLUSTER, len = table + TABLE;
    g_autofree uint8_t *data = g_malloc0(len);
    memcpy(data, image.data, image.len);
    host_put64(data, image.entry_off[1], table);
    host_put32(data, image.entry_off[1] + 8, ENTRIES);
    HostRandom r = {1};
    Life life = {.r = &r, .content = image.content};
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    Reads reads = {.hook = {.fn = count_read}, .from = table};
    assert_int_equal(sim_write_file(sim, PATH, data, len), 0);
    sim_set_hook(sim, &reads.hook);
    assert_true(sim_run(sim, live, &life));
    sim_set_hook(sim, NULL);
    sim_free(sim);
    assert_int_equal(life.n_inconsistent, 1);
    assert_in_range(reads.bytes, 0, TABLE / 4); // clusters that were taken there
    image_clear(&image);
}

// Nor of all bitmaps together more than their numbers may take of memory, whatever holes make the
// file as long as: those that come later are inconsistent. Here each has one cluster.
static void bitmaps_of_more_clusters_than_are_noted_are_inconsistent(void **state)
{
    Image image = make_image();
    for (uint64_t max = 1; max <= N_BITMAPS; max++) {
        HostRandom r = {max};
        Life life = {.r = &r, .content = image.content, .max_clusters = max};
        Sim *sim = sim_new(&(SimConfig){.seed = 1});
        assert_int_equal(sim_write_file(sim, PATH, image.data, image.len), 0);
        assert_true(sim_run(sim, live, &life));
        assert_true(sim_run(sim, check_fiber, &max));
        sim_free(sim);
        assert_int_equal(life.n_loaded, N_BITMAPS);
        assert_int_equal(life.n_inconsistent, N_BITMAPS - max);
    }
    image_clear(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bytes_in_directory_and_tables_do_no_harm),
        cmocka_unit_test(tables_that_name_other_metadata_are_inconsistent_and_never_freed),
        cmocka_unit_test(a_small_file_cannot_ask_for_much_memory),
        cmocka_unit_test(a_table_beyond_all_bounds_is_not_read),
        cmocka_unit_test(bitmaps_of_more_clusters_than_are_noted_are_inconsistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
