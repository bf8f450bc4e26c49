// SPDX-License-Identifier: LGPL-2.1-or-later
// The command line of chaind, parsed and checked. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/qmp/keyval.h"
#include "log.h"

// Of what goes to clients (names, descriptions); NBD allows no more.
enum { OPTIONS_MAX_STRING = 4096 };

// One FILE argument.
typedef struct DiskOption {
    char *name; // of the export; "" is the default export
    char *file;
    const char *format; // its own, "qcow2" or "raw", or NULL
} DiskOption;

// Options of qemu-storage-daemon, which name things by the commands that make them.
typedef enum StartupKind {
    STARTUP_BLOCKDEV,
    STARTUP_EXPORT,
    STARTUP_NBD_SERVER,
    STARTUP_OBJECT,
    STARTUP_CHARDEV,
    STARTUP_MONITOR,
} StartupKind;

typedef struct StartupOption {
    StartupKind kind;
    char *text;   // as it was given: "--blockdev driver=…"
    json_t *args; // an object
    QmpInput input;
} StartupOption;

typedef struct Options {
    char **addresses;   // --nbd, NULL-terminated; empty: a private socket
    char **qmp_paths;   // --qmp, NULL-terminated
    const char *format; // of files without one of their own: "qcow2", "raw" or NULL
    char *snapshot;
    char *description;
    bool read_only, direct, force_share;
    unsigned max_connections; // 0: as many as there is memory for
    unsigned n_loops;         // 0: as many as there are disks, at most one per CPU
    uint64_t map_memory_bytes;
    unsigned busy_poll_us; // LoopConfig's, where there is more than one CPU
    LogLevel log_level;
    GPtrArray *disks;    // DiskOption *; at least one, unless there are monitors or startup options
    GPtrArray *startups; // StartupOption *, in their order
    bool daemonize;
    char *pidfile; // NULL: none
} Options;

// 0; 1 when the command line asked only for a text (--help, --version), which was then printed; or
// -EINVAL with a sentence.
int options_parse(int argc, char **argv, Options *ret_options, GError **error);
void options_clear(Options *options);
