// SPDX-License-Identifier: LGPL-2.1-or-later
// The NBD server: listeners, exports and the connections between them. One server spans several
// loops: a listener accepts on its loop, a client that has chosen an export is handed to that
// export's loop. Naming, opening and closing disks is the caller's business.
//
// Start:  nbds_server_new, nbds_server_add_export (on each node's loop), nbds_server_add_listener.
// Stop:   nbds_server_stop and nbds_server_remove_export (on each export's loop), in any order or
//         at the same time; then nbds_server_free.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "chain-core/fiber.h"
#include "chain-core/loop.h"
#include "chain-core/port.h"
#include "chain-core/socket-process.h"
#include "chain-core/throttle-group.h"
#include "chain-core/tls-authz.h"
#include "chain-core/tls-creds.h"

typedef struct NbdsServer NbdsServer;
typedef struct NbdsExport NbdsExport;
typedef struct NbdsListener NbdsListener;

// Zero stands for the default in parentheses.
typedef struct NbdsLimits {
    // Clients over all listeners; more wait in the backlog (none: as far as descriptors and memory
    // go).
    unsigned max_connections;
    // Unfinished handshakes per loop; when another client waits, the oldest is dropped, once it is
    // older than the grace (256, 1 s).
    unsigned max_handshakes;
    uint64_t handshake_grace_ns;
    uint64_t handshake_timeout_ns; // from accept to the end of the handshake (10 s)
    uint64_t stop_timeout_ns;      // how long a stop waits for clients to take replies (5 s)
    unsigned max_requests;         // in flight per connection (256)
    uint64_t max_bytes;            // in flight per connection; at least one request fits (64 MiB)
    uint64_t max_loop_bytes; // in flight per loop beyond each connection's first MiB (256 MiB)
    // A client that holds some of those, and neither goes on sending nor takes its replies for so
    // long while others wait for them, is disconnected (10 s).
    uint64_t stall_timeout_ns;
} NbdsLimits;

// Why a client had to wait, or was turned away.
typedef enum NbdsFull {
    NBDS_FULL_NOT,
    NBDS_FULL_CONNECTIONS, // max_connections
    NBDS_FULL_DESCRIPTORS, // the process's limit; some are left to what else the process opens
    NBDS_FULL_MEMORY,
    NBDS_FULL_HANDSHAKES, // unfinished ones were dropped for it
    NBDS_FULL_N_REASONS
} NbdsFull;

// Who is at the other end of a connection.
typedef struct NbdsPeer {
    struct sockaddr_storage address; // AF_UNIX, AF_INET, AF_INET6; AF_UNSPEC: not known
    SocketProcess *process;          // of a unix socket; NULL: none, or not known
    const char *identity;            // what TLS has verified; NULL: nothing
} NbdsPeer;

typedef struct NbdsServerConfig {
    NbdsLimits limits;
    // Whether `peer` may use the export of that name: for others it is not listed, and choosing it
    // is refused. Called in handshakes, on the loop of a listener; must not block. NULL: everybody.
    bool (*may_use)(void *arg, const NbdsPeer *peer, const char *name);
    // Called when the last client left, on the loop that served it; must not block (socket
    // activation: the daemon ends then). May be NULL.
    void (*last_client_left)(void *arg);
    // Called when nbds_server_n_clients() is another number, on any loop; must not block. May be
    // NULL.
    void (*clients_changed)(void *arg);
    // Called once per reason and episode, which ends when for a minute nobody had to wait; on the
    // loop of a listener or of a client; must not block. May be NULL.
    void (*full)(void *arg, NbdsFull why);
    // Called when TLS failed with a client, at most once a second; on the loop of a listener; must
    // not block. May be NULL.
    void (*tls_failed)(void *arg, const char *sentence);
    void *arg;
} NbdsServerConfig;

// How clients of a listener may speak: plain; plain or, when they ask for it, TLS; TLS only.
typedef enum NbdsTlsMode { NBDS_TLS_OFF, NBDS_TLS_OPTIONAL, NBDS_TLS_REQUIRED } NbdsTlsMode;

typedef struct NbdsTls {
    NbdsTlsMode mode;
    TlsCreds *creds; // of a server; NULL: mode OFF
    TlsAuthz *authz; // who may connect with TLS; NULL: whoever the credentials let
} NbdsTls;

// Another one, with references of its own; nbds_tls_clear(). NULL: OFF.
NbdsTls nbds_tls_copy(const NbdsTls *tls);
void nbds_tls_clear(NbdsTls *tls);

NbdsServer *nbds_server_new(const NbdsServerConfig *config);
// After nbds_server_stop() and the removal of every export. Accepts NULL.
void nbds_server_free(NbdsServer *server);

