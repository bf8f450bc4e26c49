// SPDX-License-Identifier: LGPL-2.1-or-later
// Opens character devices. Any thread; blocking.
#include "chardev.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/qmp/args.h"
#include "daemon/qmp/error.h"
#include "nbd/listen.h"

static const SocketAccess socket_access = {0600, (uid_t)-1, (gid_t)-1};

static int fail_errno(GError **error, const char *what, const char *address, int number)
{
    return qmp_fail(error, "Failed to %s '%s': %s", what, address, g_strerror(number));
}

static void add_socket(Chardev *chardev, int fd)
{
    g_array_append_val(chardev->sockets, fd);
}

static int connect_socket(Chardev *chardev, const char *text, const struct sockaddr *address,
                          socklen_t len, GError **error)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail_errno(error, "connect to", text, errno);
    if (connect(fd, address, len) < 0) {
        int number = errno;
        close(fd);
        return fail_errno(error, "connect to", text, number);
    }
    add_socket(chardev, fd);
    return 0;
}

// -- unix -----------------------------------------------------------------------------------------

static int open_unix(Chardev *chardev, const json_t *data, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = qmp_args_str(data, "path");
    if (qmp_args_bool(data, "abstract", false))
        return qmp_fail(error, "abstract sockets are not supported: name a path");
    if (chardev->is_server) {
        g_autofree char *absolute = g_canonicalize_filename(path, NULL);
        chardev->name = g_strconcat("unix:", path, NULL);
        int fd = socket_files_listen(chardev->files, absolute, &socket_access, error);
        if (fd >= 0)
            add_socket(chardev, fd);
        return fd < 0 ? fd : 0;
    }
    chardev->name = g_strconcat("unix:", path, NULL);
    if (strlen(path) >= sizeof address.sun_path)
        return fail_errno(error, "connect to", path, ENAMETOOLONG);
    strcpy(address.sun_path, path);
    return connect_socket(chardev, path, (const struct sockaddr *)&address, sizeof address, error);
}

// -- TCP ------------------------------------------------------------------------------------------

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 ==
               IN_LOOPBACKNET;
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static int check_loopback(const struct addrinfo *addresses, const char *host, GError **error)
{
    for (const struct addrinfo *a = addresses; a; a = a->ai_next)
        if (!is_loopback(a->ai_addr))
            return qmp_fail(error,
                            "'%s' is no loopback address: on others anybody could control the "
                            "daemon; use host=localhost, or a unix socket",
                            host);
    return 0;
}

static unsigned bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0)
        return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static int listen_tcp(Chardev *chardev, const char *host, const char *port, GError **error)
{
    int r = nbds_listen_tcp(host, port, chardev->sockets, error);
    if (r < 0)
        return r;
    g_free(chardev->name);
    chardev->name =
        g_strdup_printf("tcp:%s:%u", host, bound_port(g_array_index(chardev->sockets, int, 0)));
    return 0;
}

static int connect_tcp(Chardev *chardev, const struct addrinfo *addresses, const char *text,
                       GError **error)
{
    int r = -EINVAL;
    for (const struct addrinfo *a = addresses; a && r < 0; a = a->ai_next) {
        g_clear_error(error);
        r = connect_socket(chardev, text, a->ai_addr, a->ai_addrlen, error);
    }
    return r;
}

static int open_tcp(Chardev *chardev, const json_t *data, GError **error)
{
    const char *host = qmp_args_str(data, "host"), *port = qmp_args_str(data, "port");
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *addresses;
    if (!*host)
        host = "localhost";
    if (!g_ascii_string_to_unsigned(port, 10, 0, UINT16_MAX, NULL, NULL))
        return qmp_fail(error, "'%s' is no port: it is a number from 0 to 65535", port);
    if (qmp_args_have(data, "to"))
        return qmp_fail(error, "a range of ports is not supported: name one port");
    int code = getaddrinfo(host, port, &hints, &addresses);
    if (code)
        return qmp_fail(error, "address resolution failed for %s:%s: %s", host, port,
                        gai_strerror(code));
    g_autofree char *text = g_strdup_printf("%s:%s", host, port);
    chardev->name = g_strconcat("tcp:", text, NULL);
    int r = check_loopback(addresses, host, error);
    if (r == 0)
        r = chardev->is_server ? listen_tcp(chardev, host, port, error)
                               : connect_tcp(chardev, addresses, text, error);
    freeaddrinfo(addresses);
    return r;
}

