// SPDX-License-Identifier: LGPL-2.1-or-later
// An export: a name bound to a port on the graph. Its facts and statistics may be read from any
// thread while a reference is held; the port and the connections only on its loop.
#pragma once

#include <stdatomic.h>

#include "chain-core/port.h"
#include "export-table.h"
#include "nbd/server.h"
#include "server-loop.h"

struct NbdsExport {
    NbdsExportInfo info; // what it points to is owned; its size is the one at first
    _Atomic uint64_t size_bytes;
    // The one it lives on; written there. Others may find it stale: what comes to a loop that it
    // has left is sent on.
    _Atomic(NbdsServerLoop *) server_loop;
    atomic_uint n_refs;     // memory only
    atomic_bool is_removed; // no client may enter any more
    Port port;
    char *owner;              // of the port
    FiberQueue emptied;       // the remover, or who moves it, waiting for the last connection
    bool is_moving;           // connections that come are parked (export-move.c)
    GQueue parked;            // NbdsConnection
    NbdsServerLoop *moved_to; // while it is moving, once it is there
    bool has_privileged;      // admission.h
    bool is_writethrough;
    ThrottleGroup *throttle_group; // a reference; NULL: no limits
    bool sparse_reads_pay;         // see request-read.c
    uint8_t n_reads_to_probe;

    // Read by any thread; written by the loop, but for n_clients.
    struct {
        _Atomic uint64_t n_requests, n_errors, bytes, latency_ns, latencies[NBDS_N_LATENCIES];
    } stats[NBDS_N_OPERATIONS];
    _Atomic uint64_t n_in_flight;
    atomic_uint n_clients;
    unsigned n_connections; // inside; of the loop
};

NbdsExport *nbds_export_new(NbdsServerLoop *server_loop, const NbdsExportConfig *config,
                            uint64_t serial, GError **error);
NbdsExport *nbds_export_ref(NbdsExport *export);
void nbds_export_unref(NbdsExport *export); // accepts NULL

// What a client that comes now is told; any thread.
NbdsExportInfo nbds_export_info(const NbdsExport *export);

// Of the node that it has now; on its loop.
uint32_t nbds_export_preferred_bytes(const NbdsExport *export);

// One client more or less, from before it is told that it is in until it is gone: it may be on its
// way to the export's loop. Any thread.
void nbds_export_client_came(NbdsExport *export);
void nbds_export_client_left(NbdsExport *export);

// One connection more or less; on the export's loop. False: the export is being removed.
bool nbds_export_try_enter(NbdsExport *export);
void nbds_export_leave(NbdsExport *export);

// Statistics of one answered request; on the export's loop.
void nbds_export_count(NbdsExport *export, NbdsOperation operation, uint64_t bytes, bool failed);
void nbds_export_count_latency(NbdsExport *export, NbdsOperation operation, uint64_t ns);
