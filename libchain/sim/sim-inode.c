// SPDX-License-Identifier: LGPL-2.1-or-later
// Volatile and durable content of a simulated file, the log of changes between them, and what a
// power cut makes of the log. No loop, no time; one thread.
#include "sim/sim-inode.h"

#include <assert.h>
#include <string.h>

static void change_free(void *data)
{
    SimChange *change = data;
    g_free(change->data);
    g_free(change);
}

SimInode *sim_inode_new(uint64_t ino)
{
    SimInode *inode = g_new0(SimInode, 1);
    inode->n_refs = 1;
    inode->ino = ino;
    inode->direct_alignment = SIM_SECTOR_BYTES;
    inode->in_flight = g_ptr_array_new_with_free_func(change_free);
    inode->unflushed = g_ptr_array_new_with_free_func(change_free);
    inode->holders = g_ptr_array_new();
    return inode;
}

SimInode *sim_inode_ref(SimInode *inode)
{
    inode->n_refs++;
    return inode;
}

void sim_inode_unref(SimInode *inode)
{
    if (!inode || --inode->n_refs > 0)
        return;
    g_ptr_array_unref(inode->in_flight);
    g_ptr_array_unref(inode->unflushed);
    g_ptr_array_unref(inode->holders);
    sim_content_clear(&inode->now);
    sim_content_clear(&inode->durable);
    g_free(inode);
}

static void copy_iov(const SimChange *change, uint8_t *to)
{
    uint64_t left = change->len;
    for (unsigned i = 0; i < change->n_iov && left > 0; i++) {
        size_t n = MIN(left, change->iov[i].iov_len);
        memcpy(to, change->iov[i].iov_base, n);
        to += n, left -= n;
    }
    assert(left == 0);
}

static void capture_data(SimChange *change)
{
    if (change->kind != SIM_CHANGE_WRITE || change->data)
        return;
    change->data = g_malloc(change->len);
    copy_iov(change, change->data);
}

// Four lanes, which a processor works on at the same time.
uint64_t sim_hash_bytes(uint64_t hash, const void *bytes, size_t len)
{
    enum { LANES = 4 };
    const uint64_t factor = UINT64_C(0x9fb21c651e98df25);
    uint64_t lanes[LANES] = {hash, 1, 2, 3}, words[LANES];
    const uint8_t *at = bytes;
    for (; len >= sizeof(words); at += sizeof(words), len -= sizeof(words)) {
        memcpy(words, at, sizeof(words));
        for (unsigned i = 0; i < LANES; i++) {
            lanes[i] = (lanes[i] ^ words[i]) * factor;
            lanes[i] ^= lanes[i] >> 32;
        }
    }
    for (; len; at++, len--)
        lanes[0] = (lanes[0] ^ *at) * factor;
    return sim_mix(sim_mix(lanes[0], lanes[1]), sim_mix(lanes[2], lanes[3]));
}

static uint64_t hash_change(const SimChange *change)
{
    uint64_t hash = sim_mix(sim_mix(change->kind, change->off), change->len), left = change->len;
    for (unsigned i = 0; i < change->n_iov && left > 0; i++) {
        size_t n = MIN(left, change->iov[i].iov_len);
        hash = sim_hash_bytes(hash, change->iov[i].iov_base, n);
        left -= n;
    }
    return hash;
}

static bool overlaps(const SimChange *a, const SimChange *b)
{
    return a->kind == SIM_CHANGE_TRUNCATE || b->kind == SIM_CHANGE_TRUNCATE ||
           (a->off < b->off + b->len && b->off < a->off + a->len);
}

// Of those that completed up to number `seq`.
static uint64_t hash_unflushed(const SimInode *inode, uint64_t seq)
{
    uint64_t sum = 0;
    for (guint i = 0; i < inode->unflushed->len; i++) {
        const SimChange *change = inode->unflushed->pdata[i];
        sum += change->seq <= seq ? change->hash : 0;
    }
    return sum;
}

uint64_t sim_inode_hash(const SimInode *inode)
{
    uint64_t sum = hash_unflushed(inode, UINT64_MAX);
    for (guint i = 0; i < inode->in_flight->len; i++)
        sum += sim_mix(((const SimChange *)inode->in_flight->pdata[i])->hash, 1);
    return sim_mix(inode->durable_hash, sum);
}

