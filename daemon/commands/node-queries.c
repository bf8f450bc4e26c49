// SPDX-License-Identifier: LGPL-2.1-or-later
// Queries about nodes. What exports count is read as it is at the moment, from atomics. Control
// loop.
#include "node-queries.h"

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "node-info.h"

// -- query-named-block-nodes ----------------------------------------------------------------------

static const QmpType named_nodes_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"flat", &qmp_bool, true,
                                    "whether what lies below each node is left out; false without "
                                    "it"},
                                   {0}},
};
static const QmpType block_device_infos = {.kind = QMP_ARRAY, .element = &block_device_info};

static int query_named_block_nodes(Fiber *self, QmpCall *call, const json_t *args,
                                   json_t **ret_reply, GError **error)
{
    bool is_flat = qmp_args_bool(args, "flat", false);
    FileSpace *space = file_space_new(self, nodes_all(call->daemon->nodes));
    const GPtrArray *all = nodes_all(call->daemon->nodes); // it suspended
    json_t *infos = json_array();
    for (guint i = all->len; i-- > 0;) // QEMU tells the last one first
        json_array_append_new(infos, node_info(all->pdata[i], space, is_flat));
    file_space_free(space);
    *ret_reply = infos;
    return 0;
}

// -- query-block ----------------------------------------------------------------------------------

static const QmpType block_infos = {.kind = QMP_ARRAY, .element = &qmp_any};

// There are no guest devices.
static int query_block(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    *ret_reply = json_array();
    return 0;
}

// -- query-blockstats -----------------------------------------------------------------------------

static const QmpType blockstats_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"query-nodes", &qmp_bool, true,
                                    "true: of all nodes; without it, of guest devices, which there "
                                    "are none"},
                                   {0}},
};

#define COUNT(name, text)                                                                          \
    {                                                                                              \
        name, &qmp_int, .doc = text                                                                \
    }
#define NEVER(name)                                                                                \
    {                                                                                              \
        name, &qmp_int, .doc = "always 0"                                                          \
    }
static const QmpType device_stats = {
    .name = "BlockDeviceStats",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COUNT("rd_bytes", "bytes read by clients of the node's exports"),
                                   COUNT("wr_bytes", "bytes written"),
                                   COUNT("unmap_bytes", "bytes trimmed"),
                                   COUNT("rd_operations", "reads"),
                                   COUNT("wr_operations", "writes, zeroes included"),
                                   COUNT("flush_operations", "flushes"),
                                   COUNT("unmap_operations", "trims"),
                                   COUNT("rd_total_time_ns",
                                         "an estimate: the middle of each class of latencies"),
                                   COUNT("wr_total_time_ns", "likewise"),
                                   COUNT("flush_total_time_ns", "likewise"),
                                   COUNT("unmap_total_time_ns", "likewise"),
                                   COUNT("failed_rd_operations", "reads answered with an error"),
                                   COUNT("failed_wr_operations", "writes"),
                                   COUNT("failed_flush_operations", "flushes"),
                                   COUNT("failed_unmap_operations", "trims"),
                                   NEVER("wr_highest_offset"),
                                   NEVER("rd_merged"),
                                   NEVER("wr_merged"),
                                   NEVER("unmap_merged"),
                                   NEVER("invalid_rd_operations"),
                                   NEVER("invalid_wr_operations"),
                                   NEVER("invalid_flush_operations"),
                                   NEVER("invalid_unmap_operations"),
                                   {"account_invalid", &qmp_bool, .doc = "false"},
                                   {"account_failed", &qmp_bool, .doc = "false"},
                                   {"timed_stats", &qmp_str_array, .doc = "always empty"},
                                   {0}},
};
static const QmpType block_stats;
static const QmpType block_stats = {
    .name = "BlockStats",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node-name", &qmp_str, true, "the node"},
                                   {"stats", &device_stats, .doc = "what was counted"},
                                   {"parent", &block_stats, true, "the node of its file"},
                                   {"backing", &block_stats, true, "the node below"},
                                   {0}},
};
static const QmpType block_stats_list = {.kind = QMP_ARRAY, .element = &block_stats};

