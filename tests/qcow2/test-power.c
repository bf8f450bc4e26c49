// SPDX-License-Identifier: LGPL-2.1-or-later
// Creation and repair on the simulation, with the power cut before each of their operations: an
// image that is being made is no image until it is whole (docs/ordering.md §8), and an interrupted
// repair can be repaired without loss (§7). Then with each operation failing.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"

#define PATH "/image.qcow2"
#define DATA "/data.raw"
enum { CUTS_PER_POINT = 3, ALL_FIXES = QCOW2_CHECK_FIX_LEAKS | QCOW2_CHECK_FIX_ERRORS };

typedef struct Work {
    Sim *sim;
    Qcow2CreateOptions create;
    unsigned fix;
    int result;
    Qcow2CheckResult counts;
    GError *error;
    uint8_t *content; // what the guest reads
    uint64_t size;
} Work;

static void work_clear(Work *w)
{
    qcow2_check_result_clear(&w->counts);
    g_clear_error(&w->error);
    g_clear_pointer(&w->content, g_free);
}

static void create_fiber(Fiber *self, void *arg)
{
    Work *w = arg;
    Qcow2CreateOptions options = w->create;
    if (options.data_name)
        w->result = file_open(self, DATA, FILE_WRITABLE | FILE_CREATE, &options.data_file, NULL);
    if (w->result == 0 && options.data_name)
        w->result = file_sync_dir(self, DATA, NULL);
    if (w->result == 0)
        w->result = qcow2_create(self, PATH, &options, &w->error);
    if (options.data_file)
        file_close(self, options.data_file);
}

static void check_fiber(Fiber *self, void *arg)
{
    Work *w = arg;
    File *file;
    w->result = file_open(self, PATH, FILE_WRITABLE, &file, &w->error);
    if (w->result < 0)
        return;
    w->result = qcow2_check(self, file, w->fix, &w->counts, &w->error);
    file_close(self, file);
}

static int read_view(Fiber *self, Work *w, Qcow2Image *image)
{
    Node *node;
    int r = qcow2_view_new(self, image, NULL, &node, &w->error);
    if (r < 0)
        return r;
    w->size = node->size_bytes;
    w->content = g_malloc(w->size);
    r = node_read(self, node, guest_off(0), w->content, w->size);
    node_unref_close(self, node);
    return r;
}

static void read_fiber(Fiber *self, void *arg)
{
    Work *w = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2OpenOptions options = {.read_only = true, .memory = memory};
    File *file;
    Qcow2Image *image;
    w->result = file_open(self, PATH, 0, &file, &w->error);
    if (w->result >= 0)
        w->result = qcow2_image_open(self, file, &options, &image, &w->error);
    if (w->result >= 0) {
        w->result = read_view(self, w, image);
        qcow2_image_unref_close(self, image);
    }
    map_memory_free(memory);
}

// A hook that looks at what a power cut before each operation leaves.
typedef struct Cutter {
    SimHook hook;
    Sim *sim;
    uint64_t seed;
    void (*look)(struct Cutter *cutter, Sim *after, const char *what);
    const Qcow2CreateOptions *create;
    const uint8_t *content;
    uint64_t size;
    uint64_t n_corruptions; // that a repair began with
    unsigned n_points, n_whole;
} Cutter;

static int cut_before(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Cutter *cutter = (Cutter *)hook;
    if (op == SIM_OP_READ)
        return 0;
    for (unsigned i = 0; i < CUTS_PER_POINT; i++) {
        uint64_t seed = cutter->seed + n * CUTS_PER_POINT + i;
        g_autofree char *what =
            g_strdup_printf("power cut before operation %" PRIu64 ", seed %#" PRIx64, n, seed);
        Sim *after = sim_clone_after_power_cut(cutter->sim, seed);
        cutter->look(cutter, after, what);
        sim_free(after);
        cutter->n_points++;
    }
    return 0;
}

static void run_with_cuts(Cutter *cutter, Sim *sim, FiberFn *fn, Work *w)
{
    cutter->hook.fn = cut_before;
    cutter->sim = sim;
    sim_set_hook(sim, &cutter->hook);
    assert_true(sim_run(sim, fn, w));
    sim_set_hook(sim, NULL);
    if (w->result < 0)
        fail_msg("%s", w->error->message);
}

// --- Creation