SimChange *sim_inode_begin(SimInode *inode, SimChangeKind kind, uint64_t off, uint64_t len,
                           const struct iovec *iov, unsigned n_iov, bool capture)
{
    assert(n_iov <= SIM_CHANGE_MAX_IOV);
    SimChange *change = g_new(SimChange, 1);
    *change = (SimChange){.kind = kind, .off = off, .len = len, .n_iov = n_iov};
    if (n_iov > 0)
        memcpy(change->iov, iov, n_iov * sizeof(*iov));
    change->hash = hash_change(change);
    if (capture)
        capture_data(change);
    g_ptr_array_add(inode->in_flight, change);
    return change;
}

// The part [from, to) of `change`, counted from its start, happens to `content`.
static void apply_part(const SimChange *change, uint64_t from, uint64_t to, SimContent *content)
{
    uint64_t off = change->off + from;
    if (change->kind == SIM_CHANGE_TRUNCATE)
        sim_content_truncate(content, change->off);
    else if (change->kind == SIM_CHANGE_PUNCH)
        sim_content_punch(content, off, to - from);
    else if (change->kind == SIM_CHANGE_ALLOCATE)
        sim_content_allocate(content, off, to - from);
    else if (change->data)
        sim_content_write(content, off, change->data + from, to - from);
    else
        for (unsigned i = 0; i < change->n_iov && to > 0; i++) {
            size_t len = change->iov[i].iov_len, end = MIN(to, len);
            if (from < end)
                sim_content_write(content, off, (uint8_t *)change->iov[i].iov_base + from,
                                  end - from);
            off += from < end ? end - from : 0;
            from = from > len ? from - len : 0;
            to = to > len ? to - len : 0;
        }
}

static void apply(const SimChange *change, SimContent *content)
{
    apply_part(change, 0, change->len, content);
}

void sim_inode_end(SimInode *inode, SimChange *change, uint64_t len)
{
    assert(len <= change->len);
    change->len = len;
    capture_data(change);
    change->n_iov = 0;
    change->seq = ++inode->last_seq;
    uint64_t before = 0;
    for (guint i = 0; i < inode->unflushed->len; i++) {
        const SimChange *other = inode->unflushed->pdata[i];
        before += overlaps(other, change) ? other->hash : 0;
    }
    change->hash = sim_mix(sim_mix(change->hash, len), before);
    apply(change, &inode->now);
    guint i;
    bool is_found = g_ptr_array_find(inode->in_flight, change, &i);
    assert(is_found);
    g_ptr_array_add(inode->unflushed, g_ptr_array_steal_index_fast(inode->in_flight, i));
}

void sim_inode_change(SimInode *inode, SimChangeKind kind, uint64_t off, uint64_t len,
                      const void *data)
{
    struct iovec iov = {(void *)data, len};
    unsigned n_iov = kind == SIM_CHANGE_WRITE ? 1 : 0;
    sim_inode_end(inode, sim_inode_begin(inode, kind, off, len, &iov, n_iov, true), len);
}

// Chooses which sectors of a torn change land: runs of whole 512-byte blocks of the file. Sets the
// next run that lands at or after *pos, or returns false.
static bool tear_next(const SimChange *change, SimRandom *random, uint64_t *pos, uint64_t *ret_from,
                      uint64_t *ret_to)
{
    uint64_t max_run = MAX(change->len / SIM_SECTOR_BYTES / 16, 1);
    while (*pos < change->len) {
        uint64_t n = 1 + sim_random_below(random, max_run);
        uint64_t end = ((change->off + *pos) / SIM_SECTOR_BYTES + n) * SIM_SECTOR_BYTES;
        *ret_from = *pos;
        *ret_to = *pos = MIN(end - change->off, change->len);
        if (sim_random_chance(random, 50))
            return true;
    }
    return false;
}

void sim_inode_fail(SimInode *inode, SimChange *change, SimRandom *random)
{
    uint64_t pos = 0, from, to;
    if (random && change->kind != SIM_CHANGE_TRUNCATE && sim_random_chance(random, 50)) {
        capture_data(change);
        while (tear_next(change, random, &pos, &from, &to))
            sim_inode_change(inode, change->kind, change->off + from, to - from,
                             change->data ? change->data + from : NULL);
    }
    g_ptr_array_remove_fast(inode->in_flight, change);
}

SimFlush sim_inode_flush_begin(SimInode *inode)
{
    return (SimFlush){sim_content_copy(&inode->now), inode->last_seq,
                      hash_unflushed(inode, inode->last_seq)};
}

