// SPDX-License-Identifier: LGPL-2.1-or-later
// The merged map against layer-by-layer reading: random layers of all granules and sizes, with
// opaque parts, barriers, filters that come and go, and layers that cannot tell what they have. And
// what it promises besides: one build per region, sharing, a bound on its memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "../node/on-loop.h"
#include "../node/pass-filter.h"
#include "chain-core/sim.h"
#include "chain-core/switch.h"
#include "chain/merged-map.h"
#include "chain/region.h"
#include "fake-layer.h"

enum { MAX_LAYERS = 12, FILE_BYTES = 16 << 20, MAX_SIZE = 5 * (REGION_BYTES / 2) };

static uint64_t seed = 4711;
static char *data_path; // FILE_BYTES in which each word tells its place

static uint64_t random_below(GRand *rand, uint64_t n)
{
    return ((uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand)) % n;
}

static uint64_t *data; // its content

static void make_data_file(void)
{
    int fd = g_file_open_tmp("chaind-test-merged-XXXXXX", &data_path, NULL);
    assert_true(fd >= 0);
    data = g_malloc(FILE_BYTES);
    for (uint64_t i = 0; i < FILE_BYTES / 8; i++)
        data[i] = i * UINT64_C(0x9e3779b97f4a7c15) + 1;
    assert_int_equal(write(fd, data, FILE_BYTES), FILE_BYTES);
    close(fd);
}

// -- random layers --------------------------------------------------------------------------------

static void make_table(FakeTable *t, GRand *rand, unsigned number)
{
    t->granule_bytes = UINT64_C(512) << random_below(rand, 13);
    t->size_bytes = 1 + random_below(rand, MAX_SIZE);
    if (random_below(rand, 4))
        t->size_bytes = MAX_SIZE - random_below(rand, 3) * 4096;
    t->number = number;
    t->tells_may_have = random_below(rand, 2);
    uint64_t n = t->size_bytes / t->granule_bytes + 1;
    t->granules = g_new0(FakeGranule, n);
    unsigned density = 1 + (unsigned)random_below(rand, 12);
    uint64_t host = 0;
    for (uint64_t i = 0; i < n;) {
        static const uint8_t kinds[] = {NODE_EXTENT_DATA, NODE_EXTENT_DATA, NODE_EXTENT_ZERO,
                                        NODE_EXTENT_ZERO_ALLOCATED, NODE_EXTENT_OPAQUE};
        uint8_t kind =
            random_below(rand, density) ? NODE_EXTENT_BELOW : kinds[random_below(rand, 5)];
        for (uint64_t end = i + 1 + random_below(rand, 20); i < n && i < end; i++) {
            if (!random_below(rand, 4) || host + t->granule_bytes > FILE_BYTES)
                host = random_below(rand, FILE_BYTES / t->granule_bytes) * t->granule_bytes;
            t->granules[i] = (FakeGranule){.kind = kind, .host = host};
            host += t->granule_bytes;
        }
    }
}

typedef struct Chain {
    unsigned n_layers;
    FakeTable tables[MAX_LAYERS];
    Node *plain;  // layer over layer
    Node *merged; // with merged maps between them
    Node *merged_layers[MAX_LAYERS];
    GRand *rand;
    MapMemory *memory;
    bool maps_fail; // of some layer: reads must work all the same, status need not
} Chain;

static void make_chain(Fiber *self, Chain *chain, GRand *rand, MapMemory *memory)
{
    *chain = (Chain){.rand = rand, .memory = memory};
    chain->n_layers = 1 + (unsigned)random_below(rand, MAX_LAYERS);
    for (unsigned i = chain->n_layers; i-- > 0;) {
        make_table(&chain->tables[i], rand, i);
        FakeLayer *plain = fake_layer_new(self, &chain->tables[i], data_path);
        FakeLayer *merged = fake_layer_new(self, &chain->tables[i], data_path);
        merged->rand = random_below(rand, 3) ? rand : NULL;
        merged->fail_every = random_below(rand, 12) ? 0 : 5;
        chain->maps_fail |= merged->fail_every > 0;
        merged->node.read_only = random_below(rand, 12) > 0; // a barrier, if not the top
        if (chain->plain) {
            node_set_backing(self, &plain->node, chain->plain);
            chain_set_backing(self, &merged->node, chain->merged, memory);
        }
        node_unref_close(self, chain->plain);
        node_unref_close(self, chain->merged);
        chain->plain = &plain->node;
        chain->merged = chain->merged_layers[i] = &merged->node;
    }
}

