// SPDX-License-Identifier: LGPL-2.1-or-later
#include "peer.h"

QmpPolicy qmp_policy_copy(const QmpPolicy *policy)
{
    if (!policy)
        return (QmpPolicy){0};
    return (QmpPolicy){
        .is_read_only = policy->is_read_only,
        .uids = policy->uids ? g_array_ref(policy->uids) : NULL,
        .gids = policy->gids ? g_array_ref(policy->gids) : NULL,
    };
}

void qmp_policy_clear(QmpPolicy *policy)
{
    g_clear_pointer(&policy->uids, g_array_unref);
    g_clear_pointer(&policy->gids, g_array_unref);
}

bool qmp_policy_allows(const QmpPolicy *policy, const SocketProcess *peer)
{
    if (!policy->uids && !policy->gids)
        return true;
    return peer && socket_process_is_one_of(peer, policy->uids, policy->gids);
}
