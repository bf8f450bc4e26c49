// SPDX-License-Identifier: LGPL-2.1-or-later
// The copy engine: does the work of a work set in chunks, a window of them in flight. It knows
// neither guests nor QMP, nor where a chunk is copied from and to: that is its CopyEngineOps.
//
// The work set is filled from metadata (`find`) while it is worked off, so a job on a large disk
// begins at once. A chunk of data is short and counts: for the window, which is in bytes and gets
// smaller while guests' latency rises (copy-window.h), for the limit on the rate, for progress.
// What is metadata only is found in any length, and done in pieces of tens of MiB, since guests who
// come to that range wait for one of them. What fails stays work, and `failed` says how it goes
// on.
//
// What guests do meanwhile, where they write what a job copies:
//
//     chunk:  taken from the set → reads → holds the range of the target → not stale? → writes
//     guest:  writes to the source, and to the target with its range held → guest_wrote()
//
// That call makes the chunks stale that are under way and overlap: their data may be old, so a
// stale one is dropped and its range is work again. The guest calls before it gives the range up,
// or before what it wrote only to the source is work. A call when its write begins would change
// nothing: a chunk that holds the range before the guest does writes before it, and one after it
// finds itself stale.
//
// On one loop. Chunks run in fibers of their own, or in that of copy_engine_run(), and wait for
// nothing but transfers and ranges; everything else is waited for in copy_engine_run(), between
// them.
#pragma once

#include "chain-core/node.h"
#include "work-set.h"

typedef struct CopyEngine CopyEngine;
typedef struct CopyChunk CopyChunk;

// What a range needs, as `find` sees it.
typedef struct CopyExtent {
    uint64_t len; // from the asked offset, ≥1
    bool is_work; // false: nothing is to be done there
    WorkKind kind;
} CopyExtent;

struct CopyChunk {
    uint64_t off, len; // of one kind
    WorkKind kind;
    // Set by CopyEngineOps.copy:
    uint64_t copied_bytes;                 // really moved; what the limit on the rate is about
    uint64_t shared_bytes;                 // now lie in both files without having been moved
    uint64_t beside_copied, beside_shared; // the same of bytes moved elsewhere, so that it could be
    bool failed_reading;                   // what failed was no write
    // The engine's:
    CopyEngine *engine;
    WorkKind taken_as; // in the set
    uint64_t end;      // of all that was taken from it; what comes after this piece is next
    CopyExtent found;  // that this piece is in
    uint64_t found_end;
    uint64_t taken_bytes; // in flight
    uint64_t moved_bytes; // so far
    bool is_stale;        // a guest has written to it since the piece was begun
    CopyChunk *previous, *next;
};

typedef enum CopyErrorAction {
    COPY_ERROR_FAIL,  // copy_engine_run() ends with the error
    COPY_ERROR_RETRY, // again, after all else (and after a pause, if one is wanted)
    COPY_ERROR_SKIP,  // left out; copy_engine_run() ends with the error when all else is done
} CopyErrorAction;

enum { COPY_AGAIN = 1 }; // from `copy`: nothing was done, the range is work again

typedef int CopyFindFn(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent);

typedef struct CopyEngineOps {
    // What does [off, off+len) need? Called of a range before it is copied. May suspend. 0 or
    // -errno.
    CopyFindFn *find;
    // The same ahead of the copy, for what nobody has changed since its begin. NULL: `find`.
    CopyFindFn *look;
    // Does one chunk: 0, COPY_AGAIN, or -errno. Not cancelled: it ends soon.
    int (*copy)(Fiber *self, void *arg, CopyChunk *chunk);
    // `chunk` has failed. Does not suspend.
    CopyErrorAction (*failed)(void *arg, const CopyChunk *chunk, int error);
    // Is a pause, or the end, wanted? Asked between chunks. NULL: never. When it is,
    // `pause_point` is called with nothing in flight: 0 goes on, negative is the result of
    // copy_engine_run(). Whoever changes the answer calls copy_engine_wake().
    bool (*wants_pause)(void *arg);
    int (*pause_point)(Fiber *self, void *arg);
    // copy_engine_stats() has changed. Does not suspend. NULL: nobody wants to know.
    void (*progress)(void *arg);
} CopyEngineOps;

typedef struct CopyEngineConfig {
    uint64_t size_bytes;
    uint32_t granularity_bits; // of the work set; need not be a cluster's
    uint32_t chunk_bytes;      // of data at most, less in a small window; whole granules
    uint64_t window_bytes;     // of data in flight, at most; chunk_bytes: one after the other
    Node *guests;              // whose latency counts: those above it. Borrowed; NULL: nobody's
    const CopyEngineOps *ops;
    void *arg;
} CopyEngineConfig;

enum {
    COPY_CHUNK_BYTES = 1 << 20,
    COPY_MEMORY_CHUNK_BYTES = 128 << 10, // where nothing waits, so others get their turn soon
    COPY_WINDOW_BYTES = 16 << 20,
};

// Bytes of data, since copy_engine_new().
typedef struct CopyEngineStats {
    uint64_t done;           // what was data when it was done
    uint64_t left;           // known to be work, in flight included; grows while the set is filled
    uint64_t copied, shared; // of what is done
    uint64_t beside_copied, beside_shared; // in addition
    uint64_t found_off;                    // so far `find` has come; size_bytes: all is known
    uint64_t n_again;                      // chunks that were dropped and done again
    uint64_t n_added;                      // times that more work came from outside
    uint64_t window_bytes;
} CopyEngineStats;

CopyEngine *copy_engine_new(Loop *loop, const CopyEngineConfig *config);
void copy_engine_free(CopyEngine *engine); // not while it runs; accepts NULL

// Works until `find` has seen all and nothing is left to be done. 0; -ECANCELED when `self` is
// cancelled; what `pause_point` said; or the first error that was not tried again. Nothing is in
// flight on return. Can be called again, for work that was added, or to go on.
int copy_engine_run(Fiber *self, CopyEngine *engine);
// Suspends until something has changed: more work, or what `wants_pause` looks at.
void copy_engine_wait(Fiber *self, CopyEngine *engine);
// The work set is not filled (again): only what is added is done.
void copy_engine_set_found(CopyEngine *engine, uint64_t off);
// More work, from outside.
void copy_engine_add(CopyEngine *engine, WorkKind kind, uint64_t off, uint64_t len);
// What lies in the range wholly need not be done any more. Chunks under way there are the caller's
// matter (copy_engine_guest_wrote()).
void copy_engine_remove(CopyEngine *engine, uint64_t off, uint64_t len);
WorkSet *copy_engine_work(CopyEngine *engine);
bool copy_engine_is_idle(const CopyEngine *engine); // all seen, nothing left, nothing in flight

// A guest's write, zero or discard has ended, also when it failed.
void copy_engine_guest_wrote(CopyEngine *engine, uint64_t off, uint64_t len);
// For CopyEngineOps.copy, with the range of the target held: must it be dropped?
bool copy_chunk_is_stale(const CopyChunk *chunk);

// Bytes a second; 0: no limit. Holds for a wait under way, too.
void copy_engine_set_speed(CopyEngine *engine, uint64_t bytes_per_s);
// Something that `wants_pause` looks at has changed.
void copy_engine_wake(CopyEngine *engine);
void copy_engine_stats(const CopyEngine *engine, CopyEngineStats *ret_stats);
