// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation itself, shared by its driver (sim.c), its files (sim-file.c) and its streams
// (sim-stream.c). One thread. Everything that takes time is an event: due at a virtual moment that
// the seed chose, run by the driver outside any fiber.
#pragma once

#include "chain-core/sim.h"
#include "io/io-loop.h"
#include "sim/sim-disk.h"

typedef struct SimEvent SimEvent;
struct SimEvent {
    uint64_t due_ns;
    void (*fn)(SimEvent *event);
    // The simulation ends before the event came: frees what it holds. NULL: nothing to free.
    void (*drop)(SimEvent *event);
};

struct Sim {
    SimConfig config;
    SimRandom random;
    uint64_t now_ns;
    uint64_t n_ops;
    uint64_t trace_hash;
    bool is_power_cut;
    SimHook *hook;
    SimDisk disk;
    uint64_t device;   // st_dev of its files
    GPtrArray *events; // SimEvent, each owned by whoever scheduled it
    GPtrArray *loops;  // SimLoop, owned
};

typedef struct SimLoop {
    IoLoop io;
    Sim *sim;
} SimLoop;

static inline Sim *sim_of_loop(const Loop *loop)
{
    return ((const SimLoop *)loop)->sim;
}

// A virtual time from now, 0 … the configured maximum.
void sim_schedule(Sim *sim, SimEvent *event);
// Suspends the fiber for such a time.
void sim_delay(Fiber *self, const char *where);
// Adds what happened to the hash of the run.
void sim_trace(Sim *sim, uint64_t what, uint64_t detail);
// Do the holes of [off, off+len) find space?
bool sim_has_space(const Sim *sim, const SimInode *inode, uint64_t off, uint64_t len);
// Numbers the operation and asks the hook. 0, -errno or SIM_POWER_CUT, which is noted.
int sim_ask_hook(Sim *sim, SimOp op, const char *path, uint64_t off, uint64_t len);

// IoBackend, in sim-file.c.
int sim_file_open(Fiber *self, Loop *loop, const char *path, FileOpenFlags flags, File **ret_file,
                  GError **error);
int sim_file_rename(Fiber *self, const char *from, const char *to, GError **error);
int sim_file_unlink(Fiber *self, const char *path, GError **error);
int sim_file_sync_dir(Fiber *self, const char *path_in_dir, GError **error);
