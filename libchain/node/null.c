// SPDX-License-Identifier: LGPL-2.1-or-later
// null-co: zeros of any size; writes are forgotten. With a latency each request takes that long.
// QEMU leaves what a read is given as it is, unless told otherwise. Here it always becomes zeros:
// the memory may hold what was another client's.
#include <string.h>

#include "chain-core/component.h"
#include "chain-core/node-drivers.h"

typedef struct NullNode {
    Node node;
    uint64_t latency_ns;
    bool reads_zeroes; // and says so
} NullNode;

static NullNode *null_of(Node *node)
{
    return (NullNode *)node;
}

// A cancelled request goes on at once.
static void wait_latency(Fiber *self, Node *node)
{
    uint64_t ns = null_of(node)->latency_ns;
    if (ns)
        fiber_sleep(self, ns);
}

static int null_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                           IoBatch *batch)
{
    wait_latency(self, node);
    memset(buf, 0, len);
    return 0;
}

static int null_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    wait_latency(self, node);
    return 0;
}

static int null_change(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    wait_latency(self, node);
    return 0;
}

static int null_flush(Fiber *self, Node *node)
{
    wait_latency(self, node);
    return 0;
}

static int null_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    NodeExtentKind kind = null_of(node)->reads_zeroes ? NODE_EXTENT_ZERO : NODE_EXTENT_OPAQUE;
    *ret_extent = (NodeExtent){.len = len, .kind = kind, .node = node};
    return 0;
}

static int null_set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    return 0;
}

static const NodeOps null_ops = {
    .driver = "null-co",
    .read_start = null_read_start,
    .write = null_write,
    .zero = null_change,
    .discard = null_change,
    .flush = null_flush,
    .map = null_map,
    .set_writable = null_set_writable,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

static int null_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                     GError **error)
{
    NullNode *null = g_new0(NullNode, 1);
    uint64_t size = driver_value_int(options->values, "size", UINT64_C(1) << 30);
    node_init(&null->node, &null_ops, fiber_loop(self), options->name, size);
    null->node.read_only = !options->is_writable;
    null->latency_ns = driver_value_int(options->values, "latency-ns", 0);
    null->reads_zeroes = driver_value_bool(options->values, "read-zeroes", false);
    *ret_node = &null->node;
    return 0;
}

static char *null_exact_name(const json_t *values, const char *below)
{
    bool is_plain = !json_object_get(values, "size") && !json_object_get(values, "read-zeroes");
    return is_plain ? g_strdup("null-co://") : NULL;
}

static const DriverOption null_options[] = {
    {.name = "size",
     .type = DRIVER_OPTION_INT,
     .doc = "How long the disk is, in bytes; 1 GiB unless said."},
    {.name = "latency-ns",
     .type = DRIVER_OPTION_INT,
     .doc = "How long each request takes, in nanoseconds; 0 unless said."},
    {.name = "read-zeroes",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Whether block status tells that all is zeros; reads give zeros in any case."},
    {0},
};

const Driver null_co_driver = {
    .name = "null-co",
    .options = null_options,
    .make = null_make,
    .exact_name = null_exact_name,
};
