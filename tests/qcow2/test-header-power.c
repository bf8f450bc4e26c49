// SPDX-License-Identifier: LGPL-2.1-or-later
// Changes of the header of an open image on the simulation: with the power cut before each of their
// operations the file has the old header or the new one (docs/ordering.md §11), with any of them
// failing the old one, or what memory says.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/map-memory.h"
#include "chain-core/sim.h"
#include "qcow2/open.h"

#define PATH "/image.qcow2"
#define LONG_NAME                                                                                  \
    "/a/rather/long/path/so/that/the/name/lies/behind/the/first/sector/of/the/file/wherever/it/"   \
    "begins/base.qcow2"
enum { CUTS_PER_POINT = 3, ROUNDS = 6 };

// What changes; NULL, 0: as it is.
typedef struct Change {
    const char *backing_name, *backing_format; // "": none from now on
    uint32_t n_bitmaps;
    uint64_t size_bytes;
    uint32_t version;
    int result;
} Change;

static void set_string(char **string, const char *to)
{
    if (!to)
        return;
    g_free(*string);
    *string = *to ? g_strdup(to) : NULL;
}

static void edit(Qcow2Header *h, const void *arg)
{
    const Change *c = arg;
    set_string(&h->backing_name, c->backing_name);
    set_string(&h->backing_format, c->backing_format);
    if (c->n_bitmaps) {
        h->has_bitmaps_extension = true;
        h->bitmaps = (Qcow2BitmapsExtension){c->n_bitmaps, 4096, host_off(0x50000)};
    }
    h->size_bytes = c->size_bytes ?: h->size_bytes;
    h->version = c->version ?: h->version;
}

typedef struct Image {
    const char *options; // of qemu-img create; "$LONG" is LONG_NAME
    uint32_t unknown_extension_bytes;
    Change changes[6]; // one after the other
} Image;

static const Image images[] = {
    {"cluster_size=4k,backing_file=$LONG,backing_fmt=qcow2",
     0,
     {{.backing_name = "/short", .backing_format = "raw"},
      {.backing_name = LONG_NAME "2", .backing_format = "qcow2"},
      {.backing_name = LONG_NAME "3", .size_bytes = 768 << 10},
      {.backing_name = "", .backing_format = ""},
      {.n_bitmaps = 3, .backing_name = LONG_NAME, .backing_format = "raw"},
      {.n_bitmaps = 4}}},
    {"cluster_size=64k,backing_file=$LONG,backing_fmt=qcow2",
     8,
     {{.n_bitmaps = 1}, {.n_bitmaps = 7}, {.backing_name = "", .backing_format = ""}}},
    {"cluster_size=1k",
     0,
     {{.n_bitmaps = 1}, {.backing_name = LONG_NAME}, {.backing_name = LONG_NAME "4"}}},
    {"cluster_size=512",
     0,
     {{.n_bitmaps = 1}, {.backing_name = LONG_NAME}, {.backing_name = "", .n_bitmaps = 2}}},
    // Extensions that do not fit into the first sector stay where they are.
    {"cluster_size=4k,backing_file=$LONG,backing_fmt=qcow2",
     600,
     {{.backing_name = "/other" LONG_NAME, .result = -ENOSPC}, {.size_bytes = 512 << 10}}},
    {"compat=0.10,backing_file=$LONG$LONG$LONG$LONG$LONG,backing_fmt=qcow2",
     0,
     {{.backing_name = LONG_NAME LONG_NAME LONG_NAME LONG_NAME LONG_NAME "5"},
      {.backing_name = LONG_NAME, .backing_format = ""},
      {.size_bytes = 512 << 10},
      {.version = 3}}},
};

typedef struct Bytes {
    uint8_t *data;
    gsize len;
} Bytes;

// Puts an unknown extension before all others.
static void add_extension(Bytes *b, uint32_t bytes)
{
    if (!bytes)
        return;
    Qcow2Header h;
    assert_int_equal(qcow2_header_decode(b->data, b->len, b->len, &h, NULL), 0);
    h.unknown_extensions = g_array_new(FALSE, FALSE, sizeof(Qcow2Extension));
    Qcow2Extension x = {.type = 0x12345678, .len = bytes, .data = g_malloc0(bytes)};
    memset(x.data, 0xee, bytes);
    g_array_append_val(h.unknown_extensions, x);
    assert_true(qcow2_header_encode(&h, b->data, UINT32_C(1) << h.cluster_bits) > 0);
    qcow2_header_clear(&h);
}

