// SPDX-License-Identifier: LGPL-2.1-or-later
// Listening sockets. Blocking, on the control path.
#include "nbd/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

G_GNUC_PRINTF(3, 4)
static int fail(int number, GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(number), "%s: %s", what,
                g_strerror(number));
    return -number;
}

static int close_and_fail(int fd, int number)
{
    close(fd);
    return -number;
}

typedef enum Listener { LISTENER_ALIVE, LISTENER_ENDING, LISTENER_GONE } Listener;

// Who listens on the socket `fd` is connected to? The kernel takes an ended process's io_uring
// apart a moment after the process is gone, and a listening socket in it lives until then.
static Listener find_listener(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid > 0 &&
        kill(peer.pid, 0) < 0 && errno == ESRCH)
        return LISTENER_ENDING;
    return LISTENER_ALIVE;
}

static Listener probe(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return LISTENER_ALIVE;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return LISTENER_ALIVE;
    Listener listener = LISTENER_ALIVE;
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0)
        listener = find_listener(fd);
    else if (errno == ECONNREFUSED)
        listener = LISTENER_GONE;
    close(fd);
    return listener;
}

// A socket file that nobody listens on was left behind by a program that ended.
static bool is_abandoned_socket(const struct sockaddr_un *address)
{
    enum { WAIT_US = 10000, N_WAITS = 200 };
    Listener listener = probe(address);
    for (unsigned i = 0; i < N_WAITS && listener == LISTENER_ENDING; i++) {
        g_usleep(WAIT_US);
        listener = probe(address);
    }
    return listener == LISTENER_GONE;
}

// Why the path is taken, and what to do about it.
static int refuse_taken_path(const char *path, GError **error)
{
    struct stat st;
    bool is_socket = lstat(path, &st) == 0 && S_ISSOCK(st.st_mode);
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                is_socket ? "cannot listen on '%s': another program listens there; end it, or "
                            "choose another path"
                          : "cannot listen on '%s': there is a file of that name that is not a "
                            "socket; remove it, or choose another path",
                path);
    return -EADDRINUSE;
}

static int refuse_absent_dir(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path), *quoted = g_shell_quote(dir);
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOENT,
                "cannot listen on '%s': %s; mkdir -p %s makes its directory", path,
                g_strerror(ENOENT), quoted);
    return -ENOENT;
}

static int bind_unix(int fd, const struct sockaddr_un *address, mode_t mode)
{
    // Narrow before it is visible: the mode of the socket's file comes from the descriptor.
    if (mode && fchmod(fd, mode) < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) >= 0)
        return 0;
    if (errno != EADDRINUSE || !is_abandoned_socket(address))
        return -errno;
    if (unlink(address->sun_path) < 0 ||
        bind(fd, (const struct sockaddr *)address, sizeof *address) < 0)
        return -errno;
    return 0;
}

int nbds_listen_unix(const char *path, mode_t mode, uid_t owner, gid_t group, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (!len || len >= sizeof address.sun_path) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NAMETOOLONG,
                    "socket path '%s' must have 1 to %zu bytes: choose a shorter one", path,
                    sizeof address.sun_path - 1);
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, len);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(errno, error, "cannot make a socket for '%s'", path);
    int result = bind_unix(fd, &address, mode);
    if (result == -EADDRINUSE)
        return close_and_fail(fd, -refuse_taken_path(path, error));
    if (result == -ENOENT)
        return close_and_fail(fd, -refuse_absent_dir(path, error));
    if (result < 0)
        return close_and_fail(fd, -fail(-result, error, "cannot listen on '%s'", path));
    bool sets_owner = owner != (uid_t)-1 || group != (gid_t)-1;
    bool is_given = !sets_owner || chown(path, owner, group) == 0;
    if (!is_given || (mode && chmod(path, mode) < 0) || listen(fd, SOMAXCONN) < 0) {
        result = fail(errno, error,
                      is_given ? "cannot listen on '%s'"
                               : "cannot give '%s' to that owner and group (only root gives files "
                                 "away, others to groups that they are in)",
                      path);
        unlink(path);
        return close_and_fail(fd, -result);
    }
    return fd;
}

static int listen_on(const struct addrinfo *info)
{
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (info->ai_family == AF_INET6) // IPv4 has a socket of its own
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0)
        return close_and_fail(fd, errno);
    return fd;
}

int nbds_listen_tcp(const char *host, const char *port, GArray *ret_fds, GError **error)
{
    bool everywhere = !host || !*host || !strcmp(host, "*");
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *addresses;
    int code = getaddrinfo(everywhere ? NULL : host, port, &hints, &addresses);
    if (code) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "cannot find address '%s' port '%s': %s", everywhere ? "*" : host, port,
                    gai_strerror(code));
        return -EINVAL;
    }
    unsigned n_before = ret_fds->len;
    int first_error = 0;
    for (const struct addrinfo *a = addresses; a; a = a->ai_next) {
        int fd = listen_on(a);
        if (fd >= 0)
            g_array_append_val(ret_fds, fd);
        else if (!first_error)
            first_error = -fd;
    }
    freeaddrinfo(addresses);
    if (ret_fds->len > n_before)
        return 0;
    return fail(first_error, error, "cannot listen on '%s' port '%s'", everywhere ? "*" : host,
                port);
}
