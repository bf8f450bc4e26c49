// SPDX-License-Identifier: LGPL-2.1-or-later
// The check beside `qemu-img check`: real images are damaged at random, both must agree on whether
// there are errors and leaks; after a repair both must find nothing, and the guest must read what
// it read before, except where the damage was. Then single kinds of damage by hand.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/qcow2-check.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"

// --- Our check and theirs

typedef struct Checked {
    const char *path;
    unsigned fix;
    int result;
    GError *error;
    Qcow2CheckResult counts;
    unsigned n_times;
    uint64_t ns; // one check, at its best
} Checked;

static void check_fiber(Fiber *self, void *arg)
{
    Checked *c = arg;
    File *file;
    c->result = file_open(self, c->path, c->fix ? FILE_WRITABLE : 0, &file, &c->error);
    if (c->result < 0)
        return;
    c->ns = UINT64_MAX;
    for (unsigned i = 0; i < MAX(c->n_times, 1) && c->result >= 0; i++) {
        qcow2_check_result_clear(&c->counts);
        gint64 start = g_get_monotonic_time();
        c->result = qcow2_check(self, file, c->fix, &c->counts, &c->error);
        c->ns = MIN(c->ns, (uint64_t)(g_get_monotonic_time() - start) * 1000);
    }
    file_close(self, file);
}

static void checked_clear(Checked *c)
{
    g_clear_error(&c->error);
    qcow2_check_result_clear(&c->counts);
}

static Checked run_check(const char *dir, const char *name, unsigned fix)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    Checked c = {.path = path, .fix = fix};
    host_run(check_fiber, &c);
    c.path = NULL;
    return c;
}

static uint64_t json_number(const char *json, const char *key)
{
    const char *p = strstr(json, key);
    return p ? g_ascii_strtoull(p + strlen(key) + 2, NULL, 10) : 0;
}

typedef struct Counts {
    bool failed;
    uint64_t n_corruptions, n_leaks;
} Counts;

static Counts run_qemu_check(const char *dir, const char *name)
{
    g_autofree char *json = NULL;
    int status =
        host_try_shell(dir, &json, "qemu-img check -f qcow2 --output=json %s 2>/dev/null", name);
    return (Counts){.failed = status == 1 || status == 63 || status < 0,
                    .n_corruptions = json_number(json, "\"corruptions\""),
                    .n_leaks = json_number(json, "\"leaks\"")};
}

// --- A real image in memory, and where its metadata lies

typedef struct Image {
    uint8_t *data;
    uint8_t *undamaged; // a copy, where tables are looked up
    gsize len;
    Qcow2Header h;
    Qcow2Geometry g;
} Image;

static Image load(const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    Image image = {0};
    g_autoptr(GError) error = NULL;
    assert_true(g_file_get_contents(path, (char **)&image.data, &image.len, NULL));
    if (qcow2_header_decode(image.data, image.len, image.len, &image.h, &error) < 0)
        fail_msg("%s", error->message);
    image.undamaged = g_memdup2(image.data, image.len);
    qcow2_geometry_init(&image.g, image.h.cluster_bits, image.h.refcount_order,
                        image.h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2, false,
                        image.h.size_bytes);
    return image;
}

static void save(const Image *image, const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    assert_true(g_file_set_contents_full(path, (char *)image->data, image->len,
                                         G_FILE_SET_CONTENTS_NONE, 0644, NULL));
}

static void image_clear(Image *image)
{
    g_free(image->data);
    g_free(image->undamaged);
    qcow2_header_clear(&image->h);
}

static uint64_t pick_l1_slot(const Image *image, HostRandom *r, bool populated, uint64_t *ret_index)
{
    for (unsigned i = 0; i < 1000; i++) {
        *ret_index = host_random(r, image->h.l1_entries);
        uint64_t slot = image->h.l1.v + *ret_index * 8;
        if (!populated || host_get64(image->undamaged, slot))
            return slot;
    }
    fail_msg("the image has no L2 table");
    return 0;
}

// Guest bytes that the damage may change.
typedef struct Range {
    uint64_t off, len;
} Range;