static Bytes make_image(const char *dir, const Image *image)
{
    Bytes b;
    host_shell(dir, "LONG=" LONG_NAME "; qemu-img create -q -u -f qcow2 -o %s image 1M",
               image->options);
    g_autofree char *path = g_build_filename(dir, "image", NULL);
    assert_true(g_file_get_contents(path, (char **)&b.data, &b.len, NULL));
    add_extension(&b, image->unknown_extension_bytes);
    return b;
}

static Qcow2Header header_of(Sim *sim, const char *what)
{
    void *data;
    uint64_t len;
    Qcow2Header h;
    g_autoptr(GError) error = NULL;
    assert_int_equal(sim_read_file(sim, PATH, &data, &len), 0);
    if (qcow2_header_decode(data, len, len, &h, &error) < 0)
        fail_msg("%s: %s", what, error->message);
    g_free(data);
    return h;
}

// Feature names help people only, and a cut may cost them.
static bool is_same(const Qcow2Header *a, const Qcow2Header *b)
{
    Qcow2Header x = *a, y = *b;
    x.feature_names = y.feature_names = NULL;
    x.feature_names_bytes = y.feature_names_bytes = 0;
    x.header_bytes = y.header_bytes;
    return x.size_bytes == y.size_bytes && x.autoclear == y.autoclear && x.l1.v == y.l1.v &&
           qcow2_header_differs_in_fields_only(&x, &y);
}

typedef struct Run {
    SimHook hook;
    Sim *sim;
    Qcow2Header before, after; // of the change under way
    const Change *change;
    const Image *image;
    uint64_t seed;
    unsigned n_points;
    uint64_t fail_at;
    unsigned n_failures;
    unsigned n_old, n_new; // seen after power cuts
} Run;

static int cut_before(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Run *run = (Run *)hook;
    if (op == SIM_OP_READ || !run->change)
        return 0;
    for (unsigned i = 0; i < CUTS_PER_POINT; i++) {
        uint64_t seed = run->seed + n * CUTS_PER_POINT + i;
        g_autofree char *what =
            g_strdup_printf("power cut before operation %" PRIu64 ", seed %#" PRIx64, n, seed);
        Sim *after = sim_clone_after_power_cut(run->sim, seed);
        Qcow2Header h = header_of(after, what);
        bool is_old = is_same(&h, &run->before), is_new = is_same(&h, &run->after);
        if (!is_old && !is_new)
            fail_msg("%s: neither the old header nor the new one: '%s' (%s), %u bitmaps", what,
                     h.backing_name, h.backing_format, h.bitmaps.n_bitmaps);
        run->n_old += is_old;
        run->n_new += is_new;
        qcow2_header_clear(&h);
        sim_free(after);
        run->n_points++;
    }
    return 0;
}

static Qcow2Image *open_image(Fiber *self, MapMemory *memory)
{
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image = NULL;
    g_autoptr(GError) error = NULL;
    if (file_open(self, PATH, FILE_WRITABLE, &file, &error) < 0 ||
        qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        image_load(self, image, &error) < 0)
        fail_msg("%s", error->message);
    return image;
}

static int change_header(Fiber *self, Run *run, Qcow2Image *image, const Change *change)
{
    qcow2_header_copy(&image->header, &run->before);
    qcow2_header_copy(&image->header, &run->after);
    edit(&run->after, change);
    run->change = change;
    int r = image_change_header(self, image, edit, change);
    run->change = NULL;
    assert_true(is_same(&image->header, r == 0 ? &run->after : &run->before));
    qcow2_header_clear(&run->before);
    qcow2_header_clear(&run->after);
    return r;
}

static void change_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2Image *image = open_image(self, memory);
    for (size_t i = 0; i < G_N_ELEMENTS(run->image->changes); i++) {
        const Change *change = &run->image->changes[i];
        if (memcmp(change, &(Change){0}, sizeof(*change)) == 0)
            break;
        int r = change_header(self, run, image, change);
        assert_int_equal(r, change->result);
        Qcow2Header h = header_of(run->sim, "afterwards");
        assert_true(is_same(&h, &image->header));
        if (r == 0 && h.version >= 3 && h.cluster_bits > 10)
            assert_non_null(h.feature_names); // it lies where it belongs
        qcow2_header_clear(&h);
    }
    qcow2_image_unref_close(self, image);
    map_memory_free(memory);
}

