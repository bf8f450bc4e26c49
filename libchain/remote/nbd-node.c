// SPDX-License-Identifier: LGPL-2.1-or-later
// A node on an NBD server, by way of a link.
//
// Servers want offsets and lengths in units (min_bytes, mostly 1): the odd ends of a read are read
// with it, those of a write are read and written back, alone. On the loop, in fibers.
#include "chain-core/nbd-client.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/fiber-sync.h"
#include "remote/nbd-link.h"

typedef struct NbdNode {
    Node node;
    NbdLink *link;
    FiberRwLock unit_lock; // write: units that are read, changed and written back
} NbdNode;

static NbdNode *nbd_of(Node *node)
{
    return (NbdNode *)node;
}

static const NbdSessionFacts *facts_of(const NbdNode *n)
{
    return nbd_link_facts(n->link);
}

// --- units ---------------------------------------------------------------------------------------

static uint64_t unit_of(const NbdNode *n)
{
    return facts_of(n)->min_bytes;
}

static bool is_aligned(const NbdNode *n, uint64_t off, uint64_t len)
{
    return (off | len) % unit_of(n) == 0;
}

// In pieces that the server takes.
static int transfer(Fiber *self, NbdNode *n, NbdCommand whole)
{
    while (whole.len) {
        NbdCommand piece = whole;
        piece.len = MIN(whole.len, facts_of(n)->max_bytes);
        int r = nbd_link_request(self, n->link, &piece);
        if (r < 0)
            return r;
        whole.off += piece.len;
        whole.buf = (uint8_t *)whole.buf + piece.len;
        whole.len -= piece.len;
    }
    return 0;
}

// The whole units around [off, off+len), at most so many bytes, in a buffer (owned).
static int read_units(Fiber *self, NbdNode *n, uint64_t off, uint64_t len, uint8_t **ret_buf)
{
    uint64_t unit = unit_of(n), start = off - off % unit,
             end = (off + len + unit - 1) / unit * unit;
    uint8_t *buf = g_try_malloc(end - start);
    if (!buf)
        return -ENOMEM;
    int r = transfer(self, n,
                     (NbdCommand){.op = NBD_READ, .off = start, .len = end - start, .buf = buf});
    if (r < 0)
        g_free(buf);
    else
        *ret_buf = buf;
    return r;
}

static int read_unaligned(Fiber *self, NbdNode *n, uint64_t off, void *buf, size_t len)
{
    g_autofree uint8_t *units = NULL;
    int r = read_units(self, n, off, len, &units);
    if (r == 0)
        memcpy(buf, units + off % unit_of(n), len);
    return r;
}

// `buf` NULL: zeros.
static int write_unaligned(Fiber *self, NbdNode *n, NbdCommand c)
{
    uint64_t unit = unit_of(n), start = c.off - c.off % unit;
    g_autofree uint8_t *units = NULL;
    fiber_rw_lock_write(self, &n->unit_lock);
    int r = read_units(self, n, c.off, c.len, &units);
    if (r == 0) {
        if (c.buf)
            memcpy(units + (c.off - start), c.buf, c.len);
        else
            memset(units + (c.off - start), 0, c.len);
        c.len = (c.off + c.len + unit - 1) / unit * unit - start;
        c.off = start;
        c.buf = units;
        c.op = NBD_WRITE;
        r = transfer(self, n, c);
    }
    fiber_rw_unlock_write(self, &n->unit_lock);
    return r;
}

// --- node operations -----------------------------------------------------------------------------

static int nbd_node_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                               IoBatch *batch)
{
    NbdNode *n = nbd_of(node);
    if (!is_aligned(n, off.v, len))
        return read_unaligned(self, n, off.v, buf, len);
    return transfer(self, n, (NbdCommand){.op = NBD_READ, .off = off.v, .len = len, .buf = buf});
}

