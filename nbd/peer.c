// SPDX-License-Identifier: LGPL-2.1-or-later
#include "peer.h"

NbdsPeer *nbds_peer_new(int fd)
{
    NbdsPeer *peer = g_new0(NbdsPeer, 1);
    socklen_t len = sizeof peer->address;
    if (getpeername(fd, (struct sockaddr *)&peer->address, &len) < 0)
        peer->address.ss_family = AF_UNSPEC;
    peer->process = socket_process_find(fd);
    return peer;
}

void nbds_peer_free(NbdsPeer *peer)
{
    if (!peer)
        return;
    socket_process_free(peer->process);
    g_free(peer);
}
