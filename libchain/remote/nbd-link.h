// SPDX-License-Identifier: LGPL-2.1-or-later
// A link to an export of an NBD server: a session, and after a lost connection the next one, by
// itself. On its loop; the functions with `self` may suspend.
#pragma once

#include "chain-core/driver.h"
#include "remote/nbd-session.h"

typedef struct NbdLink NbdLink;

typedef struct NbdLinkOptions {
    bool is_writable;
    uint64_t reconnect_delay_ns; // requests wait so long for a new connection, then they fail
    uint64_t open_timeout_ns;    // the first connection is tried again for so long; 0: once
    const NodeEvents *events;    // borrowed, outlives the link; may be NULL
} NbdLinkOptions;

// Takes `address`, also on failure. Negative with a sentence.
int nbd_link_open(Fiber *self, NbdAddress *address, const NbdLinkOptions *options,
                  NbdLink **ret_link, GError **error);
// No request may be in flight.
void nbd_link_close(Fiber *self, NbdLink *link);
// To another loop: no request may be in flight, or made before nbd_link_attach().
void nbd_link_detach(Fiber *self, NbdLink *link);
void nbd_link_attach(NbdLink *link, Loop *loop);

// Requests, also those in flight, fail from now on. Must not suspend.
void nbd_link_give_up(NbdLink *link);

// What is written from now on, or no longer; negative with a sentence where the export is
// read-only.
int nbd_link_set_writable(NbdLink *link, bool is_writable, GError **error);

// Of the connection that is there, or was there last. The size stays.
const NbdSessionFacts *nbd_link_facts(const NbdLink *link);

typedef enum NbdOp { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_TRIM, NBD_STATUS } NbdOp;

// One request, as it goes over the wire (nbd-session.h has the rules).
typedef struct NbdCommand {
    NbdOp op;
    uint64_t off, len;
    void *buf; // READ; not changed by WRITE
    NodeIoFlags flags;
    NbdExtent extent; // STATUS: its answer
} NbdCommand;

// 0, -ENOSPC, -ENOTSUP, -ENOMEM, or -EIO for all that is wrong with the server and the connection.
int nbd_link_request(Fiber *self, NbdLink *link, NbdCommand *command);
// What has been acknowledged is durable: 0. -EIO, once, also when that can no longer be told.
int nbd_link_flush(Fiber *self, NbdLink *link);