// -- descriptors ----------------------------------------------------------------------------------

static int open_fd(Chardev *chardev, InheritedFds *fds, const json_t *data, GError **error)
{
    const char *text = qmp_args_str(data, "str");
    int is_listening = 0;
    socklen_t len = sizeof is_listening;
    int fd = inherited_fds_take(fds, text, error);
    if (fd < 0)
        return fd;
    chardev->name = g_strconcat("fd:", text, NULL);
    add_socket(chardev, fd);
    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &len);
    if ((bool)is_listening == chardev->is_server)
        return 0;
    return qmp_fail(error, "File descriptor '%s' is %s listening socket", text,
                    is_listening ? "a" : "not a");
}

// -- all ------------------------------------------------------------------------------------------

static int check_socket(const json_t *data, bool is_server, GError **error)
{
    static const char *const protocols[] = {"telnet", "tn3270", "websocket"};
    bool reconnects = qmp_args_int(data, "reconnect", 0) || qmp_args_int(data, "reconnect-ms", 0);
    const char *creds = qmp_args_str(data, "tls-creds");
    if (is_server && reconnects)
        return qmp_fail(error, "'reconnect' option is incompatible with socket in server listen "
                               "mode");
    if (!is_server && qmp_args_have(data, "wait"))
        return qmp_fail(error, "'wait' option is incompatible with socket in client connect mode");
    if (creds)
        return qmp_fail(error, "No TLS credentials with id '%s'", creds);
    if (qmp_args_have(data, "tls-authz"))
        return qmp_fail(error, "'tls_authz' option requires 'tls_creds' option");
    if (reconnects)
        return qmp_fail(error, "a socket that connects again is not supported: leave out "
                               "'reconnect'");
    for (unsigned i = 0; i < G_N_ELEMENTS(protocols); i++)
        if (qmp_args_bool(data, protocols[i], false))
            return qmp_fail(error, "'%s' is not supported: sockets carry plain QMP", protocols[i]);
    return 0;
}

static int open_socket(Chardev *chardev, InheritedFds *fds, const json_t *data, GError **error)
{
    const json_t *address = json_object_get(data, "addr");
    const json_t *where = json_object_get(address, "data");
    const char *type = qmp_args_str(address, "type");
    chardev->is_server = qmp_args_bool(data, "server", true);
    int r = check_socket(data, chardev->is_server, error);
    if (r < 0)
        return r;
    if (g_str_equal(type, "unix"))
        return open_unix(chardev, where, error);
    if (g_str_equal(type, "inet"))
        return open_tcp(chardev, where, error);
    if (g_str_equal(type, "fd"))
        return open_fd(chardev, fds, where, error);
    return qmp_fail(error, "sockets of the type '%s' are not supported", type);
}

Chardev *chardev_open(InheritedFds *fds, const char *id, const json_t *backend, GError **error)
{
    const json_t *data = json_object_get(backend, "data");
    Chardev *chardev = g_new0(Chardev, 1);
    *chardev = (Chardev){
        .id = g_strdup(id),
        .kind = g_strdup(qmp_args_str(backend, "type")),
        .sockets = g_array_new(false, false, sizeof(int)),
        .files = socket_files_new(),
    };
    int r = 0;
    if (qmp_args_have(data, "logfile"))
        r = qmp_fail(error, "a log of a chardev is not supported: leave out 'logfile'");
    else if (g_str_equal(chardev->kind, "socket"))
        r = open_socket(chardev, fds, data, error);
    else
        chardev->name = g_strdup(chardev->kind);
    if (r < 0)
        g_clear_pointer(&chardev, chardev_close);
    return chardev;
}

void chardev_close(Chardev *chardev)
{
    if (!chardev)
        return;
    socket_files_free(chardev->files);
    qmp_policy_clear(&chardev->policy);
    for (guint i = 0; i < chardev->sockets->len; i++)
        close(g_array_index(chardev->sockets, int, i));
    g_array_unref(chardev->sockets);
    g_free(chardev->id);
    g_free(chardev->kind);
    g_free(chardev->name);
    g_free(chardev);
}