static void a_power_cut_leaves_the_old_header_or_the_new_one(void **state)
{
    uint64_t seed = host_seed(0xfeed);
    g_autofree char *dir = host_make_dir();
    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        Bytes b = make_image(dir, &images[i]);
        Run run = {.hook = {cut_before}, .image = &images[i]};
        for (unsigned round = 0; round < ROUNDS; round++) {
            run.sim = sim_new(&(SimConfig){.seed = seed + round, .short_transfers = true});
            run.seed = seed + UINT64_C(1000000) * round;
            assert_int_equal(sim_write_file(run.sim, PATH, b.data, b.len), 0);
            sim_set_hook(run.sim, &run.hook);
            assert_true(sim_run(run.sim, change_fiber, &run));
            sim_free(run.sim);
        }
        assert_true(run.n_old > ROUNDS && run.n_new > ROUNDS);
        g_free(b.data);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- failures

static int fail_some(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len)
{
    Run *run = (Run *)hook;
    if (!run->change || n < run->fail_at || n >= run->fail_at + run->n_failures)
        return 0;
    return -EIO;
}

static void failing_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2Image *image = open_image(self, memory);
    run->fail_at += sim_n_ops(run->sim);
    change_header(self, run, image, &run->image->changes[0]);
    // What memory says is what the disk says, unless nobody can know: then nothing is written.
    Qcow2Header h = header_of(run->sim, "afterwards");
    if (!is_same(&h, &image->header) && !image->writeback.has_ended)
        fail_msg("operation %" PRIu64 " failed: memory and disk differ", run->fail_at);
    run->n_old += image->writeback.has_ended;
    run->n_new += !image->writeback.has_ended;
    qcow2_header_clear(&h);
    qcow2_image_unref_close(self, image);
    map_memory_free(memory);
}

static void a_failed_change_changes_nothing(void **state)
{
    g_autofree char *dir = host_make_dir();
    Bytes b = make_image(dir, &images[0]);
    Run run = {.hook = {fail_some}, .image = &images[0]};
    for (unsigned n_failures = 1; n_failures <= 3; n_failures++) {
        for (uint64_t n = 1; n < 16; n++) {
            run.fail_at = n;
            run.n_failures = n_failures;
            run.sim = sim_new(&(SimConfig){.seed = n});
            assert_int_equal(sim_write_file(run.sim, PATH, b.data, b.len), 0);
            sim_set_hook(run.sim, &run.hook);
            assert_true(sim_run(run.sim, failing_fiber, &run));
            sim_free(run.sim);
        }
    }
    assert_true(run.n_old > 0 && run.n_new > 0);
    g_free(b.data);
    host_remove_dir(g_steal_pointer(&dir));
}

// --- beside QEMU

typedef struct Place {
    const char *path;
    Change change;
} Place;

static void change_on_host_fiber(Fiber *self, void *arg)
{
    const Place *place = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image = NULL;
    g_autoptr(GError) error = NULL;
    if (file_open(self, place->path, FILE_WRITABLE, &file, &error) < 0 ||
        qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        image_load(self, image, &error) < 0)
        fail_msg("%s", error->message);
    assert_int_equal(image_change_header(self, image, edit, &place->change), 0);
    qcow2_image_unref_close(self, image);
    map_memory_free(memory);
}

static void what_qemu_wrote_is_kept(void **state)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "image", NULL);
    host_shell(dir, "qemu-img create -q -f qcow2 base 1M && qemu-img create -q -f qcow2 other 1M "
                    "&& qemu-img create -q -f qcow2 -b base -F qcow2 image "
                    "&& qemu-img bitmap --add image b0 && qemu-img snapshot -c s image");
    Place place = {path, {.backing_name = "other", .backing_format = "qcow2"}};
    host_run(change_on_host_fiber, &place);
    host_shell(dir, "qemu-img check -q image && qemu-img info image >info && "
                    "grep -q '^backing file: other$' info && grep -q 'name: b0' info && "
                    "grep -q '^1 *s ' info");
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_power_cut_leaves_the_old_header_or_the_new_one),
        cmocka_unit_test(a_failed_change_changes_nothing),
        cmocka_unit_test(what_qemu_wrote_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
