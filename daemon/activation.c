// SPDX-License-Identifier: LGPL-2.1-or-later
// A name that says nothing is taken for NBD, one that says something unknown is refused: it is for
// something that this version cannot do, or a slip.
#include "activation.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

bool activation_is_listening_stream(int fd)
{
    return sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) > 0;
}

static bool parse_name(const char *name, ActivationUse *ret_use)
{
    if (g_str_equal(name, "control"))
        *ret_use = ACTIVATION_CONTROL;
    else if (g_str_equal(name, "query"))
        *ret_use = ACTIVATION_QUERY;
    else if (!*name || g_str_equal(name, "nbd") || g_str_equal(name, "unknown") ||
             g_str_has_suffix(name, ".socket"))
        *ret_use = ACTIVATION_NBD;
    else
        return false;
    return true;
}

static int take_one(Activation *activation, int fd, const char *name, GError **error)
{
    ActivationUse use;
    if (!activation_is_listening_stream(fd)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "descriptor %d from socket activation is not a listening stream socket: the "
                    "unit needs ListenStream= and Accept=no",
                    fd);
        return -EINVAL;
    }
    if (!parse_name(name, &use)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "a socket from socket activation is called '%s': FileDescriptorName= is nbd, "
                    "control or query",
                    name);
        return -EINVAL;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    g_array_append_val(activation->fds[use], fd);
    return 0;
}

int activation_take(Activation *ret_activation, GError **error)
{
    char **names = NULL;
    int n = sd_listen_fds_with_names(1, &names), r = 0;
    for (int use = 0; use < ACTIVATION_N_USES; use++)
        ret_activation->fds[use] = g_array_new(false, false, sizeof(int));
    if (n < 0) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "the sockets of socket activation cannot be taken, LISTEN_FDS or "
                    "LISTEN_FDNAMES is wrong: %s",
                    g_strerror(-n));
        return -EINVAL;
    }
    for (int i = 0; i < n; i++) {
        if (r == 0)
            r = take_one(ret_activation, SD_LISTEN_FDS_START + i, names[i], error);
        free(names[i]);
    }
    free(names);
    return r;
}

void activation_clear(Activation *activation)
{
    for (int use = 0; use < ACTIVATION_N_USES; use++)
        g_clear_pointer(&activation->fds[use], g_array_unref);
}
