// SPDX-License-Identifier: LGPL-2.1-or-later
// Random load on images whose host now and then cannot write some sectors, or has no space, with
// little memory for metadata, and the power cut at random: what was acknowledged as durable is
// there after each cut, the checker finds the image whole, and all is well once the host is. On the
// simulation, one seed after another.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image"
enum {
    N_CELLS = 160,
    N_FIBERS = 3,
    N_STEPS = 130, // of each fiber
    N_SEEDS = 24,
    N_BAD = 4,
    N_RECENT = 64,
    N_CUTS = 2, // of each moment
    SECTOR = 512,
    MEMORY = 64 << 10,
};

// --- what a guest may see ------------------------------------------------------------------------

// A cluster of the guest's, all of it one byte, which one fiber changes. `seen`: the bytes that a
// power cut may bring back, from the one that is durable to the one written last.
typedef struct Cell {
    GByteArray *seen;
    uint64_t n_gone; // how many came before `seen`
    uint64_t done;   // number of the last one whose request ended, counted from the start
    bool is_known;   // what a read shows now is that one
} Cell;

static void cell_begin(Cell *c, uint8_t byte)
{
    g_byte_array_append(c->seen, &byte, 1);
}

static void cell_end(Cell *c)
{
    c->done = c->n_gone + c->seen->len - 1;
    c->is_known = true;
}

static void cell_is_durable(Cell *c, uint64_t number)
{
    if (number <= c->n_gone)
        return;
    g_byte_array_remove_range(c->seen, 0, number - c->n_gone);
    c->n_gone = number;
}

static bool cell_may_show(const Cell *c, uint8_t byte)
{
    return memchr(c->seen->data, byte, c->seen->len);
}

// --- one seed ------------------------------------------------------------------------------------

typedef struct Recipe {
    const char *options;
    uint32_t cluster_bytes;
} Recipe;

typedef struct Range {
    uint64_t off, end;
} Range;

typedef struct Load {
    SimHook hook;
    Sim *sim;
    uint64_t seed;
    HostRandom random;
    uint32_t cluster_bytes;
    uint64_t stride; // from cell to cell
    bool is_full_host;
    Range bad[N_BAD];
    unsigned n_bad;
    int error; // of the bad sectors
    uint64_t recent[N_RECENT];
    unsigned n_recent;
    Cell cells[N_CELLS];
    Node *node;
    MapMemory *memory;
    FiberWaitGroup fibers;
} Load;

static int hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    Load *l = (Load *)hook;
    if (op == SIM_OP_WRITE && len <= 4096 && off)
        l->recent[l->n_recent++ % N_RECENT] = off;
    if (op == SIM_OP_WRITE || op == SIM_OP_RESERVE)
        for (unsigned i = 0; i < l->n_bad; i++)
            if (off < l->bad[i].end && off + len > l->bad[i].off)
                return l->error;
    return 0;
}

static GuestOff cell_off(const Load *l, unsigned cell)
{
    return guest_off(cell * l->stride);
}

static void open_image(Fiber *self, Load *l)
{
    g_autoptr(GError) error = NULL;
    l->memory = map_memory_new(MEMORY);
    Qcow2OpenOptions options = {.memory = l->memory};
    File *file;
    Qcow2Image *image;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &l->node, &error) < 0)
        fail_msg("seed %" PRIu64 ": %s", l->seed, error->message);
    qcow2_image_unref_close(self, image);
}

static void close_image(Fiber *self, Load *l)
{
    node_unref_close(self, l->node);
    map_memory_free(l->memory);
}

