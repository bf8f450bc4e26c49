// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation itself, shared by its driver (sim.c), its files (sim-file.c) and its streams
// (sim-stream.c). One thread. Everything that takes time is an event: due at a virtual moment that
// the seed chose, run by the driver outside any fiber.
#pragma once

#include "chain-core/sim-choice.h"
#include "io/io-loop.h"
#include "sim/sim-disk.h"

typedef struct SimEvent SimEvent;
struct SimEvent {
    uint64_t due_ns;
    const Fiber *fiber; // who waits for it; NULL: not known
    uint64_t hash;      // with a chooser: of what was asked for, and when
    void (*fn)(SimEvent *event);
    // The simulation ends before the event came: frees what it holds. NULL: nothing to free.
    void (*drop)(SimEvent *event);
};

// A fiber that a chooser has seen. Its number follows from what ran before.
typedef struct SimSeen {
    const Fiber *fiber;
    uint64_t received; // a hash of what took effect for it since it last ran
} SimSeen;

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
    // With a chooser (sim-choice.c).
    SimChooser *chooser;
    GArray *actions;       // SimAction
    GArray *seen;          // SimSeen
    uint64_t history;      // a hash of which fiber ran when, with what
    uint64_t n_asked;      // operations, since a fiber began to run
    unsigned picked_fiber; // index in the run queue of the loop that runs one
};

typedef struct SimLoop {
    IoLoop io;
    Sim *sim;
} SimLoop;

static inline Sim *sim_of_loop(const Loop *loop)
{
    return ((const SimLoop *)loop)->sim;
}

// Somebody asks for hashes only where there are choices.
static inline bool sim_has_choices(const Sim *sim)
{
    return sim->chooser && sim->chooser->choose;
}

// A virtual time from now, 0 … the configured maximum. With a chooser: whenever that chooses it.
void sim_schedule(Sim *sim, SimEvent *event);
// With a chooser, before sim_schedule(): what is asked for, as far as that does not follow from
// which fibers ran; and when it takes effect: what its fiber gets to know of it.
void sim_note_asked(Sim *sim, SimEvent *event, uint64_t detail);
void sim_note_received(Sim *sim, const SimEvent *event, uint64_t detail);
// One of the things that can happen, as the chooser wants it. False: nothing can.
bool sim_step_chosen(Sim *sim);
// Suspends the fiber for such a time; with a chooser not at all.
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
