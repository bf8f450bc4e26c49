// SPDX-License-Identifier: LGPL-2.1-or-later
// Option haggling as a function: one option in, bytes to send and a verdict out. It knows the
// exports only as a table of facts and does no I/O, so a fuzzer can drive it. Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "meta-context.h"
#include "wire.h"

// What clients may know of an export. Fixed while it exists.
typedef struct NbdsExportInfo {
    uint64_t serial; // differs for every export a server ever had
    const char *name;
    const char *description; // never NULL
    uint64_t size_bytes;
    uint32_t preferred_bytes; // power of 2, 512 … NBDS_MAX_PAYLOAD
    bool read_only;
} NbdsExportInfo;

typedef struct NbdsExportTable {
    const NbdsExportInfo *const *exports;
    unsigned n_exports;
} NbdsExportTable;

// The export that `name` chooses: the one of this name; for "" else the only one. NULL if none.
const NbdsExportInfo *nbds_export_table_find(const NbdsExportTable *table, const uint8_t *name,
                                             size_t len);

// What one client negotiated so far. Zero-initialise.
typedef struct NbdsHandshake {
    bool no_zeroes;
    NbdsStyle style;
    NbdsContextSet contexts; // selected for the export with `contexts_serial`
    uint64_t contexts_serial;
    unsigned n_options;
} NbdsHandshake;

typedef enum NbdsVerdict {
    NBDS_VERDICT_CONTINUE, // send the output, read the next option
    NBDS_VERDICT_TRANSMIT, // send the output, then serve *ret_export
    NBDS_VERDICT_CLOSE,    // send the output, then close
} NbdsVerdict;

// False: unknown flags, close.
bool nbds_handshake_client_flags(NbdsHandshake *h, uint32_t flags);

// Executes one option whose `len` ≤ NBDS_MAX_OPTION_BYTES data bytes are complete; appends replies
// to `out`. With `stopping` everything but ABORT is refused. At NBDS_VERDICT_TRANSMIT `h->contexts`
// holds what is selected for *ret_export.
NbdsVerdict nbds_handshake_option(NbdsHandshake *h, const NbdsExportTable *table, bool stopping,
                                  uint32_t option, const uint8_t *data, uint32_t len,
                                  GByteArray *out, const NbdsExportInfo **ret_export);

// Transmission flags of `export` under what was negotiated.
uint16_t nbds_handshake_transmission_flags(const NbdsHandshake *h, const NbdsExportInfo *export);