// The sum over some operations of the exports of a node.
typedef struct Count {
    uint64_t n, n_failed, bytes, ns;
} Count;

static uint64_t latency_sum_ns(const uint64_t latencies[NBDS_N_LATENCIES])
{
    uint64_t ns = latencies[0] * 500;
    for (unsigned i = 1; i < NBDS_N_LATENCIES; i++)
        ns += latencies[i] * (UINT64_C(750) << i); // the middle between 2^(i-1) and 2^i us
    return ns;
}

static void add_count(const NbdsExportStats *stats, NbdsOperation operation, Count *count)
{
    count->n += stats->n_requests[operation] - stats->n_errors[operation];
    count->n_failed += stats->n_errors[operation];
    count->bytes += stats->bytes[operation];
    count->ns += latency_sum_ns(stats->latencies[operation]);
}

static void set_count(json_t *object, const char *prefix, const Count *count, bool has_bytes)
{
    const struct {
        const char *format;
        uint64_t value;
    } members[] = {
        {"%s_operations", count->n},
        {"failed_%s_operations", count->n_failed},
        {"invalid_%s_operations", 0},
        {"%s_total_time_ns", count->ns},
        {has_bytes ? "%s_bytes" : NULL, count->bytes},
        {has_bytes ? "%s_merged" : NULL, 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(members); i++) {
        if (!members[i].format)
            continue;
        g_autoptr(GString) name = g_string_new(members[i].format);
        g_string_replace(name, "%s", prefix, 1);
        json_object_set_new(object, name->str, json_integer((json_int_t)members[i].value));
    }
}

// By node: what its exports counted.
typedef struct NodeCounts {
    Count reads, writes, flushes, trims;
} NodeCounts;

static GHashTable *count_exports(const Exports *exports)
{
    GHashTable *by_node = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    const GPtrArray *all = exports_all(exports);
    for (guint i = 0; i < all->len; i++) {
        const Export *export = all->pdata[i];
        NodeCounts *counts = g_hash_table_lookup(by_node, export_node(export));
        if (!export->nbds)
            continue;
        if (!counts) {
            counts = g_new0(NodeCounts, 1);
            g_hash_table_insert(by_node, export_node(export), counts);
        }
        NbdsExportStats stats;
        nbds_export_get_stats(export->nbds, &stats);
        add_count(&stats, NBDS_OPERATION_READ, &counts->reads);
        add_count(&stats, NBDS_OPERATION_WRITE, &counts->writes);
        add_count(&stats, NBDS_OPERATION_WRITE_ZEROES, &counts->writes);
        add_count(&stats, NBDS_OPERATION_FLUSH, &counts->flushes);
        add_count(&stats, NBDS_OPERATION_TRIM, &counts->trims);
    }
    return by_node;
}

static json_t *stats_of(const NamedNode *named, GHashTable *by_node)
{
    static const NodeCounts none;
    const NodeCounts *counts = g_hash_table_lookup(by_node, named);
    if (!counts)
        counts = &none;
    json_t *stats = json_pack("{s:i, s:b, s:b, s:[]}", "wr_highest_offset", 0, "account_invalid", 0,
                              "account_failed", 0, "timed_stats");
    set_count(stats, "rd", &counts->reads, true);
    set_count(stats, "wr", &counts->writes, true);
    set_count(stats, "flush", &counts->flushes, false);
    set_count(stats, "unmap", &counts->trims, true);
    json_t *object = json_pack("{s:s, s:o}", "node-name", named->name, "stats", stats);
    const NamedNode *file = named_node_child(named, "file");
    if (file)
        json_object_set_new(object, "parent", stats_of(file, by_node));
    return object;
}

static int query_blockstats(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    json_t *list = json_array();
    const GPtrArray *all = nodes_all(call->daemon->nodes);
    GHashTable *by_node = count_exports(call->daemon->exports);
    bool is_wanted = qmp_args_bool(args, "query-nodes", false);
    for (guint i = 0; is_wanted && i < all->len; i++)
        json_array_append_new(list, stats_of(all->pdata[i], by_node));
    g_hash_table_unref(by_node);
    *ret_reply = list;
    return 0;
}

// -- x-debug-query-block-graph --------------------------------------------------------------------

static const QmpType graph_node_type = {
    .name = "XDbgBlockGraphNodeType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"block-backend", "block-job", "block-driver", NULL},
};
static const QmpType graph_node = {
    .name = "XDbgBlockGraphNode",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_int, .doc = "a number within this reply"},
                                   {"type", &graph_node_type, .doc = "what it is"},
                                   {"name", &qmp_str, .doc = "its name; of an export: its id"},
                                   {0}},
};
static const QmpType graph_nodes = {.kind = QMP_ARRAY, .element = &graph_node};
static const QmpType graph_edge = {
    .name = "XDbgBlockGraphEdge",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"parent", &qmp_int, .doc = "who uses"},
                            {"child", &qmp_int, .doc = "what is used"},
                            {"name", &qmp_str, .doc = "as what"},
                            {"perm", &qmp_str_array, .doc = "what the user does with it"},
                            {"shared-perm", &qmp_str_array, .doc = "what others may do with it"},
                            {0}},
};
static const QmpType graph_edges = {.kind = QMP_ARRAY, .element = &graph_edge};
static const QmpType graph_type = {
    .name = "XDbgBlockGraph",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"nodes", &graph_nodes, .doc = "nodes and their other users"},
                                   {"edges", &graph_edges, .doc = "who uses whom"},
                                   {0}},
};

