// SPDX-License-Identifier: LGPL-2.1-or-later
// Queries about nodes. What exports count is read as it is at the moment, from atomics. With many
// nodes others go on meanwhile (QmpPace), so nodes are found by their names, one after the other: a
// reply may tell of one that has come after another went. Control loop.
#include "node-queries.h"

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/pace.h"
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

// As text, some tens of megabytes.
enum { MAX_IMAGES = 100000 };

static int add_infos(Fiber *self, const Nodes *nodes, NodeInfos *infos, bool is_flat,
                     GPtrArray *all, GError **error)
{
    g_auto(GStrv) names = nodes_names(nodes);
    QmpPace pace = qmp_pace_begin();
    for (char **name = names; *name; name++) {
        const NamedNode *named = nodes_find(nodes, *name);
        if (named)
            g_ptr_array_add(all, node_infos_get(infos, named, is_flat));
        if (node_infos_n_images(infos) > MAX_IMAGES)
            return qmp_fail(
                error,
                "what lies below each node, told with each, is more than %d images: ask "
                "with \"flat\": true",
                MAX_IMAGES);
        qmp_pace(self, &pace);
    }
    return 0;
}

static int query_named_block_nodes(Fiber *self, QmpCall *call, const json_t *args,
                                   json_t **ret_reply, GError **error)
{
    const Nodes *nodes = call->daemon->nodes;
    NodeInfos *infos = node_infos_new(self, nodes_all(nodes));
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)json_decref);
    int r = add_infos(self, nodes, infos, qmp_args_bool(args, "flat", false), all, error);
    node_infos_free(infos);
    if (r < 0)
        return r;
    *ret_reply = json_array();
    for (guint i = all->len; i-- > 0;) // QEMU tells the last one first
        json_array_append(*ret_reply, all->pdata[i]);
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
                                   NEVER("zone_append_bytes"),
                                   NEVER("zone_append_operations"),
                                   NEVER("zone_append_total_time_ns"),
                                   NEVER("zone_append_merged"),
                                   NEVER("failed_zone_append_operations"),
                                   NEVER("invalid_zone_append_operations"),
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

// Of its members.
typedef struct CountNames {
    const char *n, *failed, *invalid, *ns, *bytes, *merged;
} CountNames;

#define COUNT_NAMES(prefix)                                                                        \
    {                                                                                              \
        prefix "_operations", "failed_" prefix "_operations", "invalid_" prefix "_operations",     \
            prefix "_total_time_ns", prefix "_bytes", prefix "_merged"                             \
    }

static void set(json_t *object, const char *name, uint64_t value)
{
    json_object_set_new_nocheck(object, name, json_integer((json_int_t)value));
}

static void set_count(json_t *object, const CountNames *names, const Count *count)
{
    set(object, names->n, count->n);
    set(object, names->failed, count->n_failed);
    set(object, names->invalid, 0);
    set(object, names->ns, count->ns);
    set(object, names->bytes, count->bytes);
    set(object, names->merged, 0);
}

// By node: what its exports counted.
typedef struct NodeCounts {
    Count reads, writes, flushes, trims;
} NodeCounts;