static void close_chain(Fiber *self, Chain *chain)
{
    node_unref_close(self, chain->plain);
    node_unref_close(self, chain->merged);
    for (unsigned i = 0; i < chain->n_layers; i++)
        g_free(chain->tables[i].granules);
}

static void compare_reads(Fiber *self, const Chain *chain, GuestOff off, size_t len)
{
    g_autofree uint8_t *a = g_malloc(len), *b = g_malloc(len);
    memset(a, 0xaa, len);
    memset(b, 0xbb, len);
    assert_int_equal(node_read(self, chain->plain, off, a, len), 0);
    assert_int_equal(node_read(self, chain->merged, off, b, len), 0);
    for (size_t i = 0; i < len; i++) {
        if (a[i] != b[i])
            fail_msg("seed %" G_GUINT64_FORMAT ": byte at %" G_GUINT64_FORMAT " differs", seed,
                     off.v + i);
    }
}

// The pieces may be cut differently; what they say of each place may not differ.
static void compare_status(Fiber *self, const Chain *chain, GuestOff off, uint64_t len)
{
    while (len && !chain->maps_fail) {
        NodeExtent a, b;
        assert_int_equal(node_status(self, chain->plain, off, len, &a), 0);
        assert_int_equal(node_status(self, chain->merged, off, len, &b), 0);
        if (b.kind != NODE_EXTENT_OPAQUE || a.kind == NODE_EXTENT_OPAQUE)
            assert_int_equal(a.kind, b.kind);
        if (a.kind != NODE_EXTENT_BELOW)
            assert_int_equal(a.depth, b.depth);
        if (a.kind == NODE_EXTENT_DATA && b.kind == NODE_EXTENT_DATA)
            assert_int_equal(a.host.v, b.host.v);
        uint64_t n = MIN(a.len, b.len);
        off.v += n;
        len -= n;
    }
}

typedef struct Reader {
    const Chain *chain;
    FiberWaitGroup *running;
    guint32 seed;
} Reader;

static void reader(Fiber *self, void *arg)
{
    Reader own = *(Reader *)arg;
    g_free(arg);
    GRand *rand = g_rand_new_with_seed(own.seed);
    uint64_t size = own.chain->plain->size_bytes;
    for (int i = 0; i < 6; i++) {
        uint64_t off = random_below(rand, size);
        compare_reads(self, own.chain, guest_off(off),
                      1 + random_below(rand, MIN(size - off, 200000)));
    }
    g_rand_free(rand);
    fiber_wait_group_done(own.running);
}

static void compare_with_many_readers(Fiber *self, const Chain *chain)
{
    FiberWaitGroup running = {0};
    for (int i = 0; i < 6; i++) {
        Reader *r = g_new(Reader, 1);
        *r = (Reader){.chain = chain, .running = &running, .seed = g_rand_int(chain->rand)};
        fiber_wait_group_add(&running, 1);
        assert_int_equal(fiber_spawn(fiber_loop(self), "reader", reader, r, NULL), 0);
    }
    fiber_wait_group_wait(self, &running);
}

static void change_topology(Fiber *self, Chain *chain)
{
    Node *layer = chain->merged_layers[random_below(chain->rand, chain->n_layers)];
    if (layer == chain->merged)
        return;
    Node *filter = pass_filter_new(layer->loop, "pass", layer->size_bytes);
    node_insert_filter(self, layer, filter);
    compare_with_many_readers(self, chain);
    compare_status(self, chain, guest_off(0), chain->plain->size_bytes);
    node_remove_filter(self, filter);
    node_unref_close(self, filter);
}

static void differential(Fiber *self, void *arg)
{
    const guint32 *from = arg;
    GRand *rand = g_rand_new_with_seed(*from);
    for (int round = 0; round < 20; round++) {
        // Sometimes far too little: every region is dropped again at once.
        MapMemory *memory = map_memory_new(random_below(rand, 2) ? 1 << 20 : 1000);
        Chain chain;
        make_chain(self, &chain, rand, memory);
        compare_with_many_readers(self, &chain);
        compare_status(self, &chain, guest_off(0), chain.plain->size_bytes);
        change_topology(self, &chain);
        compare_with_many_readers(self, &chain);
        close_chain(self, &chain);
        assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
        map_memory_free(memory);
    }
    g_rand_free(rand);
}

