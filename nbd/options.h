// SPDX-License-Identifier: LGPL-2.1-or-later
// The options of the handshake, as a function: one option in, bytes to send and a verdict out. It
// knows the exports only as a table of facts and does no I/O, so a fuzzer can drive it. Pure; any
// thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "export-table.h"
#include "nbd/server.h"
#include "wire.h"

// What one client negotiated so far. Zero-initialise, nbds_options_done().
typedef struct NbdsOptions {
    bool no_zeroes;
    NbdsStyle style;
    GPtrArray *contexts; // selected for the export with `contexts_serial`; NULL: none
    uint64_t contexts_serial;
    unsigned n_options;
    NbdsTlsMode tls; // what the listener says
    bool is_secure;  // TLS is in use
    // Also what the client may not use, to tell it so; NULL: there is no more than it may.
    const NbdsExportTable *all;
} NbdsOptions;

typedef enum NbdsVerdict {
    NBDS_VERDICT_CONTINUE,  // send the output, read the next option
    NBDS_VERDICT_LIST,      // send the table's list, read the next option
    NBDS_VERDICT_START_TLS, // send the output, then TLS, nbds_options_secured(), the next option
    NBDS_VERDICT_TRANSMIT,  // send the output, then serve *ret_export
    NBDS_VERDICT_CLOSE,     // send the output, then close
} NbdsVerdict;

void nbds_options_done(NbdsOptions *h);

// TLS has begun: what the client, or somebody in its place, said before is forgotten, except its
// flags.
void nbds_options_secured(NbdsOptions *h);

// False: unknown flags, close.
bool nbds_options_client_flags(NbdsOptions *h, uint32_t flags);

// Executes one option whose `len` data bytes are complete, or were dropped when they are more than
// NBDS_MAX_OPTION_BYTES (`data` is then not used); appends replies to `out`. With `stopping`
// everything but ABORT is refused. At NBDS_VERDICT_TRANSMIT `h->contexts` holds what is selected
// for *ret_export.
NbdsVerdict nbds_options_execute(NbdsOptions *h, const NbdsExportTable *table, bool stopping,
                                 uint32_t option, const uint8_t *data, uint32_t len,
                                 GByteArray *out, const NbdsExportInfo **ret_export);

// Transmission flags of `export` under what was negotiated.
uint16_t nbds_options_transmission_flags(const NbdsOptions *h, const NbdsExportInfo *export);
