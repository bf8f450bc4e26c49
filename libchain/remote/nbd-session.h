// SPDX-License-Identifier: LGPL-2.1-or-later
// One connection to an NBD server, through libnbd, whose handle is driven by two fibers of the
// loop: one waits until the server sends, one until it takes more. Requests come from any fibers
// and are in flight together. On the loop, unless said otherwise.
#pragma once

#include <glib.h>

#include "chain-core/node.h"
#include "remote/nbd-address.h"

typedef struct NbdSession NbdSession;

// What the server said of the export.
typedef struct NbdSessionFacts {
    uint64_t size_bytes;
    bool read_only;
    bool can_flush, can_fua, can_trim, can_zero, can_fast_zero, has_status;
    uint32_t min_bytes, preferred_bytes; // powers of two
    uint32_t max_bytes;                  // of one read or write; a multiple of min_bytes
} NbdSessionFacts;

// Called once, when the connection is lost, on the loop; must not suspend.
typedef void NbdSessionLostFn(void *arg);

// Connects, and goes through the handshake. Takes no longer than `timeout_ns` for each of the two.
// Negative with a sentence.
int nbd_session_open(Fiber *self, const NbdAddress *address, uint64_t timeout_ns,
                     NbdSession **ret_session, GError **error);
// From now on its fibers run, on `loop`; `lost` may be called. Again after each pause.
int nbd_session_start(NbdSession *session, Loop *loop, NbdSessionLostFn *lost, void *arg);
// Ends its fibers; no request may be in flight.
void nbd_session_pause(Fiber *self, NbdSession *session);
// Cuts the connection, which is then lost: requests in flight fail with -ENOTCONN. Must not
// suspend.
void nbd_session_cut(NbdSession *session);
// Cuts it, and closes. Accepts NULL.
void nbd_session_close(Fiber *self, NbdSession *session);

const NbdSessionFacts *nbd_session_facts(const NbdSession *session);
// A request, with success or an error.
bool nbd_session_has_answered(const NbdSession *session);

// Each is one request: bounds and sizes are those of the facts, offsets and lengths multiples of
// min_bytes. 0, what the server answered, or -ENOTCONN: the connection is lost, and nobody knows
// whether it was carried out.
int nbd_session_read(Fiber *self, NbdSession *s, uint64_t off, void *buf, size_t len);
int nbd_session_write(Fiber *self, NbdSession *s, uint64_t off, const void *buf, size_t len,
                      bool is_fua);
int nbd_session_zero(Fiber *self, NbdSession *s, uint64_t off, uint64_t len, NodeIoFlags flags);
int nbd_session_trim(Fiber *self, NbdSession *s, uint64_t off, uint64_t len, bool is_fua);
int nbd_session_flush(Fiber *self, NbdSession *s);

// The first extent at `off`: the server's flags (bit 0 hole, bit 1 zero) and its length.
typedef struct NbdExtent {
    uint64_t len; // ≥1
    uint32_t flags;
} NbdExtent;
int nbd_session_status(Fiber *self, NbdSession *s, uint64_t off, uint64_t len,
                       NbdExtent *ret_extent);
