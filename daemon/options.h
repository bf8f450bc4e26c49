// SPDX-License-Identifier: LGPL-2.1-or-later
// The command line of chaind, parsed and checked. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/config/config.h"
#include "daemon/qmp/keyval.h"
#include "log.h"
#include "nbd/server.h"

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

// How clients of the --nbd sockets may speak.
typedef struct TlsOption {
    NbdsTlsMode mode;
    char *certificates, *psk_file; // with a mode that is not OFF one of the two; else NULL
    bool verifies_peer;
} TlsOption;

typedef struct Options {
    char **addresses;   // --nbd, NULL-terminated; empty: a private socket
    char **qmp_paths;   // --qmp, NULL-terminated
    char **query_paths; // --qmp-read-only, likewise
    const char *format; // of files without one of their own: "qcow2", "raw" or NULL
    char *snapshot;
    char *description;
    bool read_only, direct, force_share;
    TlsOption tls;
    bool has_tls_mode;  // it was said
    char *config_path;  // --config; NULL: none was said
    bool is_service;    // --service
    bool checks_config; // --check-config: nothing is served
    // Of the command line first, then (options_configure()) of the configuration.
    DaemonSettings daemon;
    uint64_t said;       // of `daemon`: a bit for each key of its table that the command line has
    GPtrArray *disks;    // DiskOption *; at least one, unless there are monitors or startup options
    GPtrArray *startups; // StartupOption *, in their order
    bool daemonize;
    char *pidfile; // NULL: none
} Options;

// 0; 1 when the command line asked only for a text (--help, --version), which was then printed; or
// -EINVAL with a sentence.
int options_parse(int argc, char **argv, Options *ret_options, GError **error);
// Where the configuration is read from; borrowed; NULL: there is none. Then also whether it may be
// absent.
const char *options_config_path(const Options *options, bool *ret_is_optional);
// Whether --nbd-server says where clients are served.
bool options_start_server(const Options *options);
// What the command line leaves open is what the configuration says. -EINVAL with a sentence when
// there is nothing to serve then.
int options_configure(Options *options, const Config *config, GError **error);
void options_clear(Options *options);
