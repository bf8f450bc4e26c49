// SPDX-License-Identifier: LGPL-2.1-or-later
// One file of the simulated disk: what programs see now, what is durable, and the changes between
// the two. A power cut keeps each of those changes, drops it, or tears it at 512 bytes. No loop, no
// time: when things happen is decided by sim-file.c. One thread.
#pragma once

#include <glib.h>
#include <sys/uio.h>

#include "sim/sim-content.h"
#include "sim/sim-random.h"

enum { SIM_SECTOR_BYTES = 512, SIM_CHANGE_MAX_IOV = 16 };

typedef enum SimChangeKind {
    SIM_CHANGE_WRITE,
    SIM_CHANGE_PUNCH,    // zeros, holes; the size stays
    SIM_CHANGE_TRUNCATE, // the size becomes `off`
    SIM_CHANGE_ALLOCATE, // holes become zeros that have space; the size grows
} SimChangeKind;

// In flight: `data` NULL means that the bytes are still read from the caller's memory (`iov`), as a
// disk may at any moment until the completion. Completed: `data` is its own.
typedef struct SimChange {
    SimChangeKind kind;
    uint64_t off, len;
    uint64_t seq;  // order of completion; 0 in flight
    uint64_t hash; // of what it does, and of what it comes after
    uint8_t *data;
    struct iovec iov[SIM_CHANGE_MAX_IOV];
    unsigned n_iov;
    bool is_doomed; // lost by a failed flush: no later flush makes it durable
} SimChange;

typedef struct SimInode {
    uint32_t n_refs;
    uint64_t ino;
    uint32_t direct_alignment;
    bool is_device; // a block device: its size is fixed
    SimContent now, durable;
    uint64_t last_seq, durable_seq;
    uint64_t durable_hash;
    bool has_doomed;
    GPtrArray *in_flight, *unflushed; // SimChange; unflushed is in the order of completion
    GPtrArray *holders;               // open files of this inode (sim-file.c: locks)
} SimInode;

SimInode *sim_inode_new(uint64_t ino);
SimInode *sim_inode_ref(SimInode *inode);
void sim_inode_unref(SimInode *inode);

// A change is under way. `iov` is copied; its memory must stay as it is, or as it becomes, until
// the end. With `capture` its bytes are taken at once, else at the end.
SimChange *sim_inode_begin(SimInode *inode, SimChangeKind kind, uint64_t off, uint64_t len,
                           const struct iovec *iov, unsigned n_iov, bool capture);
// It happened, for its first `len` bytes.
void sim_inode_end(SimInode *inode, SimChange *change, uint64_t len);
// It failed: nothing of it, or as `random` decides some of its sectors, happened. NULL: nothing.
void sim_inode_fail(SimInode *inode, SimChange *change, SimRandom *random);
uint64_t sim_hash_bytes(uint64_t hash, const void *bytes, size_t len);
// Of the content now and after a power cut, as far as it differs from what it was at first; the
// same whichever of two changes that do not overlap came first.
uint64_t sim_inode_hash(const SimInode *inode);
// begin and end in one.
void sim_inode_change(SimInode *inode, SimChangeKind kind, uint64_t off, uint64_t len,
                      const void *data);

// A flush covers what completed before it began.
typedef struct SimFlush {
    SimContent content;
    uint64_t seq;
    uint64_t hash; // of the changes that it covers
} SimFlush;
SimFlush sim_inode_flush_begin(SimInode *inode);
void sim_inode_flush_end(SimInode *inode, SimFlush *flush);
// What it covered stays visible and is never made durable by a later flush, as with page caches
// that mark failed pages clean.
void sim_inode_flush_fail(SimInode *inode, SimFlush *flush);

// How a power cut treats what was not durable.
typedef struct SimPowerCut {
    SimRandom random;
    enum { SIM_CUT_NONE, SIM_CUT_ALL, SIM_CUT_PREFIX, SIM_CUT_SUBSET } mode;
    unsigned keep_percent, tear_percent;
} SimPowerCut;
SimPowerCut sim_power_cut_make(uint64_t seed);
// The content after the cut; returned owned.
SimContent sim_inode_after_power_cut(const SimInode *inode, SimPowerCut *cut);
