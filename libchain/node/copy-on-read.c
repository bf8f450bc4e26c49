// SPDX-License-Identifier: LGPL-2.1-or-later
// copy-on-read: a filter that copies what a read finds below the filtered node into that node, in
// whole units of its preferred size. What is copied shows the same bytes as before, so a failure to
// copy is no failure of the read.
//
// A guest write must not come between the reading of a unit from below and the writing of it, or
// old data would land on new. So copies and writes are ranges in one list, in order of arrival: a
// copy waits for all before it that overlap it, a write only for copies. Reads wait for nobody:
// they read what is there.
#include <errno.h>

#include "base/error.h"
#include "chain-core/component.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/mutant.h"
#include "chain-core/node-drivers.h"
#include "chain-core/zeros.h"

// One request's claim on a range; on its fiber's stack.
typedef struct Claim Claim;
struct Claim {
    uint64_t start, end;
    bool is_copy;
    Claim *next;
};

typedef struct CopyNode {
    Node node;
    Claim *first, **last_next; // in order of arrival
    FiberQueue ended;          // woken when a claim ends
} CopyNode;

static CopyNode *copy_of(Node *node)
{
    return (CopyNode *)node;
}

// -- claims ---------------------------------------------------------------------------------------

static bool must_wait(const CopyNode *c, const Claim *claim)
{
    for (const Claim *other = c->first; other != claim; other = other->next)
        if ((claim->is_copy || other->is_copy) && claim->start < other->end &&
            other->start < claim->end)
            return true;
    return false;
}

static void claim_begin(Fiber *self, CopyNode *c, Claim *claim)
{
    claim->next = NULL;
    *c->last_next = claim;
    c->last_next = &claim->next;
    while (must_wait(c, claim) && !MUTANT("copies-and-writes-take-turns"))
        fiber_queue_wait(self, &c->ended, false, "copy-on-read: a range in use");
}

static void claim_end(CopyNode *c, Claim *claim)
{
    Claim **at = &c->first;
    while (*at != claim)
        at = &(*at)->next;
    *at = claim->next;
    if (!claim->next)
        c->last_next = at;
    fiber_queue_wake_all(&c->ended);
}

// -- copying --------------------------------------------------------------------------------------

enum { MAX_COPY_BYTES = 1 << 20 }; // at a time: bounds memory

// Reads [off, off+len), of which the filtered node has nothing, and writes it there. Zeros are
// written as such. `len` ≤ MAX_COPY_BYTES.
static int copy_range(Fiber *self, Node *below, uint64_t off, size_t len)
{
    g_autofree uint8_t *buf = g_try_malloc(len);
    if (!buf)
        return -ENOMEM;
    int r = node_read(self, below, guest_off(off), buf, len);
    if (r < 0)
        return r;
    return bytes_are_zero(buf, len) ? node_zero(self, below, guest_off(off), len, 0)
                                    : node_write(self, below, guest_off(off), buf, len, 0);
}

// Copies what `below` has not itself of [off, end), whose borders are those of units.
static int copy_missing(Fiber *self, Node *below, uint64_t off, uint64_t end)
{
    while (off < end) {
        NodeExtent extent;
        int r = node_map(self, below, guest_off(off), end - off, &extent);
        if (r == 0 && extent.kind == NODE_EXTENT_BELOW) {
            extent.len = MIN(extent.len, MAX_COPY_BYTES);
            r = copy_range(self, below, off, extent.len);
        }
        if (r < 0)
            return r;
        off += extent.len;
    }
    return 0;
}

static bool has_missing(Fiber *self, Node *below, uint64_t off, uint64_t end)
{
    while (off < end) {
        NodeExtent extent;
        if (node_map(self, below, guest_off(off), end - off, &extent) < 0)
            return false;
        if (extent.kind == NODE_EXTENT_BELOW)
            return true;
        off += extent.len;
    }
    return false;
}

// Whole units around the read.
static void copy_around(Fiber *self, Node *node, GuestOff off, size_t len)
{
    Node *below = node->backing;
    uint64_t unit = below->preferred_bytes, end = off.v + len;
    Claim claim = {.start = off.v - off.v % unit, .is_copy = true};
    claim.end = MIN((end + unit - 1) / unit * unit, node->size_bytes);
    if (!has_missing(self, below, claim.start, claim.end))
        return;
    claim_begin(self, copy_of(node), &claim);
    copy_missing(self, below, claim.start, claim.end);
    claim_end(copy_of(node), &claim);
}

static int copy_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                           IoBatch *batch)
{
    if (!node->backing->read_only && node->backing->backing && len)
        copy_around(self, node, off, len);
    return node_read_start(self, node->backing, off, buf, len, batch);
}

// -- what guests change ---------------------------------------------------------------------------

static int copy_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    Claim claim = {.start = off.v, .end = off.v + len};
    claim_begin(self, copy_of(node), &claim);
    int r = node_write(self, node->backing, off, buf, len, flags);
    claim_end(copy_of(node), &claim);
    return r;
}

static int copy_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Claim claim = {.start = off.v, .end = off.v + len};
    claim_begin(self, copy_of(node), &claim);
    int r = node_zero(self, node->backing, off, len, flags);
    claim_end(copy_of(node), &claim);
    return r;
}

static int copy_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Claim claim = {.start = off.v, .end = off.v + len};
    claim_begin(self, copy_of(node), &claim);
    int r = node_discard(self, node->backing, off, len, flags);
    claim_end(copy_of(node), &claim);
    return r;
}

static const NodeOps copy_ops = {
    .driver = "copy-on-read",
    .is_filter = true,
    .reads_write = true,
    .read_start = copy_read_start,
    .write = copy_write,
    .zero = copy_zero,
    .discard = copy_discard,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

static int copy_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                     GError **error)
{
    if (child->read_only)
        return error_set(error, -EACCES, "Block node is read-only");
    CopyNode *c = g_new0(CopyNode, 1);
    node_init(&c->node, &copy_ops, child->loop, options->name, child->size_bytes);
    c->node.read_only = !options->is_writable;
    c->node.preferred_bytes = child->preferred_bytes;
    c->last_next = &c->first;
    node_set_backing(self, &c->node, child);
    *ret_node = &c->node;
    return 0;
}

static const DriverOption copy_options[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The node to copy into: its name, or what to make one of."},
    {0},
};

const Driver copy_on_read_driver = {
    .name = "copy-on-read",
    .options = copy_options,
    .reads_write = true,
    .stays_as_made = true,
    .make = copy_make,
};