// The value of an offset field gone wrong.
static uint64_t wrong_entry(const Image *image, HostRandom *r, uint64_t old)
{
    uint64_t c = image->g.cluster_bytes, n = image->len / c;
    switch (host_random(r, 8)) {
    case 0:
        return 0;
    case 1:
        return old ^ UINT64_C(1) << 63;
    case 2:
        return old ^ UINT64_C(1) << host_random(r, 64);
    case 3:
        return (old & UINT64_C(1) << 63) | host_random(r, n) * c; // some other cluster
    case 4:
        return (old & UINT64_C(1) << 63) | (n + 2 + host_random(r, 1000)) * c;
    case 5:
        return old ^ (UINT64_C(1) << 56 | 2);
    case 6:
        return old + 512;
    default:
        return host_random(r, UINT64_MAX);
    }
}

static Range damage_l1(Image *image, HostRandom *r)
{
    uint64_t index, slot = pick_l1_slot(image, r, host_random(r, 4), &index);
    host_put64(image->data, slot, wrong_entry(image, r, host_get64(image->data, slot)));
    uint64_t span = (uint64_t)image->g.l2_entries << image->g.cluster_bits;
    return (Range){index * span, span};
}

static Range damage_l2(Image *image, HostRandom *r)
{
    uint64_t l1_index, l1_slot = pick_l1_slot(image, r, true, &l1_index);
    uint64_t l2 = host_get64(image->undamaged, l1_slot) & QCOW2_ENTRY_OFFSET_MASK;
    uint64_t index = 0, slot = 0;
    for (unsigned i = 0; i < 200; i++) {
        index = host_random(r, image->g.l2_entries);
        slot = l2 + index * image->g.l2_entry_bytes;
        if (host_get64(image->data, slot))
            break;
    }
    slot += image->g.extended_l2 && host_random(r, 3) == 0 ? 8 : 0;
    host_put64(image->data, slot, wrong_entry(image, r, host_get64(image->data, slot)));
    uint64_t cluster = (l1_index << image->g.l2_bits) + index;
    return (Range){cluster << image->g.cluster_bits, image->g.cluster_bytes};
}

static void damage_refcount(Image *image, HostRandom *r)
{
    uint64_t n = image->len / image->g.cluster_bytes, cluster = host_random(r, n);
    uint32_t bits = image->g.refcounts_per_block_bits;
    uint64_t block =
        host_get64(image->undamaged, image->h.refcount_table.v + (cluster >> bits) * 8);
    if (!block)
        return;
    uint64_t max = qcow2_refcount_max(&image->g);
    qcow2_refcount_set(&image->g, image->data + block, cluster & ((1u << bits) - 1),
                       host_random(r, MIN(max, 4) + 1));
}

static void damage_refcount_table(Image *image, HostRandom *r)
{
    uint64_t slot = image->h.refcount_table.v + host_random(r, 2) * 8;
    host_put64(image->data, slot, wrong_entry(image, r, host_get64(image->data, slot)));
}

// One piece of damage. Returns where the guest may see it.
static Range damage(Image *image, HostRandom *r)
{
    switch (host_random(r, 8)) {
    case 0:
        return damage_l1(image, r);
    case 1:
    case 2:
    case 3:
        return damage_l2(image, r);
    case 4:
        damage_refcount_table(image, r);
        return (Range){0, 0};
    default:
        damage_refcount(image, r);
        return (Range){0, 0};
    }
}

// --- Random damage

typedef struct Kind {
    const char *name, *make;
} Kind;

