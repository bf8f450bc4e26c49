// SPDX-License-Identifier: LGPL-2.1-or-later
// What may be asked: decides from a decoded header, before anything is allocated or touched,
// whether a request is executed, refused, or ends the connection, and how many payload bytes follow
// it. Pure; any thread.
#pragma once

#include "context.h"
#include "wire.h"

// What a connection agreed on, fixed for its lifetime.
typedef struct NbdsSession {
    NbdsStyle style;
    GPtrArray *contexts; // of NbdsContext, one at least; NULL: none was selected
    uint64_t size_bytes;
    bool read_only;
} NbdsSession;

void nbds_session_done(NbdsSession *session);

typedef enum NbdsAction {
    NBDS_ACTION_EXECUTE,    // once the payload is complete
    NBDS_ACTION_REFUSE,     // answer `error`, skip the payload, go on
    NBDS_ACTION_DISCONNECT, // the client's DISC: finish what is in flight, then close
    NBDS_ACTION_BREACH,     // close
} NbdsAction;

typedef struct NbdsCheck {
    NbdsAction action;
    uint64_t payload_bytes;
    NbdsErrorCode error;
    const char *message; // literal
} NbdsCheck;

// An EXECUTE promises: a known command with flags valid for it, its range inside the export, READ
// and WRITE of at most NBDS_MAX_PAYLOAD, nothing that writes to a read-only export.
NbdsCheck nbds_request_check(const NbdsSession *session, const NbdsRequestHead *head);

// Does a known command change data?
bool nbds_request_changes(const NbdsRequestHead *head);

// 0, or what a known command gets when its range does not lie inside `size_bytes`: -ENOSPC where
// data would be written, -EINVAL elsewhere.
int nbds_request_check_end(const NbdsRequestHead *head, uint64_t size_bytes);

// BLOCK_STATUS whose payload names the contexts: puts the effect length into `head->length` and
// returns them (owned, in the session's order), or EXECUTE replaced by REFUSE.
NbdsCheck nbds_request_check_filter(const NbdsSession *session, const uint8_t *payload,
                                    size_t payload_bytes, NbdsRequestHead *head,
                                    GPtrArray **ret_contexts);
