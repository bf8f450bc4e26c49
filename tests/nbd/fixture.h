// SPDX-License-Identifier: LGPL-2.1-or-later
// A server for tests: one or two io_uring loops in threads of their own, memory nodes behind its
// exports, a unix socket in a temporary directory. The test's thread plays the clients.
#pragma once

#include "client.h"
#include "memory-node.h"
#include "nbd/server.h"

enum { FIXTURE_MAX_EXPORTS = 4 };

typedef struct FixtureConfig {
    NbdsLimits limits;                      // times that are 0: an hour
    unsigned n_exports;                     // 0: one
    const char *names[FIXTURE_MAX_EXPORTS]; // NULL: ""
    uint64_t size_bytes;                    // 0: 1 MiB
    bool read_only;
    unsigned max_fibers;   // per loop; 0: the loop's default
    uint64_t busy_poll_ns; // LoopConfig's
    bool two_loops;        // exports on a second loop, the listener on the first
    NbdsTls tls;           // OFF without it
    bool (*may_use)(void *arg, const NbdsPeer *peer, const char *name); // `arg`: the fixture
    bool spreads_exports; // then the exports on both in turn, the second loop first
} FixtureConfig;

typedef struct Fixture {
    Loop *loops[2];
    GThread *threads[2];
    unsigned n_loops;
    NbdsServer *server;
    NbdsListener *listener;
    unsigned n_exports;
    NbdsExport *exports[FIXTURE_MAX_EXPORTS];
    MemoryNode *nodes[FIXTURE_MAX_EXPORTS];
    char *dir, *socket_path;
    atomic_uint n_times_empty; // calls of last_client_left
    atomic_uint n_full[NBDS_FULL_N_REASONS];
    atomic_uint n_tls_failures; // told
    GThread *stopper;
} Fixture;

Fixture *fixture_new(const FixtureConfig *config);
// Stops the server gracefully (unless done), removes the exports, joins the threads.
void fixture_free(Fixture *f);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Fixture, fixture_free)

// Runs fn(arg) in a fiber of the loop that has the exports (the first one), and waits for its end.
void fixture_run(Fixture *f, FiberFn *fn, void *arg);
void fixture_hold(Fixture *f, unsigned export_index);
void fixture_release(Fixture *f, unsigned export_index);
void fixture_remove_export(Fixture *f, unsigned export_index);
// Starts nbds_server_stop() and returns once the server is stopping; fixture_free() waits for it.
void fixture_begin_stop(Fixture *f);

// Wait until a number is at least, or exactly, what it shall be; fail the test after HANG_S.
void wait_at_least(atomic_uint *counter, unsigned value);
void wait_for_clients(Fixture *f, unsigned n);