static void random_chains_read_as_layer_by_layer(void **state)
{
    for (guint32 i = 0; i < 3; i++) {
        guint32 from = (guint32)seed + i;
        on_loop(differential, &from);
    }
}

// With transfers that complete late, in any order, and fibers that run in any order.
static void random_chains_read_as_layer_by_layer_in_the_simulation(void **state)
{
    for (guint32 i = 0; i < 3; i++) {
        guint32 from = (guint32)seed + 100 + i;
        Sim *sim = sim_new(
            &(SimConfig){.seed = from, .short_transfers = true, .inline_completion = i % 2});
        sim_loop_new(sim);
        assert_int_equal(sim_write_file(sim, data_path, data, FILE_BYTES), 0);
        assert_true(sim_run(sim, differential, &from));
        sim_free(sim);
    }
}

// -- promises -------------------------------------------------------------------------------------

// Full of data at 64 KiB granules, `n` regions long.
static void make_plain_table(FakeTable *t, unsigned n_regions)
{
    *t = (FakeTable){.granule_bytes = 65536, .size_bytes = (uint64_t)n_regions * REGION_BYTES};
    uint64_t n = t->size_bytes / t->granule_bytes;
    t->granules = g_new0(FakeGranule, n);
    for (uint64_t i = 0; i < n; i++)
        t->granules[i] = (FakeGranule){NODE_EXTENT_DATA, i * 131072 % FILE_BYTES};
}

typedef struct OneRead {
    Node *node;
    GuestOff off;
    FiberWaitGroup *running;
} OneRead;

static void read_once(Fiber *self, void *arg)
{
    OneRead *one = arg;
    uint8_t byte;
    assert_int_equal(node_read(self, one->node, one->off, &byte, 1), 0);
    fiber_wait_group_done(one->running);
}

static void missing_together(Fiber *self, void *arg)
{
    FakeTable table;
    make_plain_table(&table, 1);
    GRand *rand = g_rand_new_with_seed((guint32)seed);
    MapMemory *memory = map_memory_new(1 << 20);
    FakeLayer *layer = fake_layer_new(self, &table, data_path);
    layer->rand = rand;
    Node *merged = merged_map_new(self, &layer->node, memory);
    FiberWaitGroup running = {0};
    OneRead reads[10];
    for (unsigned i = 0; i < 10; i++) {
        reads[i] = (OneRead){merged, guest_off(i * 70000), &running};
        fiber_wait_group_add(&running, 1);
        assert_int_equal(fiber_spawn(fiber_loop(self), "read", read_once, &reads[i], NULL), 0);
    }
    fiber_wait_group_wait(self, &running);
    unsigned n_maps = layer->n_maps;
    assert_in_range(n_maps, 1, REGION_BYTES / 65536);
    reads[0].off = guest_off(REGION_BYTES - 1);
    fiber_wait_group_add(&running, 1);
    read_once(self, &reads[0]);
    assert_int_equal(layer->n_maps, n_maps);
    node_unref_close(self, merged);
    node_unref_close(self, &layer->node);
    map_memory_free(memory);
    g_rand_free(rand);
    g_free(table.granules);
}

static unsigned maps_of(FakeLayer *const *layers, unsigned n)
{
    unsigned n_maps = 0;
    for (unsigned i = 0; i < n; i++)
        n_maps += layers[i]->n_maps;
    return n_maps;
}

