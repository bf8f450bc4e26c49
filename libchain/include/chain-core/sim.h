// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation: loops, files, directories, streams and time on one thread, all decided by one
// seed (which runnable fiber goes next, when and in which order I/O completes, how transfers are
// cut short, what a power cut leaves). A failure replays from its seed. For tests.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "chain-core/file.h"
#include "chain-core/loop.h"
#include "chain-core/stream.h"

typedef struct Sim Sim;

typedef struct SimConfig {
    uint64_t seed;
    bool short_transfers;   // transfers may be cut short (and are continued by File)
    bool inline_completion; // some transfers complete inline, as page-cache hits do
    bool no_punch;          // the file system can neither zero, reserve nor discard ranges
    bool can_copy;          // file_copy() of whole pages, now and then
    uint64_t space_bytes;   // what the files may take in all, in pages of 4 KiB; 0: no limit
    uint32_t max_delay_us;  // completions take 0 … this much virtual time; 0 = 100
    unsigned slow_percent;  // so many of them take up to SIM_SLOW times as long
} SimConfig;
enum { SIM_SLOW = 64 };

Sim *sim_new(const SimConfig *config);
void sim_free(Sim *sim);
Loop *sim_loop_new(Sim *sim); // owned by the sim
// Runs fn(arg) as a fiber of a loop of this sim, and the simulation, until every fiber ended or the
// power was cut. Returns false when the power was cut (fibers are then abandoned, with their stacks
// and memory kept reachable for leak checkers until sim_free()). May be nested with another Sim.
bool sim_run(Sim *sim, FiberFn *fn, void *arg);

// Every file operation (read, write, flush, truncate, zero, discard, reserve, rename, unlink,
// create, dir sync) has a number, from 1. The hook is called before each takes effect and says what
// becomes of it.
typedef enum SimOp {
    SIM_OP_READ,
    SIM_OP_WRITE,
    SIM_OP_FLUSH,
    SIM_OP_TRUNCATE,
    SIM_OP_ZERO,
    SIM_OP_DISCARD,
    SIM_OP_RESERVE,
    SIM_OP_OPEN,
    SIM_OP_RENAME,
    SIM_OP_UNLINK,
    SIM_OP_SYNC_DIR
} SimOp;
typedef struct SimHook SimHook;
struct SimHook {
    // 0: goes ahead; -errno: fails with it; SIM_POWER_CUT: power is cut here.
    int (*fn)(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len);
};
enum { SIM_POWER_CUT = 1 };
void sim_set_hook(Sim *sim, SimHook *hook);
uint64_t sim_n_ops(const Sim *sim);
// How often file_write_out() was called.
unsigned sim_file_n_written_out(const File *file);
// Of all operations, their order and their moments so far: equal for equal seeds.
uint64_t sim_trace_hash(const Sim *sim);

// A new Sim whose durable files are what a power cut now would leave of `sim`: each write since the
// last flush of its file kept, dropped or torn at 512 bytes, in any order, as `seed` decides; names
// since the last directory sync likewise. `sim` itself goes on undisturbed.
Sim *sim_clone_after_power_cut(const Sim *sim, uint64_t seed);

// Direct access for tests, outside any fiber: whole volatile content.
int sim_write_file(Sim *sim, const char *path, const void *data, uint64_t len); // durable at once
int sim_read_file(Sim *sim, const char *path, void **ret_data, uint64_t *ret_len); // g_free()
// Copies between the simulation and a real file (so that qemu-img can look at it).
int sim_export_file(Sim *sim, const char *path, const char *host_path);
int sim_import_file(Sim *sim, const char *path, const char *host_path);
bool sim_file_exists(Sim *sim, const char *path);
// What the files take now, and another limit (see SimConfig.space_bytes).
uint64_t sim_used_bytes(const Sim *sim);
void sim_set_space(Sim *sim, uint64_t bytes);
// What FILE_DIRECT asks of transfers of this file (512 unless set); for later opens.
int sim_set_direct_alignment(Sim *sim, const char *path, uint32_t bytes);
// From now on a block device of the size that the file has: it does not grow (-ENOSPC).
int sim_set_block_device(Sim *sim, const char *path);

// A connected pair of simulated streams on one loop; fragmentation by the seed.
void sim_stream_pair(Loop *loop, Stream **ret_a, Stream **ret_b);
uint64_t sim_random(Sim *sim, uint64_t bound); // 0 … bound-1, from the seed