static int nbd_node_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                          NodeIoFlags flags)
{
    NbdNode *n = nbd_of(node);
    NbdCommand c = {NBD_WRITE, off.v, len, (void *)buf, flags, {0}};
    int r;
    if (is_aligned(n, off.v, len)) {
        fiber_rw_lock_read(self, &n->unit_lock);
        r = transfer(self, n, c);
        fiber_rw_unlock_read(self, &n->unit_lock);
    } else {
        r = write_unaligned(self, n, c);
    }
    return r;
}

// What one header can say, in whole units.
static uint64_t max_change_bytes(const NbdNode *n)
{
    uint64_t max = (UINT64_C(1) << 32) - 1;
    return max - max % unit_of(n);
}

// ZERO or TRIM of whole units.
static int change_units(Fiber *self, NbdNode *n, NbdCommand whole)
{
    int r = 0;
    fiber_rw_lock_read(self, &n->unit_lock);
    while (whole.len && r == 0) {
        NbdCommand piece = whole;
        piece.len = MIN(whole.len, max_change_bytes(n));
        r = nbd_link_request(self, n->link, &piece);
        whole.off += piece.len;
        whole.len -= piece.len;
    }
    fiber_rw_unlock_read(self, &n->unit_lock);
    return r;
}

static int write_zeros(Fiber *self, NbdNode *n, NbdCommand c)
{
    enum { CHUNK_BYTES = 1 << 20 };
    g_autofree uint8_t *zeros = g_try_malloc0(CHUNK_BYTES);
    int r = zeros ? 0 : -ENOMEM;
    while (c.len && r == 0) {
        uint64_t len = MIN(c.len, CHUNK_BYTES);
        r = nbd_node_write(self, &n->node, guest_off(c.off), zeros, len, c.flags & NODE_IO_FUA);
        c.off += len;
        c.len -= len;
    }
    return r;
}

static int zero_edge(Fiber *self, NbdNode *n, uint64_t off, uint64_t len)
{
    return len ? write_unaligned(self, n, (NbdCommand){.op = NBD_WRITE, .off = off, .len = len})
               : 0;
}

static int zero_all(Fiber *self, NbdNode *n, NbdCommand c)
{
    const NbdSessionFacts *facts = facts_of(n);
    uint64_t unit = facts->min_bytes, end = c.off + c.len;
    uint64_t from = (c.off + unit - 1) / unit * unit, to = end - end % unit;
    if (c.flags & NODE_IO_FAST_ZERO && (!facts->can_zero || !facts->can_fast_zero))
        return -ENOTSUP;
    if (!facts->can_zero)
        return write_zeros(self, n, c);
    if (from >= to)
        return zero_edge(self, n, c.off, c.len);
    uint64_t first = c.off;
    c.off = from;
    c.len = to - from;
    int r = change_units(self, n, c);
    if (r == -ENOTSUP && !(c.flags & NODE_IO_FAST_ZERO))
        r = write_zeros(self, n, c);
    if (r == 0)
        r = zero_edge(self, n, first, from - first);
    return r < 0 ? r : zero_edge(self, n, to, end - to);
}

static int nbd_node_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    NbdNode *n = nbd_of(node);
    NbdCommand c = {NBD_ZERO, off.v, len, NULL, flags, {0}};
    bool has_edges = !is_aligned(n, off.v, len) || !facts_of(n)->can_zero;
    if (has_edges)
        c.flags &= ~NODE_IO_FUA; // one flush covers all of it
    int r = len ? zero_all(self, n, c) : 0;
    if (r == 0 && has_edges && (flags & NODE_IO_FUA))
        return nbd_link_flush(self, n->link);
    return r;
}

static int nbd_node_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    NbdNode *n = nbd_of(node);
    uint64_t unit = unit_of(n), end = off.v + len;
    uint64_t from = (off.v + unit - 1) / unit * unit, to = end - end % unit;
    if (from < to && facts_of(n)->can_trim)
        return change_units(self, n, (NbdCommand){NBD_TRIM, from, to - from, NULL, flags, {0}});
    return flags & NODE_IO_FUA ? nbd_link_flush(self, n->link) : 0;
}

