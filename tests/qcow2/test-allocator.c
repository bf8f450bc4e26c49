// SPDX-License-Identifier: LGPL-2.1-or-later
// Taking and giving back clusters, on the simulation. On a host that does not grow a guest hears
// -ENOSPC only when it is really full, and what it gives back can be used again at once; refcounts
// that are missing, unreadable or wrong; operations that fail halfway.
#include "host.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image"
enum { CLUSTER = 4096, DEVICE_CLUSTERS = 2048, REQUEST = 16 * CLUSTER };

typedef struct Device {
    Sim *sim;
    FiberFn *fn;
    Node *node;
    uint64_t full_at; // guest bytes written until the device was full
    unsigned n_corrupt;
    NodeEvents events;
} Device;

static void note_corrupt(const NodeEvents *events, const char *sentence)
{
    Device *d = (Device *)((const char *)events - G_STRUCT_OFFSET(Device, events));
    d->n_corrupt++;
}

static void open_fiber(Fiber *self, void *arg)
{
    Device *d = arg;
    g_autoptr(GError) error = NULL;
    MapMemory *memory = map_memory_new(1 << 20);
    d->events.corrupt = note_corrupt;
    Qcow2OpenOptions options = {.memory = memory, .events = &d->events};
    File *file;
    Qcow2Image *image;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &d->node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    d->fn(self, d);
    node_unref_close(self, d->node);
    map_memory_free(memory);
}

static void run(Device *d, FiberFn *fn)
{
    d->fn = fn;
    assert_true(sim_run(d->sim, open_fiber, d));
}

// The image that the recipe makes; made once. Owned by the caller.
static void load(const char *recipe, char **ret_data, gsize *ret_len)
{
    static GHashTable *made; // recipe → GBytes, for the life of the program
    if (!made)
        made = g_hash_table_new(g_str_hash, g_str_equal);
    GBytes *bytes = g_hash_table_lookup(made, recipe);
    if (!bytes) {
        g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
        char *data;
        gsize len;
        host_shell(dir, "%s", recipe);
        assert_true(g_file_get_contents(path, &data, &len, NULL));
        host_remove_dir(g_steal_pointer(&dir));
        bytes = g_bytes_new_take(data, len);
        g_hash_table_insert(made, g_strdup(recipe), bytes);
    }
    *ret_data = g_memdup2(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    *ret_len = g_bytes_get_size(bytes);
}

// A regular file.
static Device image_make(const char *recipe, uint64_t seed)
{
    g_autofree char *data = NULL;
    gsize len;
    load(recipe, &data, &len);
    Device d = {.sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true})};
    assert_int_equal(sim_write_file(d.sim, PATH, data, len), 0);
    return d;
}

// The device holds the image, and behind it whatever was there before.
static Device device_make_from(const char *recipe, uint64_t seed)
{
    g_autofree char *data = NULL;
    gsize len;
    load(recipe, &data, &len);
    data = g_realloc(data, DEVICE_CLUSTERS * CLUSTER);
    memset(data + len, 0xdb, DEVICE_CLUSTERS * CLUSTER - len);
    Device d = {.sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true})};
    assert_int_equal(sim_write_file(d.sim, PATH, data, DEVICE_CLUSTERS * CLUSTER), 0);
    assert_int_equal(sim_set_block_device(d.sim, PATH), 0);
    return d;
}

// With 64-bit refcounts four slices count the device.
static Device device_make(const char *options, uint64_t seed)
{
    g_autofree char *recipe =
        g_strdup_printf("qemu-img create -q -f qcow2 -o cluster_size=4k,%s i.qcow2 64M", options);
    return device_make_from(recipe, seed);
}

static void check_fiber(Fiber *self, void *arg)
{
    Qcow2CheckResult *result = arg;
    File *file;
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, result, NULL), 0);
    file_close(self, file);
}