void sim_inode_flush_end(SimInode *inode, SimFlush *flush)
{
    if (flush->seq <= inode->durable_seq) { // overtaken by a later flush
        sim_content_clear(&flush->content);
        return;
    }
    inode->durable_seq = flush->seq;
    uint64_t covered = 0;
    GPtrArray *rest = g_ptr_array_new_with_free_func(change_free);
    for (guint i = 0; i < inode->unflushed->len; i++) {
        SimChange *change = inode->unflushed->pdata[i];
        bool is_covered = change->seq <= flush->seq && !change->is_doomed;
        if (is_covered && inode->has_doomed)
            apply(change, &inode->durable);
        covered += is_covered ? change->hash : 0;
        if (is_covered)
            change_free(change);
        else
            g_ptr_array_add(rest, change);
    }
    g_ptr_array_set_free_func(inode->unflushed, NULL);
    g_ptr_array_unref(inode->unflushed);
    inode->unflushed = rest;
    if (covered)
        inode->durable_hash = sim_mix(inode->durable_hash, covered);
    if (inode->has_doomed) {
        sim_content_clear(&flush->content);
    } else {
        sim_content_clear(&inode->durable);
        inode->durable = flush->content;
    }
}

void sim_inode_flush_fail(SimInode *inode, SimFlush *flush)
{
    for (guint i = 0; i < inode->unflushed->len; i++) {
        SimChange *change = inode->unflushed->pdata[i];
        if (change->seq > flush->seq || change->is_doomed)
            continue;
        inode->has_doomed = change->is_doomed = true;
        change->hash = sim_mix(change->hash, 2);
    }
    sim_content_clear(&flush->content);
}

SimPowerCut sim_power_cut_make(uint64_t seed)
{
    static const unsigned keep_percents[] = {5, 25, 50, 75, 95};
    SimPowerCut cut = {.random = sim_random_make(seed, 0x637574)};
    switch (seed % 8) {
    case 0:
        cut.mode = SIM_CUT_NONE;
        break;
    case 1:
        cut.mode = SIM_CUT_ALL;
        break;
    case 2:
        cut.mode = SIM_CUT_PREFIX;
        break;
    default:
        cut.mode = SIM_CUT_SUBSET;
    }
    cut.keep_percent = keep_percents[sim_random_below(&cut.random, G_N_ELEMENTS(keep_percents))];
    cut.tear_percent = sim_random_below(&cut.random, 40);
    return cut;
}

// Some sectors of `change` land; the file may have grown for all of it (size and data are not
// written together).
static void apply_torn(const SimChange *change, SimPowerCut *cut, SimContent *content)
{
    uint64_t pos = 0, from, to;
    while (tear_next(change, &cut->random, &pos, &from, &to))
        apply_part(change, from, to, content);
    if (change->kind == SIM_CHANGE_WRITE && sim_random_chance(&cut->random, 50))
        content->size = MAX(content->size, change->off + change->len);
}

static void apply_subset(SimChange **changes, size_t n, SimPowerCut *cut, SimContent *content)
{
    bool is_shuffled = sim_random_chance(&cut->random, 50);
    for (size_t i = 0; i < n; i++) {
        size_t j = is_shuffled ? i + sim_random_below(&cut->random, n - i) : i;
        SimChange *change = changes[j];
        changes[j] = changes[i];
        if (change->kind != SIM_CHANGE_TRUNCATE &&
            sim_random_chance(&cut->random, cut->tear_percent))
            apply_torn(change, cut, content);
        else if (sim_random_chance(&cut->random, cut->keep_percent))
            apply(change, content);
    }
}

SimContent sim_inode_after_power_cut(const SimInode *inode, SimPowerCut *cut)
{
    size_t n_done = inode->unflushed->len, n = n_done + inode->in_flight->len;
    if (cut->mode == SIM_CUT_NONE || n == 0)
        return sim_content_copy(&inode->durable);
    g_autofree SimChange **changes = g_new(SimChange *, n);
    for (size_t i = 0; i < n; i++)
        changes[i] = i < n_done ? inode->unflushed->pdata[i] : inode->in_flight->pdata[i - n_done];
    if (cut->mode == SIM_CUT_ALL) {
        SimContent content = sim_content_copy(&inode->now);
        for (size_t i = n_done; i < n; i++)
            apply(changes[i], &content);
        return content;
    }
    SimContent content = sim_content_copy(&inode->durable);
    if (cut->mode == SIM_CUT_PREFIX) {
        n = sim_random_below(&cut->random, n + 1);
        for (size_t i = 0; i < n; i++)
            apply(changes[i], &content);
    } else {
        apply_subset(changes, n, cut, &content);
    }
    return content;
}