typedef struct NbdsExportConfig {
    const char *name;        // "" is the default export; ≤ 4096 bytes of UTF-8
    const char *description; // NULL: none; same bound
    Node *node;              // takes its own reference
    bool read_only;          // also when the node is
    bool becomes_writable;   // then not: the node will be written, and refuses it until then
    // DirtyBitmap *, of the node or one below: clients see them as "qemu:dirty-bitmap:NAME". All
    // have names, different ones, and bits, and may be used; they are busy from here on until the
    // export's end. NULL: none.
    const GPtrArray *bitmaps;
    bool writethrough;     // each write is durable before its reply
    bool allocation_depth; // clients may ask for qemu:allocation-depth
    // At the node's end, for clients that can address whole sectors only: a client that asks for
    // the block sizes, and so will honour that the minimum is 1, is told a size without them.
    uint32_t padding_bytes;
} NbdsExportConfig;

// On the node's loop, which becomes the export's. Visible to clients at once. -EINVAL or -EEXIST
// with a sentence.
int nbds_server_add_export(NbdsServer *server, const NbdsExportConfig *config,
                           NbdsExport **ret_export, GError **error);
// On the export's loop. Clients can no longer choose it; those it has are drained (as in
// nbds_server_stop()) and disconnected; then the node's reference is dropped and the export freed.
void nbds_server_remove_export(Fiber *self, NbdsExport *export);

// From now on its clients' requests wait as the limits of `group` (taken; NULL: none) say;
// what waits at the change goes on. On the export's loop; never suspends.
void nbds_export_set_throttle(NbdsExport *export, ThrottleGroup *group);

// The export's node was resized, or replaced by one of another size: clients that connect from now
// on see the new size, without padding; those it has keep theirs, and requests past a new end fail.
// On its loop.
void nbds_server_refresh_size(NbdsExport *export);

// Accepts clients from the listening socket `fd` (taken) on `loop`. References of `tls` are taken;
// NULL: OFF. Any thread. Borrowed, until it is removed or the server freed.
NbdsListener *nbds_server_add_listener(NbdsServer *server, Loop *loop, int fd, const NbdsTls *tls);
// Accepts no more from it, and closes its socket; the clients that it has stay. From a fiber of any
// loop, not while the server is stopped.
void nbds_server_remove_listener(Fiber *self, NbdsServer *server, NbdsListener *listener);
// How those may speak that it accepts from now on; references are taken. Likewise.
void nbds_listener_set_tls(Fiber *self, NbdsListener *listener, const NbdsTls *tls);

// What `may_use` answers has changed: handshakes under way ask again. Any thread.
void nbds_server_refresh_access(NbdsServer *server);

// Stops accepting. Requests in flight end and are answered, later ones are answered ESHUTDOWN, then
// each client is disconnected. Returns when none is left; clients that do not take their replies
// are cut off after the stop timeout. From a fiber of any loop; all loops must be running. Once.
void nbds_server_stop(Fiber *self, NbdsServer *server);

// Clients connected now, handshakes included. Any thread.
unsigned nbds_server_n_clients(const NbdsServer *server);
// Requests that are executed on that loop now. Any thread.
uint64_t nbds_server_n_executing(NbdsServer *server, const Loop *loop);

typedef enum NbdsOperation {
    NBDS_OPERATION_READ,
    NBDS_OPERATION_WRITE,
    NBDS_OPERATION_FLUSH,
    NBDS_OPERATION_TRIM,
    NBDS_OPERATION_CACHE,
    NBDS_OPERATION_WRITE_ZEROES,
    NBDS_OPERATION_BLOCK_STATUS,
    NBDS_N_OPERATIONS
} NbdsOperation;

// Latencies are counted by their binary logarithm in microseconds: [0] below 1 us, [i] from 2^(i-1)
// us to below 2^i, the last also above. In turns of the loop: what is answered in the turn in which
// it came counts as 0.
enum { NBDS_N_LATENCIES = 24 };

typedef struct NbdsExportStats {
    uint64_t n_requests[NBDS_N_OPERATIONS]; // answered, errors included
    uint64_t n_errors[NBDS_N_OPERATIONS];
    uint64_t bytes[NBDS_N_OPERATIONS]; // of those answered without error
    // Of those that were executed, from their start to their reply: query-blockstats will read it.
    uint64_t latencies[NBDS_N_OPERATIONS][NBDS_N_LATENCIES];
    uint64_t latency_ns[NBDS_N_OPERATIONS]; // the sum of these times
    uint64_t n_in_flight;
    unsigned n_clients; // also those that were told that they are in, and are on their way
} NbdsExportStats;
// A snapshot; any thread, never waits for a loop.
void nbds_export_get_stats(const NbdsExport *export, NbdsExportStats *ret_stats);

uint64_t nbds_export_size_bytes(const NbdsExport *export);
Loop *nbds_export_loop(const NbdsExport *export);
// Where this export's requests enter the graph (port_replace(), drain). On the export's loop.
Port *nbds_export_port(NbdsExport *export);