// Layer upon layer, each the head for a while: a read of each region asks only what came new, and
// what is kept of the maps is that of one.
static void grow(Fiber *self, void *arg)
{
    enum { N = 200, REGIONS = 3 };
    FakeTable tables[2];
    make_plain_table(&tables[0], REGIONS);
    make_plain_table(&tables[1], REGIONS);
    for (uint64_t i = 0; i < tables[1].size_bytes / tables[1].granule_bytes; i++)
        if (i % 50)
            tables[1].granules[i].kind = NODE_EXTENT_BELOW;
    MapMemory *memory = map_memory_new(4 << 20);
    FakeLayer *layers[N];
    uint64_t used = 0;
    for (unsigned i = 0; i < N; i++) {
        layers[i] = fake_layer_new(self, &tables[i > 0], data_path);
        if (i)
            chain_set_backing(self, &layers[i]->node, &layers[i - 1]->node, memory);
        uint8_t byte;
        unsigned n_before = maps_of(layers, i ? i - 1 : 0);
        for (uint64_t region = 0; i && region < REGIONS; region++)
            assert_int_equal(node_read(self, layers[i]->node.backing,
                                       guest_off(region << REGION_BITS), &byte, 1),
                             0);
        assert_int_equal(maps_of(layers, i ? i - 1 : 0), n_before);
        assert_true(i == 0 || layers[i - 1]->n_maps > 0);
        if (i == 10)
            used = map_memory_used(memory, MAP_MEMORY_REGIONS);
    }
    assert_in_range(map_memory_used(memory, MAP_MEMORY_REGIONS), 1, used);
    for (unsigned i = N; i-- > 0;)
        node_unref_close(self, &layers[i]->node);
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    map_memory_free(memory);
    g_free(tables[0].granules);
    g_free(tables[1].granules);
}

static void a_new_head_leaves_what_is_known_of_the_layers_below(void **state)
{
    on_loop(grow, NULL);
}

// -- regions that are read now and then -----------------------------------------------------------

enum { HEADS = 60, RARE_REGIONS = 4 };

typedef struct Heads {
    FakeTable tables[HEADS];
    FakeLayer *layers[HEADS];
    unsigned n;
    unsigned read_at[RARE_REGIONS]; // the head when the region was last read
} Heads;

// Some granules of a layer, at a place of the file that belongs to the layer.
static void make_sparse_table(FakeTable *t, unsigned layer, GRand *rand)
{
    make_plain_table(t, RARE_REGIONS);
    for (uint64_t i = 0; i < t->size_bytes / t->granule_bytes; i++) {
        t->granules[i].host = (uint64_t)g_rand_int_range(rand, 0, FILE_BYTES / 65536) * 65536;
        if (layer && g_rand_int_range(rand, 0, 20))
            t->granules[i].kind = NODE_EXTENT_BELOW;
    }
}

// Each granule begins as that of the topmost layer which has it.
static void check_region(Fiber *self, const Heads *h, unsigned region)
{
    Node *head = &h->layers[h->n - 1]->node;
    for (uint64_t at = 0; at < REGION_BYTES; at += 65536) {
        uint64_t off = ((uint64_t)region << REGION_BITS) + at;
        uint8_t byte, expected;
        assert_int_equal(node_read(self, head->backing, guest_off(off), &byte, 1), 0);
        unsigned layer = h->n - 2;
        while (fake_granule(&h->tables[layer], off)->kind == NODE_EXTENT_BELOW)
            layer--;
        HostOff host = host_off(fake_granule(&h->tables[layer], off)->host);
        assert_int_equal(file_read(self, h->layers[0]->file, host, &expected, 1), 0);
        assert_int_equal(byte, expected);
    }
}

// Asks those that were made since the last look, and no other.
static void read_rarely(Fiber *self, Heads *h, unsigned region)
{
    unsigned *last = &h->read_at[region], n_known = *last ? *last - 1 : 0, n = h->n - 1;
    unsigned of_known = maps_of(h->layers, n_known),
             of_new = maps_of(&h->layers[n_known], n - n_known);
    check_region(self, h, region);
    assert_int_equal(maps_of(h->layers, n_known), of_known);
    assert_true(maps_of(&h->layers[n_known], n - n_known) > of_new);
    *last = h->n;
}

static void grow_and_read_rarely(Fiber *self, void *arg)
{
    Heads h = {0};
    GRand *rand = g_rand_new_with_seed((guint32)seed);
    MapMemory *memory = map_memory_new(4 << 20);
    while (h.n < HEADS) {
        make_sparse_table(&h.tables[h.n], h.n, rand);
        h.layers[h.n] = fake_layer_new(self, &h.tables[h.n], data_path);
        if (h.n)
            chain_set_backing(self, &h.layers[h.n]->node, &h.layers[h.n - 1]->node, memory);
        h.n++;
        for (unsigned region = 0; h.n > 1 && region < RARE_REGIONS; region++)
            if (h.n % (5 * region + 1) == 0)
                read_rarely(self, &h, region);
    }
    while (h.n-- > 0) {
        node_unref_close(self, &h.layers[h.n]->node);
        g_free(h.tables[h.n].granules);
    }
    map_memory_free(memory);
    g_rand_free(rand);
}

