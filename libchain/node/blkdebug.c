// SPDX-License-Identifier: LGPL-2.1-or-later
// blkdebug: a filter in which requests fail on demand, for tests. A rule waits for an event: the
// image that lies in the node says what it does next (debug-event.h), and the node itself that
// something is written. It then arms its error, which the next request meets that the error is for
// (of its kind, and over its sector), until an event comes that arms others. On the node's loop, in
// fibers.
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/component.h"
#include "chain-core/node-drivers.h"

// What QEMU calls iotype.
typedef enum IoType { IO_READ, IO_WRITE, IO_ZERO, IO_DISCARD, IO_FLUSH, IO_STATUS, IO_N } IoType;

static const char *const io_names[] = {[IO_READ] = "read",
                                       [IO_WRITE] = "write",
                                       [IO_ZERO] = "write-zeroes",
                                       [IO_DISCARD] = "discard",
                                       [IO_FLUSH] = "flush",
                                       [IO_STATUS] = "block-status",
                                       NULL};

enum { ANY_SECTOR = -1, SECTOR_BYTES = 512 };

typedef struct Rule {
    DebugEvent event;
    uint64_t state; // only then; 0: always
    // inject-error
    int error; // positive
    int64_t sector;
    unsigned types; // bits of IoType
    bool is_once, is_spent;
    // set-state
    uint64_t new_state; // 0: it injects
} Rule;

typedef struct DebugNode {
    Node node;
    GArray *rules;    // Rule
    GPtrArray *armed; // Rule, by the last event that armed some
    uint64_t state;
} DebugNode;

static DebugNode *debug_of(Node *node)
{
    return (DebugNode *)node;
}

// --- events and errors ---------------------------------------------------------------------------

static void debug_event(Node *node, DebugEvent event)
{
    DebugNode *d = debug_of(node);
    uint64_t state = d->state;
    bool has_armed = false;
    for (guint i = 0; i < d->rules->len; i++) {
        Rule *rule = &g_array_index(d->rules, Rule, i);
        if (rule->event != event || rule->is_spent || (rule->state && rule->state != state))
            continue;
        if (rule->new_state) {
            d->state = rule->new_state;
            continue;
        }
        if (!has_armed)
            g_ptr_array_set_size(d->armed, 0);
        has_armed = true;
        g_ptr_array_add(d->armed, rule);
    }
}

// The error that a request of [off, off+len) meets.
static int meet(DebugNode *d, IoType type, uint64_t off, uint64_t len)
{
    for (guint i = 0; i < d->armed->len; i++) {
        Rule *rule = d->armed->pdata[i];
        uint64_t at = (uint64_t)rule->sector * SECTOR_BYTES;
        bool is_there = rule->sector == ANY_SECTOR || (at >= off && at - off < len);
        if (!(rule->types >> type & 1) || !is_there)
            continue;
        int error = -rule->error;
        if (rule->is_once) {
            rule->is_spent = true;
            g_ptr_array_remove_index(d->armed, i);
        }
        return error;
    }
    return 0;
}

// --- node operations -----------------------------------------------------------------------------

static int debug_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                            IoBatch *batch)
{
    int r = meet(debug_of(node), IO_READ, off.v, len);
    return r < 0 ? r : node_read_start(self, node->backing, off, buf, len, batch);
}

static int debug_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                       NodeIoFlags flags)
{
    debug_event(node, DEBUG_PWRITEV);
    int r = meet(debug_of(node), IO_WRITE, off.v, len);
    if (r == 0)
        r = node_write(self, node->backing, off, buf, len, flags);
    debug_event(node, DEBUG_PWRITEV_DONE);
    return r;
}

static int debug_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    debug_event(node, DEBUG_PWRITEV_ZERO);
    int r = meet(debug_of(node), IO_ZERO, off.v, len);
    if (r == 0)
        r = node_zero(self, node->backing, off, len, flags);
    debug_event(node, DEBUG_PWRITEV_DONE);
    return r;
}

static int debug_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    int r = meet(debug_of(node), IO_DISCARD, off.v, len);
    return r < 0 ? r : node_discard(self, node->backing, off, len, flags);
}

static int debug_flush(Fiber *self, Node *node)
{
    int r = meet(debug_of(node), IO_FLUSH, 0, 0);
    return r < 0 ? r : node_flush(self, node->backing);
}

static int debug_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    int r = meet(debug_of(node), IO_STATUS, off.v, len);
    *ret_extent = (NodeExtent){.len = len, .kind = NODE_EXTENT_BELOW};
    return r;
}

static void debug_close(Fiber *self, Node *node)
{
    g_array_unref(debug_of(node)->rules);
    g_ptr_array_unref(debug_of(node)->armed);
}