static json_t *graph_node_new(guint id, const char *type, const char *name)
{
    return json_pack("{s:i, s:s, s:s}", "id", (int)id, "type", type, "name", name);
}

static json_t *perm_names(unsigned perms)
{
    json_t *names = json_array();
    for (unsigned bit = 1; bit & NODE_PERMS_OF_CONTENT; bit <<= 1)
        if (perms & bit)
            json_array_append_new(names, json_string(node_perm_name(bit)));
    return names;
}

static json_t *graph_edge_new(guint parent, guint child, const NodeUse *use)
{
    NodePerms perms = node_use_perms(use);
    return json_pack("{s:i, s:i, s:s, s:o, s:o}", "parent", (int)parent, "child", (int)child,
                     "name", use->role, "perm", perm_names(perms.held), "shared-perm",
                     perm_names(perms.shared));
}

static int query_block_graph(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                             GError **error)
{
    const GPtrArray *all = nodes_all(call->daemon->nodes);
    g_autoptr(GHashTable) ids = g_hash_table_new(NULL, NULL);
    json_t *nodes = json_array(), *edges = json_array();
    guint n_ids = 0;
    for (guint i = 0; i < all->len; i++) {
        const NamedNode *named = all->pdata[i];
        g_hash_table_insert(ids, all->pdata[i], GUINT_TO_POINTER(++n_ids));
        json_array_append_new(nodes, graph_node_new(n_ids, "block-driver", named->name));
    }
    for (guint i = 0; i < all->len; i++) {
        const NamedNode *named = all->pdata[i];
        guint child = GPOINTER_TO_UINT(g_hash_table_lookup(ids, named));
        for (guint j = 0; j < named->users->len; j++) {
            const NodeUse *use = named->users->pdata[j];
            guint parent = use->by ? GPOINTER_TO_UINT(g_hash_table_lookup(ids, use->by)) : ++n_ids;
            if (!use->by)
                json_array_append_new(nodes, graph_node_new(parent, "block-backend", use->user));
            json_array_append_new(edges, graph_edge_new(parent, child, use));
        }
    }
    *ret_reply = json_pack("{s:o, s:o}", "nodes", nodes, "edges", edges);
    return 0;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"query-named-block-nodes", &named_nodes_args, &block_device_infos, "All nodes.",
     query_named_block_nodes},
    {"query-block", NULL, &block_infos, "Guest devices, of which there are none: always empty.",
     query_block},
    {"query-blockstats", &blockstats_args, &block_stats_list,
     "What was counted. Of nodes: what the clients of their exports did.", query_blockstats},
    {"x-debug-query-block-graph", NULL, &graph_type, "The graph of nodes and their users.",
     query_block_graph},
    {0},
};

const QmpFamily qmp_node_queries_family = {.title = "Queries about nodes", .commands = commands};
