// SPDX-License-Identifier: LGPL-2.1-or-later
// The seeded workload of a crash test: fibers that make requests on a node and tell the model. Test
// code only.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/port.h"
#include "crash-harness.h"

typedef struct CrashWorkload {
    const CrashCase *c;
    Sim *sim;
    ShadowModel *model;
    Node *node;
    Port *port;          // on it, which requests enter; NULL: nobody drains it
    unsigned n_requests; // of each fiber
    File *scratch;       // whence data is written by node_write_extent(); NULL: it is not
    uint64_t scratch_end;
    char problem[256]; // the first wrong read; empty when there was none

    // Faults: what failed, and whether it may have.
    uint64_t fault_ns;    // when an operation was made to fail; 0: not yet
    bool has_flush_fault; // flushes, and writes, may fail from then on
    unsigned n_failed, n_failed_late;
    FiberWaitGroup group;
} CrashWorkload;

// Runs it to its end.
void crash_workload_run(Fiber *self, CrashWorkload *w);
// Reads everything and compares, as after a crash, or when all is quiet. 0, -errno of a read, or
// -EILSEQ with `problem` filled. `ret_versions` as in shadow_model_check(), may be NULL.
int crash_compare(Fiber *self, Node *node, const ShadowModel *model, uint32_t *ret_versions,
                  char problem[256]);