static GHashTable *count_exports(const Exports *exports)
{
    GHashTable *by_node = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    const GPtrArray *all = exports_all(exports);
    for (guint i = 0; i < all->len; i++) {
        const Export *export = all->pdata[i];
        const char *name = export_node(export)->name;
        NodeCounts *counts = g_hash_table_lookup(by_node, name);
        NbdsExportStats stats;
        if (!exports_get_stats(export, &stats))
            continue;
        if (!counts) {
            counts = g_new0(NodeCounts, 1);
            g_hash_table_insert(by_node, g_strdup(name), counts);
        }
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
    static const CountNames reads = COUNT_NAMES("rd"), writes = COUNT_NAMES("wr");
    static const CountNames flushes = COUNT_NAMES("flush"), trims = COUNT_NAMES("unmap");
    static const CountNames appends = COUNT_NAMES("zone_append");
    static const NodeCounts none;
    const NodeCounts *counts = g_hash_table_lookup(by_node, named->name);
    if (!counts)
        counts = &none;
    json_t *stats = json_pack("{s:i, s:b, s:b, s:[]}", "wr_highest_offset", 0, "account_invalid", 0,
                              "account_failed", 0, "timed_stats");
    set_count(stats, &reads, &counts->reads);
    set_count(stats, &writes, &counts->writes);
    set_count(stats, &flushes, &counts->flushes);
    set_count(stats, &trims, &counts->trims);
    set_count(stats, &appends, &(Count){0});
    json_object_del(stats, flushes.bytes);
    json_object_del(stats, flushes.merged);
    json_t *object = json_pack("{s:s, s:o}", "node-name", named->name, "stats", stats);
    const NamedNode *file = named_node_child(named, "file");
    if (file)
        json_object_set_new(object, "parent", stats_of(file, by_node));
    return object;
}

static int query_blockstats(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    const Nodes *nodes = call->daemon->nodes;
    *ret_reply = json_array();
    if (!qmp_args_bool(args, "query-nodes", false))
        return 0;
    GHashTable *by_node = count_exports(call->daemon->exports);
    g_auto(GStrv) names = nodes_names(nodes);
    QmpPace pace = qmp_pace_begin();
    for (char **name = names; *name; name++) {
        const NamedNode *named = nodes_find(nodes, *name);
        if (named)
            json_array_append_new(*ret_reply, stats_of(named, by_node));
        qmp_pace(self, &pace);
    }
    g_hash_table_unref(by_node);
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

// What is made of the graph so far.
typedef struct Graph {
    GHashTable *ids; // by name of a node; of the nodes that there were at the beginning
    guint n_ids;     // of nodes and others
    json_t *nodes, *edges;
} Graph;

static guint add_graph_node(Graph *graph, const char *type, const char *name)
{
    guint id = ++graph->n_ids;
    json_array_append_new(graph->nodes,
                          json_pack("{s:i, s:s, s:s}", "id", (int)id, "type", type, "name", name));
    return id;
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

static void add_users(Graph *graph, const NamedNode *named)
{
    guint child = GPOINTER_TO_UINT(g_hash_table_lookup(graph->ids, named->name));
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        guint parent = use->by ? GPOINTER_TO_UINT(g_hash_table_lookup(graph->ids, use->by->name))
                               : add_graph_node(graph, "block-backend", use->user);
        if (parent) // else it has come meanwhile
            json_array_append_new(graph->edges, graph_edge_new(parent, child, use));
    }
}

static int query_block_graph(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                             GError **error)
{
    const Nodes *nodes = call->daemon->nodes;
    Graph graph = {
        .ids = g_hash_table_new(g_str_hash, g_str_equal),
        .nodes = json_array(),
        .edges = json_array(),
    };
    g_auto(GStrv) names = nodes_names(nodes);
    QmpPace pace = qmp_pace_begin();
    for (char **name = names; *name; name++)
        g_hash_table_insert(graph.ids, *name,
                            GUINT_TO_POINTER(add_graph_node(&graph, "block-driver", *name)));
    for (char **name = names; *name; name++) {
        const NamedNode *named = nodes_find(nodes, *name);
        if (named)
            add_users(&graph, named);
        qmp_pace(self, &pace);
    }
    g_hash_table_unref(graph.ids);
    *ret_reply = json_pack("{s:o, s:o}", "nodes", graph.nodes, "edges", graph.edges);
    return 0;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"query-named-block-nodes", &named_nodes_args, &block_device_infos, "All nodes.",
     query_named_block_nodes, .is_query = true},
    {"query-block", NULL, &block_infos, "Guest devices, of which there are none: always empty.",
     query_block, .is_query = true},
    {"query-blockstats", &blockstats_args, &block_stats_list,
     "What was counted. Of nodes: what the clients of their exports did.", query_blockstats,
     .is_query = true},
    {"x-debug-query-block-graph", NULL, &graph_type, "The graph of nodes and their users.",
     query_block_graph, "unstable", .is_query = true},
    {0},
};

const QmpFamily qmp_node_queries_family = {.title = "Queries about nodes", .commands = commands};