static void a_region_not_read_for_some_heads_asks_only_those(void **state)
{
    on_loop(grow_and_read_rarely, NULL);
}

static void requests_that_miss_one_region_build_it_once(void **state)
{
    on_loop(missing_together, NULL);
}

// 100 layers of which only the base has data.
static void deep_chain(Fiber *self, void *arg)
{
    enum { N = 100 };
    FakeTable full, empty;
    make_plain_table(&full, 2);
    empty = full;
    empty.granules = g_new0(FakeGranule, full.size_bytes / full.granule_bytes);
    MapMemory *memory = map_memory_new(1 << 20);
    FakeLayer *layers[N];
    unsigned n_mapping[2] = {0};
    for (unsigned i = 0; i < N; i++) {
        layers[i] = fake_layer_new(self, i ? &empty : &full, data_path);
        layers[i]->n_mapping = n_mapping;
        if (i)
            chain_set_backing(self, &layers[i]->node, &layers[i - 1]->node, memory);
    }
    Node *merged = layers[N - 1]->node.backing;
    uint8_t byte;
    assert_int_equal(node_read(self, merged, guest_off(0), &byte, 1), 0);
    assert_int_equal(n_mapping[1], 16);

    unsigned n_maps[N], n_reads[N];
    for (unsigned i = 0; i < N; i++) {
        n_maps[i] = layers[i]->n_maps;
        n_reads[i] = layers[i]->n_reads;
    }
    for (uint64_t off = 0; off < REGION_BYTES; off += 4096)
        assert_int_equal(node_read(self, merged, guest_off(off), &byte, 1), 0);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(layers[i]->n_maps, n_maps[i]);
        assert_int_equal(layers[i]->n_reads, n_reads[i]);
    }
    for (unsigned i = N; i-- > 0;)
        node_unref_close(self, &layers[i]->node);
    map_memory_free(memory);
    g_free(full.granules);
    g_free(empty.granules);
}

static void layers_are_mapped_16_at_a_time_and_a_hit_asks_none(void **state)
{
    on_loop(deep_chain, NULL);
}

static void read_everywhere(Fiber *self, Node *node)
{
    uint8_t a[64];
    for (uint64_t off = 0; off < node->size_bytes; off += REGION_BYTES / 4)
        assert_int_equal(node_read(self, node, guest_off(off), a, sizeof a), 0);
}

static void shared_between_two(Fiber *self, void *arg)
{
    FakeTable table;
    make_plain_table(&table, 4);
    MapMemory *memory = map_memory_new(1 << 20);
    FakeLayer *layers[3];
    Node *merged[3];
    for (unsigned i = 0; i < 3; i++) {
        layers[i] = fake_layer_new(self, &table, data_path);
        if (i < 2)
            layers[i]->node.identity = (NodeIdentity){.file = {1, 2}};
        merged[i] = merged_map_new(self, &layers[i]->node, memory);
        read_everywhere(self, merged[i]);
    }
    uint64_t all = map_memory_used(memory, MAP_MEMORY_REGIONS);
    assert_in_range(layers[0]->n_maps, 4 * REGION_BYTES / 65536, 5 * REGION_BYTES / 65536);
    assert_int_equal(layers[1]->n_maps, 0);
    assert_int_equal(layers[2]->n_maps, layers[0]->n_maps);
    node_unref_close(self, merged[0]);
    read_everywhere(self, merged[1]); // still there
    assert_int_equal(layers[1]->n_maps, 0);
    assert_true(map_memory_used(memory, MAP_MEMORY_REGIONS) > all / 2);
    node_unref_close(self, merged[1]);
    assert_true(map_memory_used(memory, MAP_MEMORY_REGIONS) <= all / 2);
    node_unref_close(self, merged[2]);
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    for (unsigned i = 0; i < 3; i++)
        node_unref_close(self, &layers[i]->node);
    map_memory_free(memory);
    g_free(table.granules);
}

static void chains_of_the_same_layers_share_regions(void **state)
{
    on_loop(shared_between_two, NULL);
}