static void device_check_and_free(Device *d)
{
    Qcow2CheckResult result;
    assert_true(sim_run(d->sim, check_fiber, &result));
    if (result.n_corruptions || result.n_leaks || result.n_check_errors)
        fail_msg("%s", (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
    sim_free(d->sim);
}

static int write_at(Fiber *self, Device *d, uint64_t off, uint64_t len, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(len);
    memset(buf, byte, len);
    return node_write(self, d->node, guest_off(off), buf, len, 0);
}

static void assert_shows(Fiber *self, Device *d, uint64_t off, uint64_t len, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(len);
    assert_int_equal(node_read(self, d->node, guest_off(off), buf, len), 0);
    for (uint64_t i = 0; i < len; i++)
        assert_int_equal(buf[i], byte);
}

static void fill_with_large_requests(Fiber *self, void *arg)
{
    Device *d = arg;
    int r;
    while ((r = write_at(self, d, d->full_at, REQUEST, 1)) == 0)
        d->full_at += REQUEST;
    assert_int_equal(r, -ENOSPC);
}

// Large requests, then what single clusters still find room for.
static void fill(Fiber *self, void *arg)
{
    Device *d = arg;
    int r;
    fill_with_large_requests(self, arg);
    while ((r = write_at(self, d, d->full_at, CLUSTER, 1)) == 0)
        d->full_at += CLUSTER;
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(node_flush(self, d->node), 0);
}

static void a_device_is_used_to_its_last_cluster(void **state)
{
    static const char *const options[] = {"refcount_bits=64", "refcount_bits=16"};
    for (unsigned i = 0; i < 2; i++) {
        Device d = device_make(options[i], i + 1);
        run(&d, fill_with_large_requests);
        // Header, refcount table, L1, four blocks at most, a table for each 512 clusters; and what
        // the last request had done before it failed.
        assert_in_range(d.full_at, (DEVICE_CLUSTERS - 11 - 16) * CLUSTER,
                        DEVICE_CLUSTERS * CLUSTER);
        Qcow2CheckResult result;
        assert_true(sim_run(d.sim, check_fiber, &result));
        assert_int_equal(result.image_end_offset, DEVICE_CLUSTERS * CLUSTER);
        qcow2_check_result_clear(&result);
        device_check_and_free(&d);
    }
}

static void write_a_new_table(Fiber *self, void *arg)
{
    assert_int_equal(write_at(self, arg, 4 << 20, CLUSTER, 1), 0);
    assert_int_equal(node_flush(self, ((Device *)arg)->node), 0);
    assert_shows(self, arg, 4 << 20, CLUSTER, 1);
}

// A file that ends with its L1 table, copied to a device of its size.
static void a_device_that_ends_inside_its_l1_table_is_written(void **state)
{
    for (unsigned no_punch = 0; no_punch < 2; no_punch++) {
        g_autofree char *data = NULL;
        gsize len;
        load("qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 64M && "
             "qemu-io -c 'write 0 64k' -c 'discard 0 64k' i.qcow2",
             &data, &len);
        uint64_t end = len / CLUSTER * CLUSTER; // of what is in use
        data = g_realloc(data, end + 512);
        memset(data + end, 0, 512);
        memcpy(data + end, data + host_get64((uint8_t *)data, 40), 32 * 8);
        host_put64((uint8_t *)data, 40, end);
        Device d = {.sim = sim_new(&(SimConfig){.seed = 3, .no_punch = no_punch})};
        assert_int_equal(sim_write_file(d.sim, PATH, data, end + 512), 0);
        assert_int_equal(sim_set_block_device(d.sim, PATH), 0);
        run(&d, write_a_new_table);
        sim_free(d.sim);
    }
}

// Every other cluster, all over the device.
static void free_scattered(Fiber *self, void *arg)
{
    Device *d = arg;
    for (uint64_t off = 0; off < d->full_at; off += 2 * CLUSTER)
        assert_int_equal(node_discard(self, d->node, guest_off(off), CLUSTER, 0), 0);
}

static void write_scattered(Fiber *self, void *arg)
{
    Device *d = arg;
    uint64_t n_freed = (d->full_at / CLUSTER + 1) / 2, start = 32 << 20;
    uint64_t n = (n_freed - 4) * CLUSTER; // new tables take some
    for (uint64_t off = 0; off < n; off += REQUEST)
        assert_int_equal(write_at(self, d, start + off, MIN(REQUEST, n - off), 2), 0);
    assert_shows(self, d, start, n, 2);
    assert_shows(self, d, CLUSTER, CLUSTER, 1);
    assert_shows(self, d, 0, CLUSTER, 0);
}

static void scattered_free_clusters_serve_large_writes(void **state)
{
    Device d = device_make("refcount_bits=64", 3);
    run(&d, fill);
    run(&d, free_scattered);
    run(&d, write_scattered); // opened anew: nothing is known to be free
    device_check_and_free(&d);
}

static void free_scattered_and_write(Fiber *self, void *arg)
{
    fill(self, arg);
    free_scattered(self, arg);
    write_scattered(self, arg);
}

static void fragments_known_to_be_free_serve_large_writes(void **state)
{
    Device d = device_make("refcount_bits=64", 4);
    run(&d, free_scattered_and_write);
    device_check_and_free(&d);
}

// Gives the device's last cluster back, whatever it shows.
static void free_the_last(Fiber *self, void *arg)
{
    Device *d = arg;
    uint64_t last = 0, last_off = 0;
    for (uint64_t off = 0; off < d->full_at; off += CLUSTER) {
        NodeExtent e;
        assert_int_equal(node_map(self, d->node, guest_off(off), CLUSTER, &e), 0);
        assert_int_equal(e.kind, NODE_EXTENT_DATA);
        if (e.host.v > last) {
            last = e.host.v;
            last_off = off;
        }
    }
    assert_int_equal(last, (DEVICE_CLUSTERS - 1) * CLUSTER);
    d->full_at = last_off;
    assert_int_equal(node_discard(self, d->node, guest_off(last_off), CLUSTER, 0), 0);
}

static void write_where_it_was(Fiber *self, void *arg)
{
    Device *d = arg;
    assert_int_equal(write_at(self, d, d->full_at, CLUSTER, 3), 0);
    assert_shows(self, d, d->full_at, CLUSTER, 3);
}

static void a_free_cluster_is_found_behind_many_full_slices(void **state)
{
    Device d = device_make("refcount_bits=64", 5);
    run(&d, fill);
    run(&d, free_the_last);
    run(&d, write_where_it_was);
    device_check_and_free(&d);
}

static void overwrite_in_rounds(Fiber *self, void *arg)
{
    Device *d = arg;
    fill(self, d);
    for (uint8_t round = 2; round < 6; round++) {
        uint64_t off = (uint64_t)round << 20;
        assert_int_equal(node_discard(self, d->node, guest_off(off), 8 * REQUEST, 0), 0);
        assert_int_equal(write_at(self, d, off, 8 * REQUEST, round), 0);
        assert_shows(self, d, off, 8 * REQUEST, round);
    }
}

static void a_write_uses_what_was_discarded_before_any_flush(void **state)
{
    for (uint64_t seed = 10; seed < 20; seed++) {
        Device d = device_make("refcount_bits=16", seed);
        run(&d, overwrite_in_rounds);
        device_check_and_free(&d);
    }
}

typedef struct Overwriter {
    Device *d;
    uint8_t number;
    FiberWaitGroup *group;
} Overwriter;

enum { N_OVERWRITERS = 8 };

static uint64_t overwriter_off(unsigned number)
{
    return (uint64_t)number << 19;
}

// Each round with a byte that is this writer's alone.
static void overwriter(Fiber *self, void *arg)
{
    Overwriter *o = arg;
    Device *d = o->d;
    uint64_t off = overwriter_off(o->number);
    for (unsigned round = 0; round < 4; round++) {
        uint8_t byte = 16 * (1 + o->number) + round;
        assert_int_equal(node_discard(self, d->node, guest_off(off), REQUEST, 0), 0);
        assert_int_equal(write_at(self, d, off, REQUEST, byte), 0);
        // An edge in the middle of what is not zero goes through the zeroing's own writes.
        assert_int_equal(node_zero(self, d->node, guest_off(off + 100), 200, 0), 0);
        assert_shows(self, d, off + 100, 200, 0);
        assert_shows(self, d, off + 300, REQUEST - 300, byte);
    }
    fiber_wait_group_done(o->group);
}

static void overwrite_side_by_side(Fiber *self, void *arg)
{
    Overwriter writers[N_OVERWRITERS];
    FiberWaitGroup group = {0};
    fiber_wait_group_add(&group, N_OVERWRITERS);
    for (unsigned i = 0; i < N_OVERWRITERS; i++) {
        writers[i] = (Overwriter){arg, i, &group};
        int r = fiber_spawn(fiber_loop(self), "overwriter", overwriter, &writers[i], NULL);
        assert_int_equal(r, 0);
    }
    fiber_wait_group_wait(self, &group);
}

static void fill_and_overwrite(Fiber *self, void *arg)
{
    fill(self, arg);
    overwrite_side_by_side(self, arg);
}

static void many_writers_on_a_full_device_wait_for_each_others_clusters(void **state)
{
    for (uint64_t seed = 20; seed < 40; seed++) {
        Device d = device_make("refcount_bits=16", seed);
        run(&d, fill_and_overwrite);
        device_check_and_free(&d);
    }
}

typedef struct Cutter {
    SimHook hook;
    Device d;
    unsigned n_points;
} Cutter;

// Old, new or no content, but never another's.
static void show_own_content(Fiber *self, void *arg)
{
    Device *d = arg;
    g_autofree uint8_t *buf = g_malloc(REQUEST);
    for (unsigned i = 0; i < N_OVERWRITERS; i++) {
        uint64_t off = overwriter_off(i);
        assert_int_equal(node_read(self, d->node, guest_off(off), buf, REQUEST), 0);
        for (unsigned k = 0; k < REQUEST; k++)
            if (buf[k] > 1 && buf[k] / 16 != 1 + i)
                fail_msg("writer %u's place shows %#x", i, buf[k]);
    }
}

// What a power cut before this operation would leave.
static int cut_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Cutter *cutter = (Cutter *)hook;
    if (op == SIM_OP_READ || op == SIM_OP_OPEN)
        return 0;
    Qcow2CheckResult result;
    Sim *after = sim_clone_after_power_cut(cutter->d.sim, n);
    assert_true(sim_run(after, check_fiber, &result));
    if (result.n_corruptions || result.n_check_errors)
        fail_msg("a cut before operation %lu: %s", (unsigned long)n,
                 (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
    Device d = {.sim = after};
    run(&d, show_own_content);
    sim_free(after);
    cutter->n_points++;
    return 0;
}

static void overwrite_under_cuts(Fiber *self, void *arg)
{
    Cutter *cutter = (Cutter *)((char *)arg - G_STRUCT_OFFSET(Cutter, d));
    fill(self, arg);
    sim_set_hook(cutter->d.sim, &cutter->hook);
    overwrite_side_by_side(self, arg);
    sim_set_hook(cutter->d.sim, NULL);
}

static void a_power_cut_while_a_full_device_is_overwritten_corrupts_nothing(void **state)
{
    for (uint64_t seed = 200; seed < 208; seed++) {
        Cutter cutter = {.hook = {cut_hook}, .d = device_make("refcount_bits=16", seed)};
        run(&cutter.d, overwrite_under_cuts);
        assert_true(cutter.n_points > 50);
        device_check_and_free(&cutter.d);
    }
}

// Each needs a table of its own, copied from the snapshot's, and one cluster for it.
static void zero_what_a_snapshot_shares(Fiber *self, void *arg)
{
    Device *d = arg;
    d->full_at = 4 << 20;
    fill(self, d);
    assert_int_equal(node_discard(self, d->node, guest_off(4 << 20), REQUEST, 0), 0);
    assert_int_equal(node_zero(self, d->node, guest_off(0), REQUEST, 0), 0);
    assert_int_equal(node_discard(self, d->node, guest_off((4 << 20) + REQUEST), REQUEST, 0), 0);
    assert_int_equal(node_discard(self, d->node, guest_off(2 << 20), REQUEST, 0), 0);
    assert_shows(self, d, 0, REQUEST, 0);
    assert_shows(self, d, REQUEST, CLUSTER, 1);
    assert_shows(self, d, 2 << 20, REQUEST, 0);
}

static void zeroes_and_discards_find_room_for_a_table_in_what_was_freed(void **state)
{
    static const char recipe[] =
        "qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 64M && "
        "qemu-io -c 'write -P 1 0 100k' -c 'write -P 1 2M 100k' i.qcow2 && "
        "qemu-img snapshot -c s i.qcow2";
    for (unsigned seed = 40; seed < 45; seed++) {
        Device d = device_make_from(recipe, seed);
        run(&d, zero_what_a_snapshot_shares);
        device_check_and_free(&d);
    }
}

// --- Operations that fail

// Lets operations of one kind on [off, off+len) fail, as often as it says.
typedef struct Fault {
    SimHook hook;
    SimOp op;
    uint64_t off, len;
    int error;
    unsigned n_left, n_hit;
} Fault;

static int fault_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Fault *f = (Fault *)hook;
    if (op != f->op || off - f->off >= f->len || !f->n_left)
        return 0;
    f->n_left--;
    f->n_hit++;
    return f->error;
}

static void fill_whatever_fails(Fiber *self, void *arg)
{
    Device *d = arg;
    int r;
    while ((r = write_at(self, d, d->full_at, REQUEST, 1)) != -ENOSPC)
        d->full_at += r == 0 ? REQUEST : 0;
    while ((r = write_at(self, d, d->full_at, CLUSTER, 1)) != -ENOSPC)
        d->full_at += r == 0 ? CLUSTER : 0;
}

static void a_refcount_block_that_fails_uses_up_no_clusters(void **state)
{
    Device good = device_make("refcount_bits=64", 50), bad = device_make("refcount_bits=64", 50);
    Fault fault = {{fault_hook}, SIM_OP_ZERO, 512 * CLUSTER, 40 * CLUSTER, -EIO, 20, 0};
    run(&good, fill);
    sim_set_hook(bad.sim, &fault.hook);
    run(&bad, fill_whatever_fails);
    assert_int_equal(fault.n_hit, 20);
    assert_int_equal(bad.full_at, good.full_at);
    device_check_and_free(&good);
    device_check_and_free(&bad);
}

static void write_some(Fiber *self, void *arg)
{
    Device *d = arg;
    for (uint64_t off = 0; off < 4 * REQUEST; off += REQUEST)
        assert_int_equal(write_at(self, d, off, REQUEST, 7), 0);
    assert_int_equal(node_flush(self, d->node), 0);
    assert_shows(self, d, 0, 4 * REQUEST, 7);
}

static void an_unreadable_refcount_slice_does_not_stop_allocation(void **state)
{
    Device d = image_make("qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 "
                          "i.qcow2 64M && qemu-io -c 'write 32M 8M' -c 'discard 33M 1M' i.qcow2",
                          51);
    // The first block lies in cluster 2: it counts what was free, and the clusters before the tail.
    Fault fault = {{fault_hook}, SIM_OP_READ, 2 * CLUSTER, CLUSTER, -EIO, UINT32_MAX, 0};
    sim_set_hook(d.sim, &fault.hook);
    run(&d, write_some);
    assert_true(fault.n_hit > 0);
    sim_set_hook(d.sim, NULL);
    device_check_and_free(&d);
}

static void an_unreadable_slice_at_the_tail_does_not_stop_allocation(void **state)
{
    Device d = image_make(
        "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 i.qcow2 64M", 52);
    Fault fault = {{fault_hook}, SIM_OP_READ, 2 * CLUSTER, CLUSTER, -EIO, UINT32_MAX, 0};
    sim_set_hook(d.sim, &fault.hook);
    run(&d, write_some);
    assert_true(fault.n_hit > 0);
    sim_set_hook(d.sim, NULL);
    device_check_and_free(&d);
}

static void write_beside_refcounts_that_fail(Fiber *self, void *arg)
{
    Device *d = arg;
    g_autofree uint8_t *buf = g_malloc0(CLUSTER);
    assert_int_equal(write_at(self, d, 4 << 20, CLUSTER, 7), 0); // has a table, of good refcounts
    assert_int_equal(node_flush(self, d->node), 0);
    Fault fault = {{fault_hook}, SIM_OP_WRITE, 2 * CLUSTER, CLUSTER, -EIO, UINT32_MAX, 0};
    sim_set_hook(d->sim, &fault.hook);
    int r = node_write(self, d->node, guest_off(5 << 20), buf, CLUSTER, NODE_IO_FUA);
    assert_int_equal(r, -EIO);
    r = node_write(self, d->node, guest_off((5 << 20) + REQUEST), buf, CLUSTER, NODE_IO_FUA);
    assert_int_equal(r, -EIO); // its table's slice names what the first one took, too
    r = node_write(self, d->node, guest_off(32 << 20), buf, CLUSTER, NODE_IO_FUA);
    assert_int_equal(r, 0);
    assert_int_equal(node_flush(self, d->node), -EIO);
    sim_set_hook(d->sim, NULL);
    assert_int_equal(node_flush(self, d->node), 0);
}

static void refcounts_that_cannot_be_written_do_not_fail_what_comes_later(void **state)
{
    Device d = image_make(
        "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 i.qcow2 64M", 53);
    run(&d, write_beside_refcounts_that_fail);
    device_check_and_free(&d);
}

// 512-byte clusters with 64-bit refcounts: the first table counts 2 MiB.
#define SMALL_CLUSTERS                                                                             \
    "qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 i.qcow2 64M"

static void fail_to_grow_the_table(Fiber *self, void *arg)
{
    Device *d = arg;
    int r;
    while ((r = write_at(self, d, d->full_at, REQUEST, 9)) == 0)
        d->full_at += REQUEST;
    assert_in_range(d->full_at, 0, 4 << 20);
    assert_shows(self, d, 0, d->full_at, 9);
}

static void grow_the_table(Fiber *self, void *arg)
{
    Device *d = arg;
    unsigned n_failed = 0;
    for (uint64_t off = 0; off < 4 << 20;) {
        int r = write_at(self, d, off, REQUEST, 9);
        n_failed += r < 0;
        off += r == 0 ? REQUEST : 0;
    }
    assert_int_equal(n_failed, 1);
    assert_int_equal(node_flush(self, d->node), 0);
    assert_shows(self, d, 0, 4 << 20, 9);
}

static void a_refcount_table_that_cannot_move_stays_and_leaks_nothing(void **state)
{
    const Fault faults[] = {
        {{fault_hook}, SIM_OP_WRITE, 0, 512, -EIO, 1, 0}, // the header
        {{fault_hook}, SIM_OP_WRITE, 0, 512, -ENOSPC, 1, 0},
        {{fault_hook}, SIM_OP_WRITE, 4096 * 512, 512, -EIO, 1, 0}, // the new area
    };
    for (uint64_t seed = 60; seed < 90; seed++) {
        Fault fault = faults[seed % G_N_ELEMENTS(faults)];
        Device d = image_make(SMALL_CLUSTERS, seed);
        sim_set_hook(d.sim, &fault.hook);
        run(&d, seed % 2 ? grow_the_table : fail_to_grow_the_table);
        assert_int_equal(fault.n_hit, 1);
        sim_set_hook(d.sim, NULL);
        device_check_and_free(&d);
    }
}

// Lets the n-th operation of the guest's requests fail: reads and writes of data and edges, of
// tables being copied, of a refcount table being moved; not those of a flush.
typedef struct NthFault {
    SimHook hook;
    Device d;
    uint64_t n_ops, fail_at;
    int error;
    bool in_request;
} NthFault;

static int nth_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    NthFault *f = (NthFault *)hook;
    bool can_fail =
        op == SIM_OP_WRITE || op == SIM_OP_ZERO || (op == SIM_OP_READ && f->error == -EIO);
    return f->in_request && can_fail && ++f->n_ops == f->fail_at ? f->error : 0;
}

static void make_requests(Fiber *self, void *arg)
{
    NthFault *f = (NthFault *)((char *)arg - G_STRUCT_OFFSET(NthFault, d));
    unsigned n_failed = 0;
    // Parts of clusters, several with both edges, a table that is shared, a new one, growth.
    static const struct {
        uint64_t off, len;
    } writes[] = {
        {700, 100},
        {20000, 30000},
        {(8 << 20) + 100, 20000},
        {100, 2000},
        {16 << 20, REQUEST},
        {(16 << 20) + 70000, REQUEST},
        {32 << 20, 1 << 20},
        {(33 << 20) + 5, 1 << 20},
        {3000, 5000},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(writes); i++) {
        f->in_request = true;
        n_failed += write_at(self, &f->d, writes[i].off, writes[i].len, 5) < 0;
        f->in_request = false;
        assert_int_equal(node_flush(self, f->d.node), 0);
    }
    f->in_request = true;
    n_failed += node_zero(self, f->d.node, guest_off(50), 1 << 20, 0) < 0;
    f->in_request = false;
    assert_true(n_failed <= 1);
}

static void a_request_that_fails_halfway_leaks_nothing(void **state)
{
    static const char shared[] = "qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 64M && "
                                 "qemu-io -c 'write -P 1 0 100k' -c 'write -P 2 8M 64k' i.qcow2 && "
                                 "qemu-img snapshot -c s1 i.qcow2";
    static const char small[] = SMALL_CLUSTERS " && qemu-io -c 'write -P 1 0 40k' i.qcow2";
    static const char extended[] =
        "qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on i.qcow2 64M && "
        "qemu-io -c 'write -P 1 0 100k' i.qcow2 && qemu-img snapshot -c s1 i.qcow2";
    static const char *const recipes[] = {shared, small, extended};
    static const int errors[] = {-EIO, -ENOSPC};
    for (unsigned k = 0; k < G_N_ELEMENTS(recipes) * G_N_ELEMENTS(errors); k++) {
        g_autofree char *data = NULL;
        gsize len;
        load(recipes[k / 2], &data, &len);
        NthFault f = {.hook = {nth_hook}, .error = errors[k % 2]};
        do {
            f.n_ops = 0;
            f.fail_at++;
            f.d = (Device){.sim = sim_new(&(SimConfig){.seed = f.fail_at})};
            assert_int_equal(sim_write_file(f.d.sim, PATH, data, len), 0);
            sim_set_hook(f.d.sim, &f.hook);
            run(&f.d, make_requests);
            sim_set_hook(f.d.sim, NULL);
            device_check_and_free(&f.d);
        } while (f.n_ops >= f.fail_at);
        assert_true(f.fail_at > 10);
    }
}

typedef struct Stubborn {
    Device *d;
    uint64_t off;
    FiberWaitGroup *group;
} Stubborn;

static void stubborn_writer(Fiber *self, void *arg)
{
    Stubborn *w = arg;
    for (uint64_t end = w->off + (768 << 10); w->off < end;) {
        int r = write_at(self, w->d, w->off, 8192, 6);
        assert_true(r == 0 || r == -EIO);
        w->off += r == 0 ? 8192 : 0;
    }
    fiber_wait_group_done(w->group);
}

static void write_side_by_side(Fiber *self, void *arg)
{
    Stubborn writers[4];
    FiberWaitGroup group = {0};
    fiber_wait_group_add(&group, G_N_ELEMENTS(writers));
    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++) {
        writers[i] = (Stubborn){arg, (uint64_t)i << 20, &group};
        int r = fiber_spawn(fiber_loop(self), "writer", stubborn_writer, &writers[i], NULL);
        assert_int_equal(r, 0);
    }
    fiber_wait_group_wait(self, &group);
    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++)
        assert_shows(self, arg, (uint64_t)i << 20, 768 << 10, 6);
}