static void assert_data_file_is_whole(Sim *after, uint64_t size, const char *what)
{
    void *data;
    uint64_t len;
    assert_int_equal(sim_read_file(after, DATA, &data, &len), 0);
    g_free(data);
    if (len != size)
        fail_msg("%s: the data file is %" PRIu64 " bytes long", what, len);
}

static void whole_or_no_image(Cutter *cutter, Sim *after, const char *what)
{
    void *data;
    uint64_t len;
    if (!sim_file_exists(after, PATH))
        return;
    assert_int_equal(sim_read_file(after, PATH, &data, &len), 0);
    g_autofree uint8_t *bytes = data;
    if (!qcow2_header_has_magic(bytes, len))
        return;
    Work w = {.fix = 0};
    assert_true(sim_run(after, check_fiber, &w));
    if (w.result < 0)
        fail_msg("%s: %s", what, w.error->message);
    if (w.counts.n_corruptions || w.counts.n_leaks)
        fail_msg("%s: %s", what, (char *)g_ptr_array_index(w.counts.messages, 0));
    work_clear(&w);
    Qcow2Header h;
    assert_int_equal(qcow2_header_decode(bytes, len, len, &h, NULL), 0);
    if (g_strcmp0(h.data_file_name, cutter->create->data_name))
        fail_msg("%s: the data file is '%s'", what, h.data_file_name);
    if (h.data_file_name)
        assert_data_file_is_whole(after, h.size_bytes, what);
    if (g_strcmp0(h.backing_name, cutter->create->backing_name) ||
        g_strcmp0(h.backing_format, cutter->create->backing_format))
        fail_msg("%s: the backing file is '%s'", what, h.backing_name);
    qcow2_header_clear(&h);
    cutter->n_whole++;
}

static const Qcow2CreateOptions created[] = {
    {.size_bytes = 1 << 20, .cluster_bytes = 512, .refcount_bits = 1, .preallocate_metadata = true},
    {.size_bytes = 1 << 20, .cluster_bytes = 4096, .preallocate_metadata = true},
    {.size_bytes = 1 << 20,
     .backing_name = "/a/rather/long/path/so/that/the/name/lies/behind/the/first/sector/base.raw",
     .backing_format = "raw"},
    {.size_bytes = 1 << 20, .data_name = "data.raw"},
    {.size_bytes = 1 << 20, .data_name = "data.raw", .raw_data = true, .reserve_data = true},
};

// Few points lie between a write that came too early and the sync after it, hence the rounds.
static void an_image_is_none_until_it_is_whole(void **state)
{
    enum { ROUNDS = 24 };
    uint64_t seed = host_seed(0xc0ffee);
    for (size_t i = 0; i < G_N_ELEMENTS(created); i++) {
        Cutter cutter = {.look = whole_or_no_image, .create = &created[i]};
        for (unsigned round = 0; round < ROUNDS; round++) {
            Sim *sim = sim_new(&(SimConfig){.seed = seed + i + round, .short_transfers = true});
            cutter.seed = seed + UINT64_C(1000000) * round;
            Work w = {.create = created[i]};
            run_with_cuts(&cutter, sim, create_fiber, &w);
            if (round == ROUNDS - 1)
                // The last points lie behind the header: some see the image.
                assert_true(cutter.n_points > 10 * ROUNDS && cutter.n_whole > 0);
            whole_or_no_image(&cutter, sim, "at the end");
            sim_free(sim);
        }
    }
}

// --- Repair

static void damage_refcounts(uint8_t *data, const Qcow2Header *h, const Qcow2Geometry *g,
                             HostRandom *r, uint64_t n_clusters)
{
    uint64_t block = host_get64(data, h->refcount_table.v);
    for (uint64_t i = 0; i < n_clusters; i++)
        if (host_random(r, 2))
            qcow2_refcount_set(g, data + block, i, host_random(r, 3));
}

static void damage_copied(uint8_t *data, const Qcow2Header *h, const Qcow2Geometry *g,
                          HostRandom *r)
{
    uint64_t l2 = host_get64(data, h->l1.v) & QCOW2_ENTRY_OFFSET_MASK;
    for (uint32_t i = 0; i < g->l2_entries; i++) {
        uint64_t e = host_get64(data, l2 + i * 8);
        if ((e & QCOW2_ENTRY_OFFSET_MASK) && host_random(r, 2))
            host_put64(data, l2 + i * 8, e ^ QCOW2_ENTRY_COPIED);
    }
    host_put64(data, h->l1.v, host_get64(data, h->l1.v) ^ QCOW2_ENTRY_COPIED);
}

