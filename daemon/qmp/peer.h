// SPDX-License-Identifier: LGPL-2.1-or-later
// Whether a socket is for who has connected, and for what. Any thread.
#pragma once

#include "chain-core/socket-process.h"

// What clients of a socket may do, and who they may be.
typedef struct QmpPolicy {
    bool is_read_only; // queries only
    // uid_t and gid_t, references; both NULL: whoever can connect. The daemon's own user and root
    // always may.
    GArray *uids, *gids;
} QmpPolicy;

QmpPolicy qmp_policy_copy(const QmpPolicy *policy); // NULL: everything for everybody
void qmp_policy_clear(QmpPolicy *policy);
// `peer` NULL: unknown, which only a policy that lets everybody in does let in.
bool qmp_policy_allows(const QmpPolicy *policy, const SocketProcess *peer);
