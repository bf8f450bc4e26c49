// SPDX-License-Identifier: LGPL-2.1-or-later
// What cannot be found out stays unknown: nobody is let in for it. Any thread.
#include "chain-core/socket-process.h"

#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

G_STATIC_ASSERT(sizeof(uid_t) == sizeof(uint32_t) && sizeof(gid_t) == sizeof(uint32_t));

static GArray *find_groups(int fd)
{
    socklen_t len = 0;
    GArray *groups = g_array_new(false, true, sizeof(gid_t));
    getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &len); // ERANGE, with what it needs
    g_array_set_size(groups, len / sizeof(gid_t));
    if (len && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups->data, &len) < 0)
        g_array_set_size(groups, 0);
    return groups;
}

SocketProcess *socket_process_find(int fd)
{
    struct ucred found;
    socklen_t len = sizeof found;
    struct sockaddr address = {0};
    socklen_t address_len = sizeof address;
    if (getsockname(fd, &address, &address_len) < 0 || address.sa_family != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &found, &len) < 0 || found.uid == (uid_t)-1)
        return NULL;
    SocketProcess *process = g_new(SocketProcess, 1);
    *process = (SocketProcess){found.uid, found.gid, found.pid, find_groups(fd)};
    return process;
}

void socket_process_free(SocketProcess *process)
{
    if (!process)
        return;
    g_array_unref(process->groups);
    g_free(process);
}

char *socket_process_text(const SocketProcess *process)
{
    return g_strdup_printf("uid %u (pid %d)", (unsigned)process->uid, (int)process->pid);
}

static bool has_id(const GArray *ids, uint32_t id)
{
    for (guint i = 0; ids && i < ids->len; i++)
        if (g_array_index(ids, uint32_t, i) == id)
            return true;
    return false;
}

bool socket_process_is_one_of(const SocketProcess *process, const GArray *uids, const GArray *gids)
{
    if (process->uid == 0 || process->uid == geteuid() || has_id(uids, process->uid) ||
        has_id(gids, process->gid))
        return true;
    for (guint i = 0; i < process->groups->len; i++)
        if (has_id(gids, g_array_index(process->groups, gid_t, i)))
            return true;
    return false;
}