static void check(Fiber *self, const Load *l)
{
    Qcow2CheckResult result;
    File *file;
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_check_errors)
        fail_msg("seed %" PRIu64 ": %s", l->seed, (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void look_after_cut(Fiber *self, void *arg)
{
    Load *l = arg;
    check(self, l);
    open_image(self, l);
    for (unsigned i = 0; i < N_CELLS; i++) {
        uint8_t byte;
        assert_int_equal(node_read(self, l->node, cell_off(l, i), &byte, 1), 0);
        if (!cell_may_show(&l->cells[i], byte))
            fail_msg("seed %" PRIu64 ": cell %u shows %u after a cut, %u was durable", l->seed, i,
                     byte, l->cells[i].seen->data[0]);
    }
    close_image(self, l);
    check(self, l);
}

// What the power, cut now, might leave.
static void cut_power(Load *l)
{
    for (unsigned i = 0; i < N_CUTS; i++) {
        g_autofree Load *after = g_memdup2(l, sizeof(*l));
        after->sim = sim_clone_after_power_cut(l->sim, host_random(&l->random, UINT32_MAX));
        sim_set_hook(after->sim, NULL);
        sim_set_space(after->sim, 0);
        assert_true(sim_run(after->sim, look_after_cut, after));
        sim_free(after->sim);
    }
}

// --- requests ------------------------------------------------------------------------------------

static int change(Fiber *self, Load *l, unsigned cell, uint8_t byte, NodeIoFlags flags)
{
    g_autofree uint8_t *buf = NULL;
    if (!byte && host_random(&l->random, 2))
        return node_discard(self, l->node, cell_off(l, cell), l->cluster_bytes, flags);
    if (!byte)
        return node_zero(self, l->node, cell_off(l, cell), l->cluster_bytes,
                         flags | (host_random(&l->random, 2) ? NODE_IO_NO_UNMAP : 0));
    buf = g_malloc(l->cluster_bytes);
    memset(buf, byte, l->cluster_bytes);
    return node_write(self, l->node, cell_off(l, cell), buf, l->cluster_bytes, flags);
}

static void change_cell(Fiber *self, Load *l, unsigned cell)
{
    Cell *c = &l->cells[cell];
    bool is_fua = host_random(&l->random, 5) == 0;
    uint8_t byte = host_random(&l->random, 3) ? 1 + host_random(&l->random, 255) : 0;
    c->is_known = false;
    cell_begin(c, byte);
    int r = change(self, l, cell, byte, is_fua ? NODE_IO_FUA : 0);
    if (r == 0) {
        cell_end(c);
        if (is_fua) {
            cell_is_durable(c, c->done);
            cut_power(l);
        }
        return;
    }
    // It has changed or it has not: from now on it is what a read shows.
    if (node_read(self, l->node, cell_off(l, cell), &byte, 1) == 0) {
        cell_begin(c, byte);
        cell_end(c);
    }
}

// Beside the byte that is looked at, so that the rest of a new cluster has to be copied.
static void change_beside(Fiber *self, Load *l, unsigned cell)
{
    uint8_t buf[SECTOR] = {7};
    if (l->cluster_bytes == SECTOR)
        return;
    uint64_t sector = 1 + host_random(&l->random, l->cluster_bytes / SECTOR - 1);
    node_write(self, l->node, guest_off(cell_off(l, cell).v + sector * SECTOR), buf, SECTOR,
               host_random(&l->random, 5) ? 0 : NODE_IO_FUA);
}

static void flush(Fiber *self, Load *l)
{
    uint64_t done[N_CELLS];
    for (unsigned i = 0; i < N_CELLS; i++)
        done[i] = l->cells[i].done;
    int r = node_flush(self, l->node);
    if (r < 0 && l->is_full_host)
        fail_msg("seed %" PRIu64 ": a flush fails with %d on a full host", l->seed, r);
    if (r < 0)
        return;
    for (unsigned i = 0; i < N_CELLS; i++)
        cell_is_durable(&l->cells[i], done[i]);
    if (host_random(&l->random, 3) == 0)
        cut_power(l);
}

static void look(Fiber *self, Load *l, unsigned cell)
{
    const Cell *c = &l->cells[cell];
    uint8_t byte, last = c->seen->data[c->seen->len - 1];
    if (c->is_known && node_read(self, l->node, cell_off(l, cell), &byte, 1) == 0 && byte != last)
        fail_msg("seed %" PRIu64 ": cell %u shows %u, not %u", l->seed, cell, byte, last);
}

// Sectors that were written a moment ago become bad, or well again; or the free space changes.
static void change_host(Load *l)
{
    HostRandom *random = &l->random;
    if (l->is_full_host) {
        uint64_t room = host_random(random, (uint64_t)N_CELLS * l->cluster_bytes / 8);
        sim_set_space(l->sim, sim_used_bytes(l->sim) + room);
    } else if (l->n_bad && host_random(random, 2)) {
        l->n_bad--;
    } else if (l->n_bad < N_BAD && l->n_recent) {
        uint64_t off = l->recent[host_random(random, MIN(l->n_recent, N_RECENT))];
        l->bad[l->n_bad++] = (Range){off, off + SECTOR};
        l->error = host_random(random, 2) ? -EIO : -ENOSPC;
    }
}

// Every fiber changes cells of its own.
typedef struct Guest {
    Load *load;
    unsigned number;
} Guest;

static void guest_fiber(Fiber *self, void *arg)
{
    const Guest *guest = arg;
    Load *l = guest->load;
    for (unsigned step = 0; step < N_STEPS; step++) {
        unsigned cell = host_random(&l->random, N_CELLS / N_FIBERS) * N_FIBERS + guest->number;
        uint64_t what = host_random(&l->random, 100);
        if (what < 55)
            change_cell(self, l, cell);
        else if (what < 70)
            change_beside(self, l, cell);
        else if (what < 83)
            flush(self, l);
        else if (what < 92)
            change_host(l);
        else
            look(self, l, cell);
    }
    fiber_wait_group_done(&l->fibers);
}

static void load_fiber(Fiber *self, void *arg)
{
    Load *l = arg;
    Guest guests[N_FIBERS];
    open_image(self, l);
    fiber_wait_group_add(&l->fibers, N_FIBERS);
    for (unsigned i = 0; i < N_FIBERS; i++) {
        guests[i] = (Guest){l, i};
        assert_int_equal(fiber_spawn(fiber_loop(self), "guest", guest_fiber, &guests[i], NULL), 0);
    }
    fiber_wait_group_wait(self, &l->fibers);
    cut_power(l);
    l->n_bad = 0;
    int r = node_flush(self, l->node);
    if (r < 0)
        fail_msg("seed %" PRIu64 ": the flush on a host that is well fails with %d", l->seed, r);
    for (unsigned i = 0; i < N_CELLS; i++)
        cell_is_durable(&l->cells[i], l->cells[i].done);
    cut_power(l);
    close_image(self, l);
}

// --- images --------------------------------------------------------------------------------------

static const Recipe recipes[] = {
    {"cluster_size=4k", 4096},
    {"cluster_size=512,refcount_bits=64", 512},
    {"cluster_size=512,refcount_bits=16", 512},
    {"cluster_size=4k,refcount_bits=8", 4096},
    {"cluster_size=16k,extended_l2=on", 16384},
    {"cluster_size=64k", 65536},
};

static void init_cells(Load *l, uint8_t first_half)
{
    for (unsigned i = 0; i < N_CELLS; i++) {
        Cell *c = &l->cells[i];
        c->seen = g_byte_array_new();
        cell_begin(c, i < N_CELLS / 2 ? first_half : 0);
        cell_end(c);
    }
}

// An image with the first half of the cells written, kept by a snapshot as well.
static void make_snapshot(const Load *l, const char *dir)
{
    g_autoptr(GString) command = g_string_new("qemu-io -f qcow2");
    for (unsigned i = 0; i < N_CELLS / 2; i++)
        g_string_append_printf(command, " -c 'write -P 9 %" PRIu64 " %u'", cell_off(l, i).v,
                               l->cluster_bytes);
    host_shell(dir, "%s i.qcow2 && qemu-img snapshot -c one i.qcow2", command->str);
}

static void make_image(Load *l, const Recipe *recipe, bool has_snapshot)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
    host_shell(dir, "qemu-img create -q -f qcow2 -o %s i.qcow2 %" PRIu64, recipe->options,
               N_CELLS * l->stride);
    if (has_snapshot)
        make_snapshot(l, dir);
    assert_int_equal(sim_import_file(l->sim, PATH, path), 0);
    host_remove_dir(g_steal_pointer(&dir));
}

static void run_seed(uint64_t seed, bool has_snapshot, bool is_full_host)
{
    static const unsigned strides[] = {1, 17, 61}; // clusters: few tables, or many
    const Recipe *recipe = &recipes[seed % G_N_ELEMENTS(recipes)];
    g_autofree Load *l = g_new0(Load, 1);
    *l = (Load){
        .hook.fn = hook,
        .sim = sim_new(&(SimConfig){.seed = seed,
                                    .short_transfers = seed % 2,
                                    .inline_completion = seed % 5 == 0,
                                    .no_punch = seed % 11 == 0}),
        .seed = seed,
        .random = {seed},
        .cluster_bytes = recipe->cluster_bytes,
        .is_full_host = is_full_host,
    };
    l->stride =
        (uint64_t)l->cluster_bytes * strides[host_random(&l->random, G_N_ELEMENTS(strides))];
    init_cells(l, has_snapshot ? 9 : 0);
    make_image(l, recipe, has_snapshot);
    sim_set_hook(l->sim, &l->hook);
    if (is_full_host)
        change_host(l);
    assert_true(sim_run(l->sim, load_fiber, l));
    sim_free(l->sim);
    for (unsigned i = 0; i < N_CELLS; i++)
        g_byte_array_unref(l->cells[i].seen);
}

static void run_seeds(bool has_snapshot, bool is_full_host)
{
    uint64_t seed = host_seed(1);
    for (unsigned i = 0; i < N_SEEDS; i++)
        run_seed(seed + i, has_snapshot, is_full_host);
}

static void bad_sectors_lose_nothing_that_is_durable(void **state)
{
    run_seeds(false, false);
}

static void bad_sectors_leave_refcounts_right_beside_a_snapshot(void **state)
{
    run_seeds(true, false);
}

static void a_host_that_is_full_now_and_then_fails_no_flush(void **state)
{
    run_seeds(true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_sectors_lose_nothing_that_is_durable),
        cmocka_unit_test(bad_sectors_leave_refcounts_right_beside_a_snapshot),
        cmocka_unit_test(a_host_that_is_full_now_and_then_fails_no_flush),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
