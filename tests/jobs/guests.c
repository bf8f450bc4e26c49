// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guests.h"

enum { MEMORY_BYTES = 1 << 20 };

uint64_t guests_pick(Guests *g, uint64_t bound)
{
    return sim_random(g->sim, bound);
}

void guests_run(Guests *g, const SimConfig *config, FiberFn *fn, void *arg)
{
    g->seed = config->seed;
    g->sim = sim_new(config);
    g->memory = map_memory_new(MEMORY_BYTES);
    assert_true(sim_run(g->sim, fn, arg));
    map_memory_free(g->memory);
    sim_free(g->sim);
}

void guests_cut_power(Guests *g, FiberFn *check, void *arg)
{
    MapMemory *memory = g->memory;
    Sim *sim = sim_clone_after_power_cut(g->sim, g->seed * 1000 + g->n_cuts++);
    g->memory = map_memory_new(MEMORY_BYTES);
    fiber_assert(sim_run(sim, check, arg));
    map_memory_free(g->memory);
    g->memory = memory;
    sim_free(sim);
}

// -- what blocks hold -----------------------------------------------------------------------------

static bool may_be_zero(const Guests *g, unsigned block, uint32_t least, uint32_t most)
{
    for (uint32_t version = least; version <= most; version++)
        if (version == 0 || g->is_zero[block][version])
            return true;
    return false;
}

// What the block may show still, if discards up to `version` were left undone.
static uint32_t before_hints(const Guests *g, unsigned block, uint32_t version)
{
    while (g->hint_over[block][version])
        version = g->hint_over[block][version] - 1;
    return version;
}

void guests_check_block(const Guests *g, const char *where, unsigned block, const uint64_t *words,
                        uint32_t least, uint32_t most)
{
    least = before_hints(g, block, least);
    for (unsigned i = 0; i < GUEST_WORDS; i++) {
        uint32_t version = (uint32_t)(words[i] >> 32), number = (uint32_t)words[i];
        bool is_right = words[i] ? number == block && version >= least && version <= most &&
                                       !g->is_zero[block][version]
                                 : may_be_zero(g, block, least, most);
        if (!is_right)
            g_error("seed %u, %s, %s, block %u word %u: version %u of block %u, not %u to %u",
                    (unsigned)g->seed, g->what, where, block, i, version, number, least, most);
    }
}

void guests_check_node(Fiber *self, const Guests *g, const char *where, Node *node,
                       const Versions *least, const Versions *most)
{
    uint64_t words[GUEST_WORDS];
    for (unsigned i = 0; i < GUEST_BLOCKS && (uint64_t)i * GUEST_BLOCK < node->size_bytes; i++) {
        GuestOff off = guest_off((uint64_t)i * GUEST_BLOCK);
        fiber_assert_equal(node_read(self, node, off, words, GUEST_BLOCK), 0);
        guests_check_block(g, where, i, words, least->of[i], most->of[i]);
    }
}

static bool is_version(const Guests *g, unsigned block, uint64_t word, uint32_t version)
{
    if (word)
        version = before_hints(g, block, version);
    bool is_zero = version == 0 || g->is_zero[block][version];
    return word == (is_zero ? 0 : (uint64_t)version << 32 | block);
}

// Of the blocks of one guest, which makes one change after the other.
static bool is_of_one_moment(const Guests *g, unsigned worker, const uint64_t *found,
                             const Versions *first, unsigned n_before)
{
    Versions now = *first;
    for (unsigned n = 0;; n++) {
        bool is_right = n >= n_before;
        for (unsigned i = worker; is_right && i < GUEST_BLOCKS; i += GUEST_WORKERS)
            is_right = is_version(g, i, found[i], now.of[i]);
        if (is_right || n == g->n_changes)
            return is_right;
        now.of[g->changes[n].block] = g->changes[n].version;
    }
}

void guests_check_moment(Fiber *self, const Guests *g, const char *where, Node *node,
                         unsigned n_before)
{
    static const Versions nothing;
    uint64_t words[GUEST_WORDS], found[GUEST_BLOCKS];
    for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
        GuestOff off = guest_off((uint64_t)i * GUEST_BLOCK);
        fiber_assert_equal(node_read(self, node, off, words, GUEST_BLOCK), 0);
        found[i] = words[0];
        for (unsigned k = 1; k < GUEST_WORDS; k++)
            if (words[k] != found[i])
                g_error("seed %u, %s, %s: half a write of block %u", (unsigned)g->seed, g->what,
                        where, i);
    }
    for (unsigned worker = 0; worker < GUEST_WORKERS; worker++)
        if (!is_of_one_moment(g, worker, found, &nothing, n_before))
            g_error("seed %u, %s, %s: blocks of guest %u are of several moments", (unsigned)g->seed,
                    g->what, where, worker);
}