static int nbd_node_flush(Fiber *self, Node *node)
{
    return nbd_link_flush(self, nbd_of(node)->link);
}

static int nbd_node_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    enum { HOLE = 1, ZERO = 2 };
    NbdNode *n = nbd_of(node);
    *ret_extent = (NodeExtent){.len = len, .kind = NODE_EXTENT_OPAQUE, .node = node};
    if (!facts_of(n)->has_status)
        return 0;
    uint64_t unit = unit_of(n), start = off.v - off.v % unit;
    uint64_t end = (off.v + len + unit - 1) / unit * unit;
    NbdCommand c = {.op = NBD_STATUS, .off = start, .len = end - start};
    int r = nbd_link_request(self, n->link, &c);
    if (r == -ENOTSUP) // another server than when this began
        return 0;
    if (r < 0)
        return r;
    if (c.extent.len <= off.v - start)
        return -EIO; // less than a unit
    ret_extent->len = MIN(len, c.extent.len - (off.v - start));
    if (c.extent.flags & ZERO)
        ret_extent->kind = c.extent.flags & HOLE ? NODE_EXTENT_ZERO : NODE_EXTENT_ZERO_ALLOCATED;
    return 0;
}

static int nbd_node_set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    int r = is_writable ? 0 : nbd_node_flush(self, node);
    if (r < 0)
        return error_set(error, r, "%s: what was written cannot be made durable: %s", node->name,
                         g_strerror(-r));
    return nbd_link_set_writable(nbd_of(node)->link, is_writable, error);
}

static void nbd_node_detach(Fiber *self, Node *node)
{
    nbd_link_detach(self, nbd_of(node)->link);
}

static void nbd_node_attach(Node *node)
{
    nbd_link_attach(nbd_of(node)->link, node->loop);
}

static void nbd_node_give_up(Node *node)
{
    nbd_link_give_up(nbd_of(node)->link);
}

static void nbd_node_close(Fiber *self, Node *node)
{
    nbd_link_close(self, nbd_of(node)->link);
}

static const NodeOps nbd_ops = {
    .driver = "nbd",
    .read_start = nbd_node_read_start,
    .write = nbd_node_write,
    .zero = nbd_node_zero,
    .discard = nbd_node_discard,
    .flush = nbd_node_flush,
    .map = nbd_node_map,
    .set_writable = nbd_node_set_writable,
    .detach = nbd_node_detach,
    .attach = nbd_node_attach,
    .give_up = nbd_node_give_up,
    .close = nbd_node_close,
};

// --- the driver ----------------------------------------------------------------------------------

#define SECOND_NS UINT64_C(1000000000)

static int set_tls(const DriverOptions *options, NbdAddress *address, GError **error)
{
    const char *name = driver_value_str(options->values, "tls-creds", NULL);
    TlsCreds *creds;
    int r = name ? tls_creds_table_find(options->tls_creds, name, TLS_CLIENT, &creds, error) : 0;
    if (name && r == 0)
        nbd_address_set_tls(address, creds,
                            driver_value_str(options->values, "tls-hostname", NULL));
    return r;
}

static int find_address(const DriverOptions *options, NbdAddress **ret_address, GError **error)
{
    g_autoptr(NbdAddress) address = NULL;
    int r = nbd_address_from_values(options->values, &address, error);
    if (r == 0)
        r = set_tls(options, address, error);
    if (r == 0)
        *ret_address = g_steal_pointer(&address);
    return r;
}