static const Kind kinds[] = {
    {"64 KiB clusters, snapshots and bitmaps",
     "qemu-img create -q -f qcow2 base.qcow2 8M && "
     "qemu-io -c 'write -P 1 0 600k' -c 'write -P 2 3M 300k' -c 'write -z 5M 128k' base.qcow2 && "
     "qemu-img snapshot -c s1 base.qcow2 && qemu-io -c 'write -P 3 64k 200k' base.qcow2 && "
     "qemu-img snapshot -c s2 base.qcow2 && qemu-io -c 'write -P 4 1M 100k' base.qcow2 && "
     "qemu-img bitmap --add base.qcow2 b0 && qemu-img bitmap --add base.qcow2 b1"},
    {"512-byte clusters, 1-bit refcounts",
     "qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=1 base.qcow2 2M && "
     "qemu-io -c 'write -P 1 0 60k' -c 'write -P 2 1M 30k' -c 'write -z 1536k 4k' base.qcow2"},
    {"4 KiB clusters, 64-bit refcounts, compressed and snapshot",
     "qemu-img create -q -f raw c.raw 2M && qemu-io -f raw -c 'write -P 1 0 700k' "
     "-c 'write -P 9 1M 100k' c.raw && "
     "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k,refcount_bits=64 c.raw base.qcow2 && "
     "qemu-img snapshot -c s1 base.qcow2 && qemu-io -c 'write -P 3 8k 100k' base.qcow2"},
    {"extended L2",
     "qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on base.qcow2 4M && "
     "qemu-io -c 'write -P 1 512 1k' -c 'write -P 2 32k 100k' -c 'write -z 1M 2k' "
     "-c 'write -P 5 2M 20k' base.qcow2 && qemu-img snapshot -c s base.qcow2 && "
     "qemu-io -c 'write -P 7 40k 3k' base.qcow2"},
    {"version 2",
     "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=1k base.qcow2 2M && "
     "qemu-io -c 'write -P 1 0 100k' -c 'write -P 2 1M 50k' base.qcow2 && "
     "qemu-img snapshot -c s1 base.qcow2 && qemu-io -c 'write -P 3 50k 100k' base.qcow2"},
};

static int set_up(void **state)
{
    *state = host_make_dir();
    return 0;
}

static int tear_down(void **state)
{
    host_remove_dir(*state);
    return 0;
}

// Both look at the same damage. We may be stricter (bits that the specification reserves and
// qemu-img overlooks; refcounts behind the end of the file), never laxer.
static void assert_agreement(const char *what, const Checked *ours, const Counts *theirs)
{
    if (theirs->failed)
        return;
    if (ours->result < 0)
        fail_msg("%s: qemu-img can check it, we cannot: %s", what, ours->error->message);
    bool found_errors = ours->counts.n_corruptions, found_leaks = ours->counts.n_leaks;
    if (theirs->n_corruptions && !found_errors)
        fail_msg("%s: qemu-img finds %" PRIu64 " errors, we none", what, theirs->n_corruptions);
    if (theirs->n_leaks && !found_leaks && !found_errors)
        fail_msg("%s: qemu-img finds %" PRIu64 " leaks, we none", what, theirs->n_leaks);
    if (theirs->n_corruptions || theirs->n_leaks || (!found_errors && !found_leaks))
        return;
    const char *message = g_ptr_array_index(ours->counts.messages, 0);
    if (!strstr(message, "contradicts itself") && !strstr(message, "is leaked"))
        fail_msg("%s: qemu-img finds nothing, we: %s", what, message);
}

static void assert_same_content(const char *dir, const char *what, const Range *ranges, unsigned n)
{
    // A damaged entry of a compressed cluster can be well-formed and lead to a broken stream.
    host_shell(dir, "qemu-img convert --salvage -f qcow2 -O raw broken.qcow2 after.raw 2>&1");
    g_autofree char *before = NULL, *after = NULL;
    g_autofree char *before_path = g_build_filename(dir, "before.raw", NULL);
    g_autofree char *after_path = g_build_filename(dir, "after.raw", NULL);
    gsize before_len, after_len;
    assert_true(g_file_get_contents(before_path, &before, &before_len, NULL));
    assert_true(g_file_get_contents(after_path, &after, &after_len, NULL));
    assert_int_equal(before_len, after_len);
    for (unsigned i = 0; i < n; i++) {
        uint64_t off = MIN(ranges[i].off, before_len), len = MIN(ranges[i].len, before_len - off);
        memset(before + off, 0, len);
        memset(after + off, 0, len);
    }
    for (gsize i = 0; i < before_len; i++)
        if (before[i] != after[i])
            fail_msg("%s: the guest reads something else at %#zx after the repair", what, i);
}

