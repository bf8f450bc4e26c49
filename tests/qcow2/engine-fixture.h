// SPDX-License-Identifier: LGPL-2.1-or-later
// What the engine's tests share: a temporary directory, qemu-img as maker and oracle of images, and
// a loop that runs one fiber over an opened head. Test code only.
#pragma once

#include "chain-core/loop.h"
#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "chain-core/qcow2.h"

typedef struct EngineFixture {
    char *dir;
    MapMemory *memory;
    uint64_t seed;
} EngineFixture;

void engine_fixture_init(EngineFixture *f, uint64_t map_memory_bytes);
void engine_fixture_done(EngineFixture *f);

// Runs a shell command in the directory; fails the test with its output unless it exits 0.
G_GNUC_PRINTF(2, 3) void engine_shell(EngineFixture *f, const char *format, ...);
// The same, returning whether it exited 0.
G_GNUC_PRINTF(2, 3) bool engine_shell_ok(EngineFixture *f, const char *format, ...);

// Runs fn(self, arg) on a new loop.
void engine_run(FiberFn *fn, void *arg);

// Opens `name` in the directory as head (or snapshot) view, with `backing` (may be NULL) below.
// Fails the test on error.
Node *engine_open(Fiber *self, EngineFixture *f, const char *name, const char *snapshot,
                  bool read_only, Node *backing);
Node *engine_open_raw(Fiber *self, EngineFixture *f, const char *name);

// A small, fast, reproducible generator (xorshift64*).
uint64_t engine_random(uint64_t *state, uint64_t bound);