static int nbd_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                    GError **error)
{
    const json_t *values = options->values;
    NbdLinkOptions link_options = {
        .is_writable = options->is_writable,
        .reconnect_delay_ns = driver_value_int(values, "reconnect-delay", 0) * SECOND_NS,
        .open_timeout_ns = driver_value_int(values, "open-timeout", 0) * SECOND_NS,
        .events = options->events,
    };
    NbdAddress *address;
    NbdLink *link;
    int r = find_address(options, &address, error);
    if (r == 0)
        r = nbd_link_open(self, address, &link_options, &link, error);
    if (r < 0)
        return r;
    NbdNode *n = g_new0(NbdNode, 1);
    n->link = link;
    node_init(&n->node, &nbd_ops, fiber_loop(self), options->name, facts_of(n)->size_bytes);
    n->node.read_only = !options->is_writable;
    n->node.preferred_bytes = facts_of(n)->preferred_bytes;
    *ret_node = &n->node;
    return 0;
}

json_t *nbd_client_values_of_uri(const char *uri, GError **error)
{
    g_autoptr(NbdAddress) a = NULL;
    if (nbd_address_from_uri(uri, &a, error) < 0)
        return NULL;
    return a->path ? json_pack("{s:s, s:s}", "path", a->path, "export", a->export_name)
                   : json_pack("{s:s, s:s, s:s}", "host", a->host, "port", a->port, "export",
                               a->export_name);
}

static char *nbd_exact_name(const json_t *values, const char *below)
{
    g_autoptr(NbdAddress) a = NULL;
    bool has_export = json_object_get(values, "export");
    if (json_object_get(values, "tls-creds")) // no name says that
        return NULL;
    if (nbd_address_from_values(values, &a, NULL) < 0)
        return NULL;
    if (has_export)
        return a->path ? g_strdup_printf("nbd+unix:///%s?socket=%s", a->export_name, a->path)
                       : g_strdup_printf("nbd://%s:%s/%s", a->host, a->port, a->export_name);
    return a->path ? g_strdup_printf("nbd+unix://?socket=%s", a->path)
                   : g_strdup_printf("nbd://%s:%s", a->host, a->port);
}

static const char *const server_types[] = {"inet", "unix", NULL};
static const DriverOption server_members[] = {
    {.name = "type", .type = DRIVER_OPTION_ENUM, .values = server_types, .doc = "Its kind."},
    {.name = "path", .type = DRIVER_OPTION_STR, .doc = "unix: the socket."},
    {.name = "host", .type = DRIVER_OPTION_STR, .doc = "inet: a name or an address."},
    {.name = "port", .type = DRIVER_OPTION_STR, .doc = "inet: a number or a service."},
    {0},
};

static const DriverOption nbd_options[] = {
    {.name = "server",
     .type = DRIVER_OPTION_OBJECT,
     .members = server_members,
     .doc = "Where the server is."},
    {.name = "path", .type = DRIVER_OPTION_STR, .doc = "Instead of server: a unix socket."},
    {.name = "host", .type = DRIVER_OPTION_STR, .doc = "Instead of server: a host."},
    {.name = "port", .type = DRIVER_OPTION_STR, .doc = "With host; 10809 unless said."},
    {.name = "export", .type = DRIVER_OPTION_STR, .doc = "The export's name; \"\" unless said."},
    {.name = "reconnect-delay",
     .type = DRIVER_OPTION_INT,
     .doc = "For how many seconds after a lost connection requests wait for another one; then they "
            "fail, until there is one. 0 unless said."},
    {.name = "open-timeout",
     .type = DRIVER_OPTION_INT,
     .doc = "For how many seconds connecting is tried again when the node is made; 0, unless said: "
            "once."},
    {.name = "tls-creds",
     .type = DRIVER_OPTION_STR,
     .doc = "An object of a kind tls-creds, of a client: the server must speak TLS then."},
    {.name = "tls-hostname",
     .type = DRIVER_OPTION_STR,
     .doc = "Whom the server's certificate must be for; the host unless said."},
    {0},
};

const Driver nbd_driver = {
    .name = "nbd",
    .options = nbd_options,
    .is_remote = true,
    .make = nbd_make,
    .exact_name = nbd_exact_name,
};
