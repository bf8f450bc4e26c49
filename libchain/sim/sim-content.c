// SPDX-License-Identifier: LGPL-2.1-or-later
// Copy-on-write sparse file content for the simulation: a tree of fixed height whose nodes and
// pages are counted. What lies past the end of the file is always a hole or zeros, so that growing
// needs no work. One thread; no I/O.
#include "sim/sim-content.h"

#include <assert.h>
#include <glib.h>
#include <string.h>

#define ROUND_UP(n, unit) (((n) + (unit)-1) & ~((uint64_t)(unit)-1))

enum { FANOUT_BITS = 6, FANOUT = 1 << FANOUT_BITS, HEIGHT = 6, PAGE_BITS = 12 };

// Pages and inner nodes start with their count, so that both can be children.
typedef struct Page {
    uint32_t n_refs;
    uint8_t bytes[SIM_PAGE_BYTES];
} Page;

struct SimContentNode {
    uint32_t n_refs;
    void *child[FANOUT]; // level 0: Page; above: SimContentNode
};

static void child_unref(void *child, int level)
{
    SimContentNode *node = child;
    if (!child || --node->n_refs > 0)
        return;
    if (level >= 0)
        for (unsigned i = 0; i < FANOUT; i++)
            child_unref(node->child[i], level - 1);
    g_free(child);
}

static SimContentNode *node_own(SimContentNode **slot)
{
    SimContentNode *node = *slot;
    if (node && node->n_refs == 1)
        return node;
    SimContentNode *copy = g_new0(SimContentNode, 1);
    copy->n_refs = 1;
    if (node) {
        memcpy(copy->child, node->child, sizeof(copy->child));
        for (unsigned i = 0; i < FANOUT; i++)
            if (copy->child[i])
                (*(uint32_t *)copy->child[i])++;
        node->n_refs--;
    }
    return *slot = copy;
}

static unsigned slot_of(uint64_t page, int level)
{
    return (page >> (level * FANOUT_BITS)) & (FANOUT - 1);
}

static const Page *page_find(const SimContent *c, uint64_t index)
{
    const SimContentNode *node = c->root;
    for (int level = HEIGHT - 1; node && level > 0; level--)
        node = node->child[slot_of(index, level)];
    return node ? node->child[slot_of(index, 0)] : NULL;
}

static Page *page_own(SimContent *c, uint64_t index)
{
    SimContentNode *node = node_own(&c->root);
    for (int level = HEIGHT - 1; level > 0; level--)
        node = node_own((SimContentNode **)&node->child[slot_of(index, level)]);
    Page **slot = (Page **)&node->child[slot_of(index, 0)];
    if (*slot && (*slot)->n_refs == 1)
        return *slot;
    Page *page = g_new(Page, 1);
    page->n_refs = 1;
    if (*slot) {
        memcpy(page->bytes, (*slot)->bytes, SIM_PAGE_BYTES);
        (*slot)->n_refs--;
    } else {
        memset(page->bytes, 0, SIM_PAGE_BYTES);
        c->n_pages++;
    }
    return *slot = page;
}

SimContent sim_content_copy(const SimContent *c)
{
    if (c->root)
        c->root->n_refs++;
    return *c;
}

void sim_content_clear(SimContent *c)
{
    child_unref(c->root, HEIGHT - 1);
    *c = (SimContent){0};
}

void sim_content_read(const SimContent *c, uint64_t off, void *buf, size_t len)
{
    uint8_t *to = buf;
    while (len > 0) {
        size_t at = off % SIM_PAGE_BYTES, n = MIN(len, SIM_PAGE_BYTES - at);
        const Page *page = off < c->size ? page_find(c, off >> PAGE_BITS) : NULL;
        if (page)
            memcpy(to, page->bytes + at, n);
        else
            memset(to, 0, n);
        to += n, off += n, len -= n;
    }
}

void sim_content_write(SimContent *c, uint64_t off, const void *buf, size_t len)
{
    assert(off <= SIM_CONTENT_MAX_BYTES && len <= SIM_CONTENT_MAX_BYTES - off);
    const uint8_t *from = buf;
    c->size = len > 0 ? MAX(c->size, off + len) : c->size;
    while (len > 0) {
        size_t at = off % SIM_PAGE_BYTES, n = MIN(len, SIM_PAGE_BYTES - at);
        memcpy(page_own(c, off >> PAGE_BITS)->bytes + at, from, n);
        from += n, off += n, len -= n;
    }
}