static void little_memory(Fiber *self, void *arg)
{
    FakeTable table;
    make_plain_table(&table, 64);
    uint64_t region = sizeof(Region) + REGION_BYTES / 65536 * sizeof(Run);
    MapMemory *memory = map_memory_new(2 * 16 * region);
    FakeLayer *layer = fake_layer_new(self, &table, data_path);
    Node *merged = merged_map_new(self, &layer->node, memory);
    uint64_t most = 0;
    for (int round = 0; round < 3; round++) {
        for (uint64_t off = 0; off < table.size_bytes; off += REGION_BYTES) {
            uint8_t byte;
            assert_int_equal(node_read(self, merged, guest_off(off), &byte, 1), 0);
            most = MAX(most, map_memory_used(memory, MAP_MEMORY_REGIONS));
        }
    }
    assert_true(most <= 20 * region);
    assert_true(most >= 10 * region);

    // A region that is read again and again stays.
    uint8_t byte;
    assert_int_equal(node_read(self, merged, guest_off(0), &byte, 1), 0);
    unsigned n_other = 0, n_before = layer->n_maps;
    for (uint64_t off = REGION_BYTES; off < table.size_bytes; off += REGION_BYTES) {
        assert_int_equal(node_read(self, merged, guest_off(off), &byte, 1), 0);
        assert_int_equal(node_read(self, merged, guest_off(0), &byte, 1), 0);
        n_other++;
    }
    assert_in_range(layer->n_maps - n_before, n_other * 64, (n_other + 4) * REGION_BYTES / 65536);
    node_unref_close(self, merged);
    node_unref_close(self, &layer->node);
    map_memory_free(memory);
    g_free(table.granules);
}

static void memory_stays_within_its_share_and_keeps_what_is_used(void **state)
{
    on_loop(little_memory, NULL);
}

// Many requests miss regions of a layer that is in pieces of 512 bytes: each region in the making
// takes as much as three that are made.
static void many_builds(Fiber *self, void *arg)
{
    enum { N = 16 };
    uint64_t n_granules = N * (uint64_t)REGION_BYTES / 512;
    FakeTable table = {.granule_bytes = 512, .size_bytes = N * (uint64_t)REGION_BYTES};
    table.granules = g_new0(FakeGranule, n_granules);
    for (uint64_t i = 0; i < n_granules; i++)
        table.granules[i] =
            (FakeGranule){i % 2 ? NODE_EXTENT_DATA : NODE_EXTENT_ZERO, i % 1000 * 512};
    MapMemory *memory = map_memory_new(8 << 20);
    FakeLayer *layer = fake_layer_new(self, &table, data_path);
    unsigned n_mapping[2] = {0};
    layer->n_mapping = n_mapping;
    layer->node.preferred_bytes = 512;
    Node *merged = merged_map_new(self, &layer->node, memory);
    FiberWaitGroup running = {0};
    OneRead reads[N];
    for (unsigned i = 0; i < N; i++) {
        reads[i] = (OneRead){merged, guest_off(i * (uint64_t)REGION_BYTES), &running};
        fiber_wait_group_add(&running, 1);
        assert_int_equal(fiber_spawn(fiber_loop(self), "read", read_once, &reads[i], NULL), 0);
    }
    uint64_t held = map_memory_used(memory, MAP_MEMORY_REGIONS);
    assert_in_range(held, 700 << 10, 2 << 20); // of regions of which none is made yet
    fiber_wait_group_wait(self, &running);
    assert_in_range(n_mapping[1], 1, 3);
    node_unref_close(self, merged);
    node_unref_close(self, &layer->node);
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    map_memory_free(memory);
    g_free(table.granules);
}

static void regions_in_the_making_stay_in_their_part_of_the_memory(void **state)
{
    on_loop(many_builds, NULL);
}

static void idle_gives_back(Fiber *self, void *arg)
{
    FakeTable table;
    make_plain_table(&table, 32);
    uint64_t region = sizeof(Region) + REGION_BYTES / 65536 * sizeof(Run);
    MapMemory *memory = map_memory_new(2 * 24 * region);
    FakeLayer *layers[2];
    Node *merged[2];
    for (unsigned i = 0; i < 2; i++) {
        layers[i] = fake_layer_new(self, &table, data_path);
        merged[i] = merged_map_new(self, &layers[i]->node, memory);
    }
    read_everywhere(self, merged[0]); // takes all there is, then is idle
    for (int round = 0; round < 20; round++) {
        for (uint64_t off = 0; off < 16 * (uint64_t)REGION_BYTES; off += REGION_BYTES) {
            uint8_t byte;
            assert_int_equal(node_read(self, merged[1], guest_off(off), &byte, 1), 0);
            fiber_yield(self);
        }
    }
    // The second chain's 16 regions fit: it no longer builds any.
    unsigned before = layers[1]->n_maps;
    for (uint64_t off = 0; off < 16 * (uint64_t)REGION_BYTES; off += REGION_BYTES) {
        uint8_t byte;
        assert_int_equal(node_read(self, merged[1], guest_off(off), &byte, 1), 0);
    }
    assert_int_equal(layers[1]->n_maps, before);
    for (unsigned i = 0; i < 2; i++) {
        node_unref_close(self, merged[i]);
        node_unref_close(self, &layers[i]->node);
    }
    map_memory_free(memory);
    g_free(table.granules);
}

