// SPDX-License-Identifier: LGPL-2.1-or-later
// The counters of exports as they are: who asks again takes the difference. They are read without
// asking a loop, so this is answered whatever the disks do. Control loop.
#include "export-stats.h"

#include "daemon/daemon.h"
#include "daemon/qmp/pace.h"
#include "throttle-limits.h"

static const QmpType operation_kind = {
    .name = "ExportOperation",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"read", "write", "flush", "trim", "cache", "write-zeroes",
                                    "block-status", NULL},
};
static const QmpType counts_type = {.kind = QMP_ARRAY, .element = &qmp_int};
static const QmpType operation_type = {
    .name = "ExportOperationStats",
    .kind = QMP_OBJECT,
    .doc = "Requests of one kind, since the export was added.",
    .members =
        (const QmpMember[]){
            {"operation", &operation_kind, .doc = "the kind"},
            {"requests", &qmp_int, .doc = "answered, errors included"},
            {"errors", &qmp_int, .doc = "of these, answered with an error"},
            {"bytes", &qmp_int, .doc = "of those answered without an error"},
            {"latencies", &counts_type,
             .doc = "how many took how long from their start to their reply: the first number is "
                    "of those below 1 microsecond, number `i` of those from 2^(i-1) to below 2^i "
                    "microseconds; zeros at the end are left out"},
            {0}},
};
static const QmpType operations_type = {.kind = QMP_ARRAY, .element = &operation_type};
static const QmpType stats_type = {
    .name = "ExportStats",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"id", &qmp_str, .doc = "the export"},
            {"name", &qmp_str, .doc = "what clients call it"},
            {"node-name", &qmp_str, .doc = "what it shows"},
            {"uris", &qmp_str_array, .doc = "where clients reach it: one for each address"},
            {"size", &qmp_int, .doc = "in bytes"},
            {"clients", &qmp_int, .doc = "connections that use it now"},
            {"in-flight", &qmp_int, .doc = "requests that are executed now"},
            {"operations", &operations_type, .doc = "those kinds of which there were any"},
            {"throttle", &export_throttle_type, true, "its limits, if it has any"},
            {0}},
};
static const QmpType stats_list = {.kind = QMP_ARRAY, .element = &stats_type};

static json_t *describe_latencies(const uint64_t latencies[NBDS_N_LATENCIES])
{
    json_t *counts = json_array();
    unsigned n = NBDS_N_LATENCIES;
    while (n && !latencies[n - 1])
        n--;
    for (unsigned i = 0; i < n; i++)
        json_array_append_new(counts, json_integer((json_int_t)latencies[i]));
    return counts;
}

static json_t *describe_operations(const NbdsExportStats *stats)
{
    json_t *operations = json_array();
    for (unsigned i = 0; i < NBDS_N_OPERATIONS; i++)
        if (stats->n_requests[i])
            json_array_append_new(operations, json_pack("{s:s, s:I, s:I, s:I, s:o}", "operation",
                                                        operation_kind.values[i], "requests",
                                                        (json_int_t)stats->n_requests[i], "errors",
                                                        (json_int_t)stats->n_errors[i], "bytes",
                                                        (json_int_t)stats->bytes[i], "latencies",
                                                        describe_latencies(stats->latencies[i])));
    return operations;
}

static json_t *describe_uris(const NbdServer *server, const char *name)
{
    json_t *uris = json_array();
    g_auto(GStrv) all = nbd_server_uris(server, name);
    for (char **uri = all; *uri; uri++)
        json_array_append_new(uris, json_string(*uri));
    return uris;
}

// NULL: there are none.
static json_t *describe_throttle(const Export *export)
{
    if (!export->throttle)
        return NULL;
    ExportThrottle throttle = {.group = throttle_group_name(export->throttle)};
    throttle_group_get_limits(export->throttle, &throttle.limits);
    return export_throttle_to_json(&throttle);
}

static json_t *describe(const QmpCall *call, const Export *export, const NbdsExportStats *stats)
{
    return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:o, s:o*}", "id", export->id, "name",
                     export->name, "node-name", export_node(export)->name, "uris",
                     describe_uris(call->daemon->nbd, export->name), "size",
                     (json_int_t)nbds_export_size_bytes(export->nbds), "clients",
                     (json_int_t)stats->n_clients, "in-flight", (json_int_t)stats->n_in_flight,
                     "operations", describe_operations(stats), "throttle",
                     describe_throttle(export));
}

static int query_export_stats(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                              GError **error)
{
    const Exports *exports = call->daemon->exports;
    g_autoptr(GPtrArray) ids = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < exports_all(exports)->len; i++)
        g_ptr_array_add(ids, g_strdup(((const Export *)exports_all(exports)->pdata[i])->id));
    QmpPace pace = qmp_pace_begin();
    *ret_reply = json_array();
    for (guint i = 0; i < ids->len; i++) {
        const Export *export = exports_find(exports, ids->pdata[i]);
        NbdsExportStats stats;
        if (export && exports_get_stats(export, &stats))
            json_array_append_new(*ret_reply, describe(call, export, &stats));
        qmp_pace(self, &pace);
    }
    return 0;
}

static const QmpCommand commands[] = {
    {"query-export-stats", NULL, &stats_list,
     "What the clients of each export do: requests, bytes and latencies, counted from the time the "
     "export was added.",
     query_export_stats, .is_query = true},
    {0},
};

const QmpFamily qmp_export_stats_family = {.title = "Statistics of exports", .commands = commands};