// -- what guests do -------------------------------------------------------------------------------

uint32_t guests_next_version(Guests *g, unsigned block, RequestKind kind)
{
    uint32_t version = ++g->issued.of[block];
    fiber_assert(version < GUEST_MAX_VERSIONS);
    g->is_zero[block][version] = kind != REQUEST_WRITE;
    g->hint_over[block][version] = kind == REQUEST_DISCARD ? g->acked.of[block] + 1 : 0;
    g->changes[g->n_changes++] = (GuestChange){block, version};
    return version;
}

int guests_change_block(Fiber *self, Guests *g, Node *node, unsigned block, RequestKind kind)
{
    GuestOff off = guest_off((uint64_t)block * GUEST_BLOCK);
    NodeIoFlags flags = g->may_fua && guests_pick(g, 8) == 0 ? NODE_IO_FUA : 0;
    uint32_t version = guests_next_version(g, block, kind);
    int r;
    if (kind == REQUEST_WRITE) {
        uint64_t words[GUEST_WORDS];
        for (unsigned i = 0; i < GUEST_WORDS; i++)
            words[i] = (uint64_t)version << 32 | block;
        r = node_write(self, node, off, words, GUEST_BLOCK, flags);
    } else if (kind == REQUEST_ZERO) {
        r = node_zero(self, node, off, GUEST_BLOCK, flags);
    } else {
        r = node_discard(self, node, off, GUEST_BLOCK, flags);
    }
    if (r == 0)
        g->acked.of[block] = version;
    if (r == 0 && flags & NODE_IO_FUA)
        g->durable.of[block] = version;
    return r;
}

void guests_zero_some(Fiber *self, Guests *g, Node *node)
{
    for (unsigned i = GUEST_BLOCKS / 4; i < GUEST_BLOCKS / 2; i++)
        fiber_assert_equal(guests_change_block(self, g, node, i, REQUEST_ZERO), 0);
}

void guests_flush(Fiber *self, Guests *g)
{
    Node *node = port_enter(self, &g->port, REQUEST_FLUSH);
    Versions covered = g->acked;
    int r = node_flush(self, node);
    port_leave(&g->port, REQUEST_FLUSH);
    fiber_assert_equal(r, 0);
    for (unsigned i = 0; i < GUEST_BLOCKS; i++)
        g->durable.of[i] = MAX(g->durable.of[i], covered.of[i]);
}

static void read_block(Fiber *self, Guests *g, unsigned block)
{
    uint64_t words[GUEST_WORDS];
    Node *node = port_enter(self, &g->port, REQUEST_READ);
    fiber_assert_equal(
        node_read(self, node, guest_off((uint64_t)block * GUEST_BLOCK), words, GUEST_BLOCK), 0);
    port_leave(&g->port, REQUEST_READ);
    guests_check_block(g, "read", block, words, g->acked.of[block], g->issued.of[block]);
}

void guests_read_all(Fiber *self, Guests *g)
{
    for (unsigned i = 0; i < GUEST_BLOCKS; i++)
        read_block(self, g, i);
}

static RequestKind pick_change(Guests *g)
{
    static const RequestKind kinds[] = {REQUEST_ZERO, REQUEST_DISCARD};
    uint64_t what = guests_pick(g, g->only_trims ? G_N_ELEMENTS(kinds) : 6);
    return what < G_N_ELEMENTS(kinds) ? kinds[what] : REQUEST_WRITE;
}

static void worker(Fiber *self, void *arg)
{
    Guests *g = arg;
    unsigned first = g->next_worker++;
    while (!g->stop) {
        unsigned block =
            first + GUEST_WORKERS * (unsigned)guests_pick(g, GUEST_BLOCKS / GUEST_WORKERS);
        uint64_t what = guests_pick(g, 16);
        if (what == 0) {
            guests_flush(self, g);
        } else if (what < 6 && !g->only_trims) {
            read_block(self, g, block);
        } else {
            RequestKind kind = pick_change(g);
            Node *node = port_enter(self, &g->port, kind);
            fiber_assert_equal(guests_change_block(self, g, node, block, kind), 0);
            port_leave(&g->port, kind);
        }
        fiber_sleep(self, guests_pick(g, g->only_trims ? 2000 : 400000));
    }
    fiber_wait_group_done(&g->workers);
}

void guests_start(Fiber *self, Guests *g)
{
    fiber_wait_group_add(&g->workers, GUEST_WORKERS);
    for (int i = 0; i < GUEST_WORKERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", worker, g, NULL), 0);
}

void guests_stop(Fiber *self, Guests *g)
{
    g->stop = true;
    fiber_wait_group_wait(self, &g->workers);
}