void sim_content_allocate(SimContent *c, uint64_t off, uint64_t len)
{
    assert(off <= SIM_CONTENT_MAX_BYTES && len <= SIM_CONTENT_MAX_BYTES - off);
    c->size = MAX(c->size, off + len);
    for (uint64_t i = off >> PAGE_BITS; i << PAGE_BITS < off + len; i++)
        if (!page_find(c, i))
            page_own(c, i);
}

uint64_t sim_content_n_holes(const SimContent *c, uint64_t off, uint64_t len)
{
    uint64_t n = 0;
    for (uint64_t i = off >> PAGE_BITS; i << PAGE_BITS < off + len; i++)
        n += !page_find(c, i);
    return n;
}

static void zero_in_page(SimContent *c, uint64_t off, size_t len)
{
    if (len > 0 && page_find(c, off >> PAGE_BITS))
        memset(page_own(c, off >> PAGE_BITS)->bytes + off % SIM_PAGE_BYTES, 0, len);
}

static uint64_t count_pages(const void *child, int level)
{
    const SimContentNode *node = child;
    uint64_t n = child && level < 0;
    for (unsigned i = 0; child && level >= 0 && i < FANOUT; i++)
        n += count_pages(node->child[i], level - 1);
    return n;
}

// Drops the pages [first, end), numbered from the start of `slot`'s subtree. Returns how many.
static uint64_t drop_pages(SimContentNode **slot, int level, uint64_t first, uint64_t end)
{
    uint64_t n = 0;
    if (!*slot || first >= end)
        return 0;
    uint64_t span = UINT64_C(1) << (level * FANOUT_BITS); // pages under one child
    SimContentNode *node = node_own(slot);
    for (uint64_t i = first / span; i < FANOUT && i * span < end; i++) {
        uint64_t from = MAX(first, i * span) - i * span;
        uint64_t to = MIN(end, (i + 1) * span) - i * span;
        if (from > 0 || to < span) {
            n += drop_pages((SimContentNode **)&node->child[i], level - 1, from, to);
        } else {
            n += count_pages(node->child[i], level - 1);
            child_unref(node->child[i], level - 1);
            node->child[i] = NULL;
        }
    }
    return n;
}

void sim_content_punch(SimContent *c, uint64_t off, uint64_t len)
{
    if (off >= c->size)
        return;
    uint64_t end = len < c->size - off ? off + len : ROUND_UP(c->size, SIM_PAGE_BYTES);
    uint64_t first = ROUND_UP(off, SIM_PAGE_BYTES), last = end & ~(uint64_t)(SIM_PAGE_BYTES - 1);
    if (first > last) { // inside one page
        zero_in_page(c, off, end - off);
        return;
    }
    zero_in_page(c, off, first - off);
    zero_in_page(c, last, end - last);
    c->n_pages -= drop_pages(&c->root, HEIGHT - 1, first >> PAGE_BITS, last >> PAGE_BITS);
}

void sim_content_truncate(SimContent *c, uint64_t size)
{
    assert(size <= SIM_CONTENT_MAX_BYTES);
    if (size < c->size)
        sim_content_punch(c, size, c->size - size);
    c->size = size;
}

// The first page ≥ `index` that exists, or UINT64_MAX. Numbers as in drop_pages().
static uint64_t next_page(const SimContentNode *node, int level, uint64_t index)
{
    uint64_t span = UINT64_C(1) << (level * FANOUT_BITS);
    for (uint64_t i = index / span; node && i < FANOUT; i++) {
        uint64_t within = index > i * span ? index - i * span : 0, found = 0;
        if (!node->child[i])
            continue;
        if (level > 0)
            found = next_page(node->child[i], level - 1, within);
        if (found != UINT64_MAX)
            return i * span + found;
    }
    return UINT64_MAX;
}

bool sim_content_find(const SimContent *c, uint64_t off, uint64_t len, uint64_t *ret_len)
{
    uint64_t index = off >> PAGE_BITS, end;
    bool is_data = page_find(c, index);
    len = MIN(len, c->size - off);
    if (is_data) {
        for (end = index + 1; end << PAGE_BITS < off + len && page_find(c, end); end++)
            ;
    } else {
        end = next_page(c->root, HEIGHT - 1, index);
    }
    *ret_len = end < (UINT64_C(1) << 36) ? MIN(len, (end << PAGE_BITS) - off) : len;
    return is_data;
}