// What is damaged.
enum { REFCOUNTS, COPIED, BOTH, ONLY_BLOCK, LAST_BLOCK, N_KINDS };

// Puts a damaged image, whose guest content is unharmed, into the simulation.
static void load_damaged(const char *dir, Sim *sim, unsigned kind, HostRandom *r)
{
    g_autofree char *path =
        g_build_filename(dir, kind == LAST_BLOCK ? "blocks.qcow2" : "base.qcow2", NULL);
    g_autofree uint8_t *data = NULL;
    gsize len;
    assert_true(g_file_get_contents(path, (char **)&data, &len, NULL));
    Qcow2Header h;
    assert_int_equal(qcow2_header_decode(data, len, len, &h, NULL), 0);
    Qcow2Geometry g;
    qcow2_geometry_init(&g, h.cluster_bits, h.refcount_order, false, false, h.size_bytes);
    host_put64(data, QCOW2_HEADER_OFF_INCOMPATIBLE, QCOW2_INCOMPAT_DIRTY);
    if (kind == REFCOUNTS || kind == BOTH)
        damage_refcounts(data, &h, &g, r, len / g.cluster_bytes);
    if (kind == COPIED || kind == BOTH)
        damage_copied(data, &h, &g, r);
    uint64_t entry = h.refcount_table.v;
    while (kind == LAST_BLOCK && host_get64(data, entry + 8))
        entry += 8;
    if (kind == ONLY_BLOCK || kind == LAST_BLOCK) // not counted, so all counts are made anew
        host_put64(data, entry, 0);
    assert_int_equal(sim_write_file(sim, PATH, data, len), 0);
    qcow2_header_clear(&h);
}

static bool is_dirty(Sim *sim)
{
    g_autofree void *data = NULL;
    uint64_t len;
    assert_int_equal(sim_read_file(sim, PATH, &data, &len), 0);
    return host_get64(data, QCOW2_HEADER_OFF_INCOMPATIBLE) & QCOW2_INCOMPAT_DIRTY;
}

static uint64_t count_corruptions(Sim *sim)
{
    Work w = {.fix = 0};
    assert_true(sim_run(sim, check_fiber, &w));
    if (w.result < 0)
        fail_msg("%s", w.error->message);
    uint64_t n = w.counts.n_corruptions;
    work_clear(&w);
    return n;
}

static void cured_without_loss(Cutter *cutter, Sim *after, const char *what)
{
    uint64_t n_left = count_corruptions(after);
    if (n_left > (is_dirty(after) ? cutter->n_corruptions : 0))
        fail_msg("%s: %" PRIu64 " corruptions; there were %" PRIu64, what, n_left,
                 cutter->n_corruptions);
    Work w = {.fix = ALL_FIXES};
    assert_true(sim_run(after, check_fiber, &w));
    if (w.result < 0)
        fail_msg("%s: %s", what, w.error->message);
    if (w.counts.n_corruptions || w.counts.n_leaks || w.counts.n_check_errors)
        fail_msg("%s: not cured: %s", what, (char *)g_ptr_array_index(w.counts.messages, 0));
    work_clear(&w);
    w = (Work){0};
    assert_true(sim_run(after, read_fiber, &w));
    if (w.result < 0)
        fail_msg("%s: %s", what, w.error ? w.error->message : "cannot read");
    assert_int_equal(w.size, cutter->size);
    if (memcmp(w.content, cutter->content, w.size))
        fail_msg("%s: the guest reads something else", what);
    work_clear(&w);
}

static void make_base(const char *dir, const char *name, const char *options)
{
    host_shell(dir,
               "qemu-img create -q -f qcow2 -o %s %s 1M && "
               "qemu-io -c 'write -P 1 0 100k' -c 'write -P 2 300k 40k' %s && "
               "qemu-img snapshot -c s %s && "
               "qemu-io -c 'write -P 3 10k 30k' -c 'write -P 4 900k 20k' %s && "
               "qemu-img convert -f qcow2 -O raw %s base.raw",
               options, name, name, name, name, name);
}