// The last block that the table has room for fails again and again, while others wait for it.
static void a_block_that_fails_at_the_tables_end_is_never_entered_behind_it(void **state)
{
    g_autofree char *data = NULL;
    gsize len, device = 8 << 20;
    load(SMALL_CLUSTERS, &data, &len);
    data = g_realloc(data, device);
    memset(data + len, 0xdb, device - len);
    for (uint64_t seed = 100; seed < 110; seed++) {
        Fault fault = {{fault_hook}, SIM_OP_ZERO, 63 * 64 * 512, 64 * 512, -EIO, 300, 0};
        Device d = {.sim = sim_new(&(SimConfig){.seed = seed})};
        assert_int_equal(sim_write_file(d.sim, PATH, data, device), 0);
        assert_int_equal(sim_set_block_device(d.sim, PATH), 0);
        sim_set_hook(d.sim, &fault.hook);
        run(&d, write_side_by_side);
        assert_int_equal(fault.n_hit, 300);
        sim_set_hook(d.sim, NULL);
        device_check_and_free(&d);
    }
}

// --- Gaps and wrong counts

static void make_huge(Fiber *self, void *arg)
{
    File *file;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(file_truncate(self, file, UINT64_C(1) << 47), 0);
    file_close(self, file);
}

// No refcount table reaches the end of this file: what is free below is all there is.
static void use_what_is_free(Fiber *self, void *arg)
{
    Device *d = arg;
    int r;
    for (uint64_t off = 0; (r = write_at(self, d, off, 512, 1)) == 0; off += 512)
        assert_in_range(off, 0, 64 << 10);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(node_discard(self, d->node, guest_off(32 << 20), 8192, 0), 0);
    assert_int_equal(write_at(self, d, (32 << 20) + 8192 * 2, 4096, 1), 0); // in its table's range
    assert_shows(self, d, (32 << 20) + 8192 * 2, 4096, 1);
}

