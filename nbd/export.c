// SPDX-License-Identifier: LGPL-2.1-or-later
// Exports: their facts, references and statistics.
#include "export.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "contexts.h"

static int check_string(const char *what, const char *s, GError **error)
{
    size_t len = strlen(s);
    if (len <= NBDS_MAX_STRING && g_utf8_validate(s, len, NULL))
        return 0;
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                "export %s '%.64s…' is longer than %d bytes or not UTF-8: choose another", what,
                g_utf8_validate(s, len, NULL) ? s : "?", NBDS_MAX_STRING);
    return -EINVAL;
}

static uint32_t preferred_bytes(const Node *node)
{
    return CLAMP(node->preferred_bytes, 4096, NBDS_MAX_PAYLOAD);
}

uint32_t nbds_export_preferred_bytes(const NbdsExport *export)
{
    return preferred_bytes(export->port.node);
}

NbdsExport *nbds_export_new(NbdsServerLoop *server_loop, const NbdsExportConfig *config,
                            uint64_t serial, GError **error)
{
    const char *description = config->description ? config->description : "";
    if (check_string("name", config->name, error) < 0 ||
        check_string("description", description, error) < 0)
        return NULL;
    NbdsExport *export = g_new0(NbdsExport, 1);
    export->info = (NbdsExportInfo){
        .serial = serial,
        .name = g_strdup(config->name),
        .description = g_strdup(description),
        .size_bytes = config->node->size_bytes,
        .padding_bytes = config->padding_bytes,
        .preferred_bytes = preferred_bytes(config->node),
        .read_only = config->read_only || (config->node->read_only && !config->becomes_writable),
        .contexts = nbds_contexts_new(config),
    };
    atomic_init(&export->size_bytes, config->node->size_bytes);
    export->is_writethrough = config->writethrough;
    export->server_loop = server_loop;
    atomic_init(&export->n_refs, 1);
    export->owner = g_strdup_printf("export '%s'", config->name);
    port_init(&export->port, config->node, export->owner);
    export->port.perms = node_perms_of(NODE_USER_OUTSIDE, !export->info.read_only);
    return export;
}

NbdsExport *nbds_export_ref(NbdsExport *export)
{
    atomic_fetch_add_explicit(&export->n_refs, 1, memory_order_relaxed);
    return export;
}

void nbds_export_unref(NbdsExport *export)
{
    if (!export || atomic_fetch_sub_explicit(&export->n_refs, 1, memory_order_acq_rel) != 1)
        return;
    throttle_group_unref(export->throttle_group);
    g_free(export->owner);
    g_free((char *)export->info.name);
    g_free((char *)export->info.description);
    g_ptr_array_unref((GPtrArray *)export->info.contexts);
    g_free(export);
}

void nbds_export_client_came(NbdsExport *export)
{
    atomic_fetch_add_explicit(&export->n_clients, 1, memory_order_relaxed);
}

void nbds_export_client_left(NbdsExport *export)
{
    atomic_fetch_sub_explicit(&export->n_clients, 1, memory_order_relaxed);
}

bool nbds_export_try_enter(NbdsExport *export)
{
    if (export->is_removed)
        return false;
    export->n_connections++;
    return true;
}

void nbds_export_leave(NbdsExport *export)
{
    if (--export->n_connections == 0)
        fiber_queue_wake_all(&export->emptied);
}

void nbds_export_count(NbdsExport *export, NbdsOperation operation, uint64_t bytes, bool failed)
{
    nbds_add(&export->stats[operation].n_requests, 1);
    if (failed)
        nbds_add(&export->stats[operation].n_errors, 1);
    else
        nbds_add(&export->stats[operation].bytes, bytes);
}

void nbds_export_count_latency(NbdsExport *export, NbdsOperation operation, uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned i = us ? 64 - (unsigned)__builtin_clzll(us) : 0;
    nbds_add(&export->stats[operation].latency_ns, ns);
    nbds_add(&export->stats[operation].latencies[MIN(i, NBDS_N_LATENCIES - 1)], 1);
}

void nbds_export_get_stats(const NbdsExport *export, NbdsExportStats *ret_stats)
{
    NbdsExport *e = (NbdsExport *)export; // C17 loads atomics through non-const pointers
    for (unsigned i = 0; i < NBDS_N_OPERATIONS; i++) {
        ret_stats->n_requests[i] =
            atomic_load_explicit(&e->stats[i].n_requests, memory_order_relaxed);
        ret_stats->n_errors[i] = atomic_load_explicit(&e->stats[i].n_errors, memory_order_relaxed);
        ret_stats->latency_ns[i] =
            atomic_load_explicit(&e->stats[i].latency_ns, memory_order_relaxed);
        ret_stats->bytes[i] = atomic_load_explicit(&e->stats[i].bytes, memory_order_relaxed);
        for (unsigned l = 0; l < NBDS_N_LATENCIES; l++)
            ret_stats->latencies[i][l] =
                atomic_load_explicit(&e->stats[i].latencies[l], memory_order_relaxed);
    }
    ret_stats->n_in_flight = atomic_load_explicit(&e->n_in_flight, memory_order_relaxed);
    ret_stats->n_clients = atomic_load_explicit(&e->n_clients, memory_order_relaxed);
}

uint64_t nbds_export_size_bytes(const NbdsExport *export)
{
    return atomic_load_explicit(&((NbdsExport *)export)->size_bytes, memory_order_relaxed);
}

NbdsExportInfo nbds_export_info(const NbdsExport *export)
{
    NbdsExportInfo info = export->info;
    info.size_bytes = nbds_export_size_bytes(export);
    if (info.size_bytes != export->info.size_bytes)
        info.padding_bytes = 0;
    return info;
}

Loop *nbds_export_loop(const NbdsExport *export)
{
    return export->server_loop->loop;
}

Port *nbds_export_port(NbdsExport *export)
{
    return &export->port;
}
