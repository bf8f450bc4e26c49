// SPDX-License-Identifier: LGPL-2.1-or-later
// The server as listeners, handshakes and connections see it: its limits, what it offers, and how
// many clients it has. Any thread.
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "export.h"
#include "nbd/server.h"

struct NbdsServer {
    NbdsLimits limits; // defaults filled in
    bool (*may_use)(void *arg, const NbdsPeer *peer, const char *name);
    void (*last_client_left)(void *arg);
    void (*clients_changed)(void *arg);
    void (*full)(void *arg, NbdsFull why);
    void (*tls_failed)(void *arg, const char *sentence);
    void *arg;

    // Protects the lists only and is never held over a call that waits; connections take it when
    // the exports changed since the last handshake, and when they leave a full server.
    pthread_mutex_t lock; // sanitizers do not see GLib's
    GPtrArray *exports;   // of NbdsExport, one reference each
    GPtrArray *loops;     // of NbdsServerLoop, owned
    GPtrArray *listeners; // of NbdsListener, owned
    uint64_t next_serial;
    NbdsExportTable *table; // as of `table_generation`, or NULL
    unsigned table_generation;

    // Changes with every export added, resized or removed, and with who may use them.
    atomic_uint generation;
    atomic_bool is_stopping;
    atomic_uint n_clients;
    // Everything that must be gone before a stop returns (listeners, connections, the server's own
    // running state) holds one; whoever releases the last one wakes the stopping fiber.
    atomic_uint n_alive;
    atomic_bool wants_room;                        // some loop does
    _Atomic uint64_t full_ns[NBDS_FULL_N_REASONS]; // when it last was; 0: never
    _Atomic uint64_t tls_failed_ns;                // when that was last told
    Fiber *stopper;
    LoopCall stopped_call;
    bool is_stopped; // on the stopper's loop
};

// The exports now, returned owned; `owners` are the NbdsExports.
NbdsExportTable *nbds_server_export_table(NbdsServer *server);

// Its part on `loop`, made at first use. With the lock held.
NbdsServerLoop *nbds_server_get_loop(NbdsServer *server, Loop *loop);

// One client more, unless the server has as many as it may have.
bool nbds_server_try_enter(NbdsServer *server);
// It is gone (its last act: the server may be freed meanwhile).
void nbds_server_leave(NbdsServer *server);
void nbds_server_hold(NbdsServer *server);
void nbds_server_release(NbdsServer *server);

// On `server_loop`, for a listener that is about to wait in server_loop->room: the next client that
// leaves wakes it. True when none that left before may have seen that: look once more.
bool nbds_server_want_room(NbdsServerLoop *server_loop);
// A client waits, or was turned away: NbdsServerConfig's `full` hears of the first of an episode.
void nbds_server_report_full(NbdsServer *server, NbdsFull why, uint64_t now_ns);
// To NbdsServerConfig's `tls_failed`, unless another was reported in the second before.
void nbds_server_report_tls(NbdsServer *server, const char *sentence, uint64_t now_ns);