static const NodeOps debug_ops = {
    .driver = "blkdebug",
    .is_filter = true,
    .read_start = debug_read_start,
    .write = debug_write,
    .zero = debug_zero,
    .discard = debug_discard,
    .flush = debug_flush,
    .map = debug_map,
    .debug_event = debug_event,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
    .close = debug_close,
};

// --- the driver ----------------------------------------------------------------------------------

static unsigned types_of(const char *name)
{
    for (unsigned i = 0; name && i < IO_N; i++)
        if (g_str_equal(io_names[i], name))
            return 1u << i;
    // What QEMU means without one.
    return 1u << IO_READ | 1u << IO_WRITE | 1u << IO_ZERO | 1u << IO_DISCARD | 1u << IO_FLUSH;
}

static DebugEvent event_of(const char *name)
{
    unsigned event = 0;
    while (!g_str_equal(debug_event_names[event], name))
        event++;
    return event;
}

static void add_rules(DebugNode *d, const json_t *values, const char *list, bool sets_state)
{
    size_t i;
    json_t *given;
    json_array_foreach(json_object_get(values, list), i, given)
    {
        json_t *sector = json_object_get(given, "sector");
        Rule rule = {
            .event = event_of(driver_value_str(given, "event", NULL)),
            .state = driver_value_int(given, "state", 0),
            .error = (int)driver_value_int(given, "errno", EIO),
            .sector = sector ? json_integer_value(sector) : ANY_SECTOR,
            .types = types_of(driver_value_str(given, "iotype", NULL)),
            .is_once = driver_value_bool(given, "once", false),
            .new_state = sets_state ? driver_value_int(given, "new_state", 1) : 0,
        };
        g_array_append_val(d->rules, rule);
    }
}

static int debug_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                      GError **error)
{
    DebugNode *d = g_new0(DebugNode, 1);
    node_init(&d->node, &debug_ops, child->loop, options->name, child->size_bytes);
    d->node.read_only = !options->is_writable || child->read_only;
    d->node.preferred_bytes = child->preferred_bytes;
    d->rules = g_array_new(FALSE, FALSE, sizeof(Rule));
    d->armed = g_ptr_array_new();
    d->state = 1;
    add_rules(d, options->values, "inject-error", false);
    add_rules(d, options->values, "set-state", true);
    node_set_backing(self, &d->node, child);
    debug_event(&d->node, DEBUG_NONE);
    *ret_node = &d->node;
    return 0;
}

static char *debug_exact_name(const json_t *values, const char *below)
{
    bool is_plain =
        !json_object_get(values, "inject-error") && !json_object_get(values, "set-state");
    return is_plain && below ? g_strconcat("blkdebug::", below, NULL) : NULL;
}

static const DriverOption inject_members[] = {
    {.name = "event",
     .type = DRIVER_OPTION_ENUM,
     .values = debug_event_names,
     .is_required = true,
     .doc = "What arms it: what an image in the node is about to do (l2_update), what comes to the "
            "node (pwritev, pwritev_zero, pwritev_done), or that the node was made (none). Some "
            "never come."},
    {.name = "state", .type = DRIVER_OPTION_INT, .doc = "Only in this state."},
    {.name = "iotype",
     .type = DRIVER_OPTION_ENUM,
     .values = io_names,
     .doc = "Which requests fail; all but block status unless said."},
    {.name = "errno", .type = DRIVER_OPTION_INT, .doc = "The error; 5 (EIO) unless said."},
    {.name = "sector", .type = DRIVER_OPTION_INT, .doc = "Only requests over this sector fail."},
    {.name = "once", .type = DRIVER_OPTION_BOOL, .doc = "Whether it is for one request only."},
    {.name = "immediately", .type = DRIVER_OPTION_BOOL, .doc = "Accepted: errors always are."},
    {0},
};
static const DriverOption state_members[] = {
    {.name = "event",
     .type = DRIVER_OPTION_ENUM,
     .values = debug_event_names,
     .is_required = true,
     .doc = "What causes it, as above."},
    {.name = "state", .type = DRIVER_OPTION_INT, .doc = "Only in this state; the first is 1."},
    {.name = "new_state", .type = DRIVER_OPTION_INT, .is_required = true, .doc = "The next one."},
    {0},
};
static const DriverOption debug_options[] = {
    {.name = "image",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The node under it: its name, or what to make one of."},
    {.name = "inject-error",
     .type = DRIVER_OPTION_ARRAY,
     .members = inject_members,
     .doc = "Errors, and the events that arm them."},
    {.name = "set-state",
     .type = DRIVER_OPTION_ARRAY,
     .members = state_members,
     .doc = "Changes of the state, and the events that cause them."},
    {0},
};

const Driver blkdebug_driver = {
    .name = "blkdebug",
    .options = debug_options,
    .make = debug_make,
    .exact_name = debug_exact_name,
};