static void a_huge_sparse_file_does_not_keep_the_loop_busy(void **state)
{
    Device d = image_make(SMALL_CLUSTERS " && qemu-io -c 'write 32M 8k' i.qcow2", 91);
    assert_true(sim_run(d.sim, make_huge, NULL));
    run(&d, use_what_is_free);
    sim_free(d.sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_is_used_to_its_last_cluster),
        cmocka_unit_test(scattered_free_clusters_serve_large_writes),
        cmocka_unit_test(fragments_known_to_be_free_serve_large_writes),
        cmocka_unit_test(a_free_cluster_is_found_behind_many_full_slices),
        cmocka_unit_test(a_write_uses_what_was_discarded_before_any_flush),
        cmocka_unit_test(a_power_cut_while_a_full_device_is_overwritten_corrupts_nothing),
        cmocka_unit_test(zeroes_and_discards_find_room_for_a_table_in_what_was_freed),
        cmocka_unit_test(a_refcount_block_that_fails_uses_up_no_clusters),
        cmocka_unit_test(an_unreadable_refcount_slice_does_not_stop_allocation),
        cmocka_unit_test(an_unreadable_slice_at_the_tail_does_not_stop_allocation),
        cmocka_unit_test(refcounts_that_cannot_be_written_do_not_fail_what_comes_later),
        cmocka_unit_test(a_device_that_ends_inside_its_l1_table_is_written),
        cmocka_unit_test(a_refcount_table_that_cannot_move_stays_and_leaks_nothing),
        cmocka_unit_test(a_block_that_fails_at_the_tables_end_is_never_entered_behind_it),
        cmocka_unit_test(a_request_that_fails_halfway_leaks_nothing),
        cmocka_unit_test(a_huge_sparse_file_does_not_keep_the_loop_busy),
        cmocka_unit_test(many_writers_on_a_full_device_wait_for_each_others_clusters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