static void repair_and_verify(const char *dir, const char *what, const Range *ranges, unsigned n)
{
    Checked repaired =
        run_check(dir, "broken.qcow2", QCOW2_CHECK_FIX_LEAKS | QCOW2_CHECK_FIX_ERRORS);
    if (repaired.result < 0)
        fail_msg("%s: the repair failed: %s", what, repaired.error->message);
    if (repaired.counts.n_corruptions || repaired.counts.n_leaks) {
        Checked left = run_check(dir, "broken.qcow2", 0);
        // Clusters that are shared by accident, and 1-bit refcounts: nobody can cure that.
        const char *first = g_ptr_array_index(left.counts.messages, 0);
        if (strstr(first, "than refcounts of this width can hold")) {
            checked_clear(&left);
            checked_clear(&repaired);
            return;
        }
        fail_msg("%s: not cured: %s; left: %s", what,
                 (char *)g_ptr_array_index(repaired.counts.messages, 0),
                 (char *)g_ptr_array_index(left.counts.messages, 0));
    }
    checked_clear(&repaired);
    Counts theirs = run_qemu_check(dir, "broken.qcow2");
    if (theirs.failed || theirs.n_corruptions || theirs.n_leaks) {
        g_autofree char *report = NULL;
        host_try_shell(dir, &report, "qemu-img check broken.qcow2 2>&1");
        fail_msg("%s: after our repair qemu-img says: %s", what, report);
    }
    assert_same_content(dir, what, ranges, n);
}

static void random_damage(const char *dir, const Kind *kind, uint64_t seed, unsigned n_rounds)
{
    host_shell(dir, "rm -f * && %s && qemu-img convert -f qcow2 -O raw base.qcow2 before.raw",
               kind->make);
    Checked good = run_check(dir, "base.qcow2", 0);
    assert_int_equal(good.result, 0);
    if (good.counts.n_corruptions || good.counts.n_leaks)
        fail_msg("%s: %s", kind->name, (char *)g_ptr_array_index(good.counts.messages, 0));
    checked_clear(&good);
    for (unsigned round = 0; round < n_rounds; round++) {
        g_autofree char *what =
            g_strdup_printf("%s, seed %#" PRIx64 ", round %u", kind->name, seed, round);
        HostRandom r = {seed + round * 1000003};
        Image image = load(dir, "base.qcow2");
        Range ranges[3];
        unsigned n = 1 + host_random(&r, 3);
        for (unsigned i = 0; i < n; i++)
            ranges[i] = damage(&image, &r);
        save(&image, dir, "broken.qcow2");
        image_clear(&image);

        Checked ours = run_check(dir, "broken.qcow2", 0);
        Counts theirs = run_qemu_check(dir, "broken.qcow2");
        assert_agreement(what, &ours, &theirs);
        bool found = ours.counts.n_corruptions || ours.counts.n_leaks;
        checked_clear(&ours);
        if (found)
            repair_and_verify(dir, what, ranges, n);
    }
}

static void random_damage_is_found_and_cured(void **state)
{
    const char *rounds = g_getenv("CHAIND_TEST_ROUNDS");
    uint64_t seed = host_seed(0x5eed);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        random_damage(*state, &kinds[i], seed, rounds ? atoi(rounds) : 25);
}

// --- Single kinds of damage

// Makes the first kind's image, and loads it.
static Image make_first_kind(const char *dir)
{
    host_shell(dir, "%s && qemu-img convert -f qcow2 -O raw base.qcow2 before.raw", kinds[0].make);
    return load(dir, "base.qcow2");
}

