// SPDX-License-Identifier: LGPL-2.1-or-later
// Runs seeded workloads on an image in a simulation and looks at what a power cut at each of its
// file operations would leave, or at what an error at each of them does. Prints TAP. Test code
// only.
//
//     workload fibers ── node ── simulated files ── hook at every operation
//          │                                          │ clones the disk as after a power cut
//     shadow model ◄──────── compares ─────────── opens, checks and reads the clone
#pragma once

#include <glib.h>

#include "chain-core/port.h"
#include "chain-core/sim.h"
#include "shadow-model.h"

typedef struct CrashCase CrashCase;

// An opened image, as CrashCase.open() made it.
typedef struct CrashImage {
    Node *node;
    Port *port; // on it, where requests enter; NULL: nobody drains it
    void *data; // the case's
} CrashImage;

struct CrashCase {
    const char *name;
    const char *rules;      // paragraphs of docs/ordering.md
    uint64_t size_bytes;    // of the disk
    uint32_t cell_bytes;    // requests are multiples of it; 0 = 512
    uint32_t discard_bytes; // whole blocks of this are zeros after a discard; 0: it is a hint only
    bool uses_direct_io, has_no_punch;
    uint64_t space_bytes;  // of the host, which fills up: requests may fail with -ENOSPC; 0: plenty
    bool is_checked_again; // always after the open that follows a cut, which repairs
    // The workload: fibers, requests of each, and weights of the kinds.
    unsigned n_fibers, n_requests;
    unsigned n_write, n_zero, n_discard, n_flush, n_read;
    unsigned fua_percent;
    uint64_t max_request_bytes;
    uint64_t hot_bytes; // three in four requests start within the first bytes; 0: anywhere

    // Puts the durable files of a new disk in place, and says in the model what it shows. Outside
    // any fiber.
    void (*prepare)(const CrashCase *c, Sim *sim, ShadowModel *model);
    int (*open)(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error);
    void (*close)(Fiber *self, const CrashCase *c, CrashImage *image);
    // Is the closed image consistent? Returns NULL, or what is wrong (owned). May be NULL.
    char *(*check)(Fiber *self, const CrashCase *c);
    const char *image_path; // for exports to qemu-img; NULL: none
    const char *export_format;
    const char *export_options; // more of qemu-img check; NULL: none
    const void *data;           // the case's
};

typedef struct CrashOptions {
    uint64_t seed;     // of the first run; --seed
    uint64_t n_points; // at least so many for each case; --points
    double seconds;    // for each case, instead of points; --time
    const char *only;  // name of the one case to run; --case
    bool is_verbose;
} CrashOptions;

// Reads --seed, --points, --time, --case, --verbose. The defaults are in `options`.
void crash_options_parse(CrashOptions *options, int argc, char **argv);

// Power cuts: at every operation but reads, with several outcomes each. True when all was well.
bool crash_run_power_cuts(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points);
// An error (EIO, then ENOSPC where that can be) at the n-th operation, for every n.
bool crash_run_faults(const CrashCase *c, const CrashOptions *options, uint64_t *ret_n_points);

// Runs each case of the list in both modes and prints TAP. Returns the exit status.
int crash_main(const CrashCase *cases, size_t n_cases, CrashOptions options, int argc, char **argv);