static void memory_of_an_idle_chain_is_given_back(void **state)
{
    on_loop(idle_gives_back, NULL);
}

// -- several loops
// ----------------------------------------------------------------------------------

typedef struct LoopTest {
    MapMemory *memory;
    const FakeTable *table;
    guint32 seed;
    unsigned n_maps;
} LoopTest;

static void read_on_one_of_several_loops(Fiber *self, void *arg)
{
    LoopTest *t = arg;
    FakeLayer *layer = fake_layer_new(self, t->table, data_path);
    layer->node.identity = (NodeIdentity){.file = {5, 6}};
    Node *merged = merged_map_new(self, &layer->node, t->memory);
    GRand *rand = g_rand_new_with_seed(t->seed);
    for (int i = 0; i < 20000; i++) {
        uint64_t off = random_below(rand, t->table->size_bytes / 8) * 8, word;
        assert_int_equal(node_read(self, merged, guest_off(off), &word, 8), 0);
        uint64_t host = fake_granule(t->table, off)->host + off % t->table->granule_bytes;
        assert_int_equal(word, host / 8 * UINT64_C(0x9e3779b97f4a7c15) + 1);
        if (i % 16 == 0)
            fiber_yield(self);
    }
    t->n_maps = layer->n_maps;
    g_rand_free(rand);
    node_unref_close(self, merged);
    node_unref_close(self, &layer->node);
}

static void *loop_thread(void *arg)
{
    on_loop(read_on_one_of_several_loops, arg);
    return NULL;
}

// The memory holds half of the regions, so that loops add, find, ask back and drop all the time.
static void loops_share_regions_and_ask_each_other_for_memory(void **state)
{
    FakeTable table;
    make_plain_table(&table, 24);
    uint64_t region = sizeof(Region) + REGION_BYTES / 65536 * sizeof(Run);
    MapMemory *memory = map_memory_new(2 * 12 * region);
    LoopTest tests[3];
    GThread *threads[3];
    for (unsigned i = 0; i < 3; i++) {
        tests[i] = (LoopTest){memory, &table, (guint32)seed + i, 0};
        threads[i] = g_thread_new("loop", loop_thread, &tests[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        g_thread_join(threads[i]);
    assert_int_equal(map_memory_used(memory, MAP_MEMORY_REGIONS), 0);
    map_memory_free(memory);
    g_free(table.granules);
}

int main(void)
{
    if (getenv("CHAIND_TEST_SEED"))
        seed = strtoull(getenv("CHAIND_TEST_SEED"), NULL, 0);
    print_message("# seed %" G_GUINT64_FORMAT " (CHAIND_TEST_SEED)\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_chains_read_as_layer_by_layer),
        cmocka_unit_test(random_chains_read_as_layer_by_layer_in_the_simulation),
        cmocka_unit_test(requests_that_miss_one_region_build_it_once),
        cmocka_unit_test(a_new_head_leaves_what_is_known_of_the_layers_below),
        cmocka_unit_test(a_region_not_read_for_some_heads_asks_only_those),
        cmocka_unit_test(layers_are_mapped_16_at_a_time_and_a_hit_asks_none),
        cmocka_unit_test(chains_of_the_same_layers_share_regions),
        cmocka_unit_test(memory_stays_within_its_share_and_keeps_what_is_used),
        cmocka_unit_test(regions_in_the_making_stay_in_their_part_of_the_memory),
        cmocka_unit_test(memory_of_an_idle_chain_is_given_back),
        cmocka_unit_test(loops_share_regions_and_ask_each_other_for_memory),
    };
    make_data_file();
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(data_path);
    g_free(data_path);
    g_free(data);
    return r;
}