static void dirty_and_corrupt_marks_go_when_all_is_well(void **state)
{
    Image image = make_first_kind(*state);
    host_put64(image.data, QCOW2_HEADER_OFF_INCOMPATIBLE,
               QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    save(&image, *state, "broken.qcow2");
    Checked c = run_check(*state, "broken.qcow2", 0);
    assert_int_equal(c.counts.n_corruptions, 0);
    checked_clear(&c);
    image_clear(&image);
    image = load(*state, "broken.qcow2");
    assert_int_equal(image.h.incompatible, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    image_clear(&image);

    c = run_check(*state, "broken.qcow2", QCOW2_CHECK_FIX_ERRORS | QCOW2_CHECK_FIX_LEAKS);
    assert_int_equal(c.result, 0);
    checked_clear(&c);
    image = load(*state, "broken.qcow2");
    assert_int_equal(image.h.incompatible, 0);
    assert_int_equal(image.h.autoclear, QCOW2_AUTOCLEAR_BITMAPS);
    image_clear(&image);
}

static uint8_t *first_block(const Image *image)
{
    return image->data + host_get64(image->data, image->h.refcount_table.v);
}

static void marks_stay_while_errors_are_left(void **state)
{
    Image image = make_first_kind(*state);
    host_put64(image.data, QCOW2_HEADER_OFF_INCOMPATIBLE, QCOW2_INCOMPAT_CORRUPT);
    qcow2_refcount_set(&image.g, first_block(&image), 5, 0);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    Checked c = run_check(*state, "broken.qcow2", QCOW2_CHECK_FIX_LEAKS);
    assert_int_equal(c.result, 0);
    assert_int_not_equal(c.counts.n_corruptions, 0);
    assert_int_equal(c.counts.n_corruptions_fixed, 0);
    checked_clear(&c);
    image = load(*state, "broken.qcow2");
    assert_int_equal(image.h.incompatible, QCOW2_INCOMPAT_CORRUPT);
    assert_int_equal(qcow2_refcount_get(&image.g, first_block(&image), 5), 0);
    image_clear(&image);
}

static void leaks_are_counted_and_given_back(void **state)
{
    Image image = make_first_kind(*state);
    uint64_t n = (image.len + image.g.cluster_bytes - 1) / image.g.cluster_bytes;
    image.data = g_realloc(image.data, (n + 3) * image.g.cluster_bytes);
    memset(image.data + image.len, 0, (n + 3) * image.g.cluster_bytes - image.len);
    image.len = (n + 3) * image.g.cluster_bytes;
    for (unsigned i = 0; i < 3; i++)
        qcow2_refcount_set(&image.g, first_block(&image), n + i, i + 1);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    Checked c = run_check(*state, "broken.qcow2", QCOW2_CHECK_FIX_LEAKS);
    assert_int_equal(c.counts.n_leaks, 0);
    assert_int_equal(c.counts.n_leaks_fixed, 3);
    assert_int_equal(c.counts.n_corruptions, 0);
    assert_int_equal(c.counts.messages->len, 3);
    checked_clear(&c);
    Counts theirs = run_qemu_check(*state, "broken.qcow2");
    assert_int_equal(theirs.n_leaks + theirs.n_corruptions, 0);
    assert_same_content(*state, "leaks", NULL, 0);
}

// A snapshot that cannot be read may own every cluster that looks unused.
static void leaks_stay_when_a_snapshot_is_unreadable(void **state)
{
    static const uint32_t bad_entries[] = {QCOW2_MAX_L1_BYTES / 8 + 1, UINT32_MAX};
    for (unsigned i = 0; i < 2; i++) {
        host_shell(*state, "rm -f *");
        Image image = make_first_kind(*state);
        host_put32(image.data, image.h.snapshot_table.v + 8, bad_entries[i]);
        save(&image, *state, "broken.qcow2");
        image_clear(&image);
        Checked c =
            run_check(*state, "broken.qcow2", QCOW2_CHECK_FIX_ERRORS | QCOW2_CHECK_FIX_LEAKS);
        assert_int_equal(c.result, 0);
        assert_int_not_equal(c.counts.n_corruptions, 0);
        assert_int_not_equal(c.counts.n_leaks, 0);
        assert_int_equal(c.counts.n_leaks_fixed, 0);
        checked_clear(&c);
    }
}

static void broken_bitmaps_are_forgotten_by_a_repair(void **state)
{
    Image image = make_first_kind(*state);
    host_put64(image.data, image.h.bitmaps.directory.v, 12345);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    repair_and_verify(*state, "bitmaps", NULL, 0);
    image = load(*state, "broken.qcow2");
    assert_int_equal(image.h.autoclear & QCOW2_AUTOCLEAR_BITMAPS, 0);
    image_clear(&image);
}

static void all_refcounts_lost_are_rebuilt(void **state)
{
    Image image = make_first_kind(*state);
    host_put64(image.data, image.h.refcount_table.v, 0);
    save(&image, *state, "broken.qcow2");
    repair_and_verify(*state, "no refcount block", NULL, 0);
    host_put64(image.data, QCOW2_HEADER_OFF_REFCOUNT_TABLE, UINT64_C(1) << 50);
    save(&image, *state, "broken.qcow2");
    repair_and_verify(*state, "no refcount table", NULL, 0);
    host_put64(image.data, QCOW2_HEADER_OFF_REFCOUNT_TABLE, image.h.l1.v);
    save(&image, *state, "broken.qcow2");
    repair_and_verify(*state, "the refcount table is the L1 table", NULL, 0);
    image_clear(&image);
}

static void an_l2_table_that_is_a_refcount_block_is_dropped(void **state)
{
    Image image = make_first_kind(*state);
    uint64_t block = host_get64(image.data, image.h.refcount_table.v);
    host_put64(image.data, image.h.l1.v, UINT64_C(1) << 63 | block);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    Range all = {0, 8 << 20};
    repair_and_verify(*state, "L2 is a refcount block", &all, 1);
}

// Run time does not believe such an entry either. The refcount is right, so nothing else is wrong.
static void a_cluster_at_the_very_end_of_the_file_is_outside(void **state)
{
    Image image = make_first_kind(*state);
    uint32_t cb = image.g.cluster_bytes;
    uint64_t l2 = host_get64(image.data, image.h.l1.v) & QCOW2_ENTRY_OFFSET_MASK;
    gsize len = (image.len + cb - 1) / cb * cb;
    image.data = g_realloc(image.data, len + 1);
    memset(image.data + image.len, 0, len + 1 - image.len);
    const struct {
        uint64_t at, flags;
        unsigned refcount;
    } targets[] = {
        {l2 + 100 * 8, QCOW2_ENTRY_COPIED, 1}, // of an L2 entry
        {image.h.l1.v, QCOW2_ENTRY_COPIED, 1}, // of an L1 entry
        {image.h.refcount_table.v + 8, 0, 1},  // a refcount block
    };
    for (size_t i = 0; i < G_N_ELEMENTS(targets); i++) {
        uint64_t before = host_get64(image.data, targets[i].at);
        for (unsigned beyond = 0; beyond < 2; beyond++) {
            host_put64(image.data, targets[i].at, targets[i].flags | len);
            qcow2_refcount_set(&image.g, first_block(&image), len / cb, targets[i].refcount);
            image.len = len + beyond;
            host_shell(*state, "rm -f broken.qcow2"); // saving over it would keep its length
            save(&image, *state, "broken.qcow2");
            Checked c = run_check(*state, "broken.qcow2", 0);
            Counts theirs = run_qemu_check(*state, "broken.qcow2");
            assert_agreement("the very end", &c, &theirs);
            bool is_outside = false;
            for (guint k = 0; c.counts.messages && k < c.counts.messages->len; k++)
                is_outside |= strstr(c.counts.messages->pdata[k], "end of the file") ||
                              strstr(c.counts.messages->pdata[k], "not usable");
            if (is_outside != !beyond)
                fail_msg("target %zu, %u bytes beyond: %s", i, beyond,
                         is_outside ? "outside" : "inside");
            checked_clear(&c);
        }
        host_put64(image.data, targets[i].at, before);
        qcow2_refcount_set(&image.g, first_block(&image), len / cb, 0);
    }
    image_clear(&image);
}

static void compressed_clusters_share_a_host_cluster(void **state)
{
    host_shell(*state, "%s", kinds[2].make);
    Checked c = run_check(*state, "base.qcow2", 0);
    assert_int_equal(c.counts.n_corruptions + c.counts.n_leaks, 0);
    assert_true(c.counts.n_compressed_clusters > 10);
    g_autofree char *info = NULL;
    assert_int_equal(host_try_shell(*state, &info, "qemu-img check --output=json base.qcow2"), 0);
    assert_int_equal(c.counts.n_allocated_clusters, json_number(info, "\"allocated-clusters\""));
    assert_int_equal(c.counts.n_compressed_clusters, json_number(info, "\"compressed-clusters\""));
    assert_int_equal(c.counts.n_fragmented_clusters, json_number(info, "\"fragmented-clusters\""));
    assert_int_equal(c.counts.n_total_clusters, json_number(info, "\"total-clusters\""));
    assert_int_equal(c.counts.image_end_offset, json_number(info, "\"image-end-offset\""));
    checked_clear(&c);
}

static void thousands_of_findings_give_a_hundred_messages(void **state)
{
    host_shell(*state, "qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata "
                       "base.qcow2 4M");
    Image image = load(*state, "base.qcow2");
    for (unsigned i = 0; i < 10; i++)
        host_put64(image.data, image.h.refcount_table.v + i * 8, 0);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    Checked c = run_check(*state, "broken.qcow2", 0);
    assert_true(c.counts.n_corruptions > 1000);
    assert_int_equal(c.counts.messages->len, 101);
    g_autofree char *last = g_strdup_printf("… and %" PRIu64 " more", c.counts.n_corruptions - 100);
    assert_string_equal(g_ptr_array_index(c.counts.messages, 100), last);
    checked_clear(&c);
}

// 2^60 bytes of hole behind a small image, and an entry that points far into it.
static void a_huge_sparse_file_costs_no_memory(void **state)
{
    Image image = make_first_kind(*state);
    uint64_t l2 = host_get64(image.data, image.h.l1.v) & QCOW2_ENTRY_OFFSET_MASK;
    host_put64(image.data, l2, UINT64_C(1) << 63 | UINT64_C(1) << 55);
    save(&image, *state, "broken.qcow2");
    image_clear(&image);
    if (host_try_shell(*state, NULL, "truncate -s 1E broken.qcow2 2>/dev/null") != 0) {
        print_message("# SKIP no file of 2^60 bytes here\n");
        skip();
    }
    Checked c = run_check(*state, "broken.qcow2", 0);
    assert_int_equal(c.result, -EFBIG);
    assert_non_null(strstr(c.error->message, "more of the file than a check can hold"));
    checked_clear(&c);
}

static void a_file_that_is_no_image_is_refused(void **state)
{
    host_shell(*state, "head -c 100000 /dev/zero > zeros && printf 'QFI\\373' > short");
    Checked c = run_check(*state, "zeros", 0);
    assert_int_equal(c.result, -EINVAL);
    checked_clear(&c);
    c = run_check(*state, "short", 0);
    assert_int_equal(c.result, -EINVAL);
    checked_clear(&c);
}

// Not a test of time: prints how long a check takes.
static void a_small_image_is_checked_quickly(void **state)
{
    host_shell(*state, "qemu-img create -q -f qcow2 base.qcow2 8M && "
                       "qemu-io -c 'write -P 1 0 1M' base.qcow2");
    g_autofree char *path = g_build_filename(*state, "base.qcow2", NULL);
    Checked c = {.path = path, .n_times = 50};
    host_run(check_fiber, &c);
    assert_int_equal(c.result, 0);
    print_message("# a check of a small image takes %" PRIu64 " us\n", c.ns / 1000);
    checked_clear(&c);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(random_damage_is_found_and_cured),
        TEST(dirty_and_corrupt_marks_go_when_all_is_well),
        TEST(marks_stay_while_errors_are_left),
        TEST(leaks_are_counted_and_given_back),
        TEST(leaks_stay_when_a_snapshot_is_unreadable),
        TEST(broken_bitmaps_are_forgotten_by_a_repair),
        TEST(all_refcounts_lost_are_rebuilt),
        TEST(an_l2_table_that_is_a_refcount_block_is_dropped),
        TEST(a_cluster_at_the_very_end_of_the_file_is_outside),
        TEST(compressed_clusters_share_a_host_cluster),
        TEST(thousands_of_findings_give_a_hundred_messages),
        TEST(a_huge_sparse_file_costs_no_memory),
        TEST(a_file_that_is_no_image_is_refused),
        TEST(a_small_image_is_checked_quickly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