static void an_interrupted_repair_can_be_repaired(void **state)
{
    uint64_t seed = host_seed(0xbadf00d);
    g_autofree char *dir = host_make_dir(), *raw = g_build_filename(dir, "base.raw", NULL);
    make_base(dir, "base.qcow2", "cluster_size=4k");
    make_base(dir, "blocks.qcow2", "cluster_size=512,refcount_bits=64");
    g_autofree char *content = NULL;
    gsize size;
    assert_true(g_file_get_contents(raw, &content, &size, NULL));
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        HostRandom r = {seed + kind};
        Sim *sim = sim_new(&(SimConfig){.seed = seed + kind, .short_transfers = true});
        load_damaged(dir, sim, kind, &r);
        Cutter cutter = {
            .seed = seed, .look = cured_without_loss, .content = (uint8_t *)content, .size = size};
        cutter.n_corruptions = count_corruptions(sim);
        Work w = {.fix = ALL_FIXES};
        run_with_cuts(&cutter, sim, check_fiber, &w);
        assert_int_equal(w.counts.n_corruptions + w.counts.n_leaks, 0);
        assert_int_not_equal(w.counts.n_corruptions_fixed, 0);
        work_clear(&w);
        assert_true(cutter.n_points > 3 * CUTS_PER_POINT);
        cured_without_loss(&cutter, sim, "at the end");
        sim_free(sim);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- Failures

typedef struct Failer {
    SimHook hook;
    uint64_t fail_at; // this operation fails
    int error;
    bool unlink_failed;
    bool hit;
} Failer;

static int fail_one(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Failer *f = (Failer *)hook;
    if (n != f->fail_at)
        return 0;
    f->hit = true;
    f->unlink_failed = op == SIM_OP_UNLINK;
    return f->error;
}

static void a_failed_creation_leaves_no_file(void **state)
{
    const int errors[] = {-EIO, -ENOSPC};
    bool hit = true;
    for (uint64_t n = 1; hit; n++) {
        for (unsigned i = 0; i < 2; i++) {
            Sim *sim = sim_new(&(SimConfig){.seed = n});
            Failer f = {.hook = {fail_one}, .fail_at = n, .error = errors[i]};
            sim_set_hook(sim, &f.hook);
            Work w = {.create = created[1]};
            assert_true(sim_run(sim, create_fiber, &w));
            hit = f.hit;
            if (!hit) {
                assert_int_equal(w.result, 0);
            } else {
                assert_int_equal(w.result, errors[i]);
                assert_non_null(w.error);
                assert_false(sim_file_exists(sim, PATH));
            }
            work_clear(&w);
            sim_free(sim);
        }
    }
}

static void a_repair_that_fails_says_so_and_can_be_repeated(void **state)
{
    g_autofree char *dir = host_make_dir();
    make_base(dir, "base.qcow2", "cluster_size=4k");
    bool hit = true;
    for (uint64_t n = 1; hit; n++) {
        HostRandom r = {17};
        Sim *sim = sim_new(&(SimConfig){.seed = n});
        load_damaged(dir, sim, n % 2 ? BOTH : ONLY_BLOCK, &r);
        Failer f = {.hook = {fail_one}, .fail_at = n, .error = -EIO};
        sim_set_hook(sim, &f.hook);
        Work w = {.fix = ALL_FIXES};
        assert_true(sim_run(sim, check_fiber, &w));
        sim_set_hook(sim, NULL);
        hit = f.hit;
        // A failed read may be one error of the check; anything else fails it.
        bool clean = w.result == 0 && !w.counts.n_check_errors && !w.counts.n_corruptions;
        if (hit && clean)
            fail_msg("operation %" PRIu64 " failed, but the repair says it is fine", n);
        work_clear(&w);
        w = (Work){.fix = ALL_FIXES};
        assert_true(sim_run(sim, check_fiber, &w));
        if (w.result < 0 || w.counts.n_corruptions || w.counts.n_leaks)
            fail_msg("after operation %" PRIu64 " failed the second repair does not cure", n);
        work_clear(&w);
        sim_free(sim);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_is_none_until_it_is_whole),
        cmocka_unit_test(an_interrupted_repair_can_be_repaired),
        cmocka_unit_test(a_failed_creation_leaves_no_file),
        cmocka_unit_test(a_repair_that_fails_says_so_and_can_be_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
