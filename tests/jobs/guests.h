// SPDX-License-Identifier: LGPL-2.1-or-later
// Guests that write a disk while a job is at work on it, in the simulation, and know what it may
// hold. A block holds its number and a version that only grows, so every sector tells how old it
// is; zeros are versions, too. Each guest has blocks of its own.
#pragma once

#include "../loop/in-fiber.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/sim.h"

enum {
    GUEST_BLOCK = 8192,
    GUEST_BLOCKS = 96,
    GUEST_DISK = GUEST_BLOCK * GUEST_BLOCKS,
    GUEST_WORDS = GUEST_BLOCK / 8,
    GUEST_WORKERS = 4,
    GUEST_MAX_VERSIONS = 4096,
    GUEST_MAX_CHANGES = GUEST_BLOCKS * GUEST_MAX_VERSIONS,
};

typedef struct Versions {
    uint32_t of[GUEST_BLOCKS];
} Versions;

typedef struct GuestChange {
    unsigned block;
    uint32_t version;
} GuestChange;

// Zero-initialised but for the first members.
typedef struct Guests {
    char *what; // for messages; owned by the caller
    bool may_fua;
    bool only_trims; // zeros and discards, almost without a pause
    Sim *sim;
    uint64_t seed;
    MapMemory *memory;    // of images
    const char *raw_path; // of the image that is raw; NULL: none is
    Port port;
    bool stop;
    FiberWaitGroup workers;
    Versions issued, acked, durable;
    bool is_zero[GUEST_BLOCKS][GUEST_MAX_VERSIONS];
    // A discard: zeros, or what was there before, which was acknowledged as this less one. 0: none.
    uint32_t hint_over[GUEST_BLOCKS][GUEST_MAX_VERSIONS];
    GuestChange changes[GUEST_MAX_CHANGES]; // in the order in which they began
    unsigned n_changes, next_worker, n_cuts;
} Guests;

// Runs `fn`, which has the guests in `arg`, to its end; they have a simulation and memory
// meanwhile.
void guests_run(Guests *g, const SimConfig *config, FiberFn *fn, void *arg);
// What `check` finds as if the power was cut at this moment.
void guests_cut_power(Guests *g, FiberFn *check, void *arg);

uint64_t guests_pick(Guests *g, uint64_t bound);
// Of a block that gets a new content; what comes after it, acknowledged or not, is newer.
uint32_t guests_next_version(Guests *g, unsigned block, RequestKind kind);
int guests_change_block(Fiber *self, Guests *g, Node *node, unsigned block, RequestKind kind);
void guests_zero_some(Fiber *self, Guests *g, Node *node); // large enough for any granule

// They write `port` until they are stopped.
void guests_start(Fiber *self, Guests *g);
void guests_stop(Fiber *self, Guests *g);
void guests_flush(Fiber *self, Guests *g);
void guests_read_all(Fiber *self, Guests *g);

// Every sector as new as `least` or newer, but not newer than `most`.
void guests_check_block(const Guests *g, const char *where, unsigned block, const uint64_t *words,
                        uint32_t least, uint32_t most);
void guests_check_node(Fiber *self, const Guests *g, const char *where, Node *node,
                       const Versions *least, const Versions *most);
// All that the node shows is of one moment, after the first `n_before` of the changes.
void guests_check_moment(Fiber *self, const Guests *g, const char *where, Node *node,
                         unsigned n_before);
