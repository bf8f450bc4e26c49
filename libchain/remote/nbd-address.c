// SPDX-License-Identifier: LGPL-2.1-or-later
// Addresses of NBD exports. Connecting is in a fiber, and blocks nobody else.
#include "remote/nbd-address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "chain-core/driver-option.h"
#include "chain-core/fd-wait.h"
#include "chain-core/loop.h"

#define NBD_DEFAULT_PORT "10809"

// --- parsing -------------------------------------------------------------------------------------

void nbd_address_free(NbdAddress *address)
{
    if (!address)
        return;
    g_free(address->path);
    g_free(address->host);
    g_free(address->port);
    g_free(address->export_name);
    tls_creds_unref(address->tls_creds);
    g_free(address->tls_hostname);
    g_free(address->text);
    g_free(address);
}

void nbd_address_set_tls(NbdAddress *address, TlsCreds *creds, const char *hostname)
{
    g_autofree char *plain = g_steal_pointer(&address->text);
    address->text = g_strconcat("nbds", plain + strlen("nbd"), NULL);
    address->tls_creds = creds;
    address->tls_hostname = g_strdup(hostname ? hostname : address->host);
}

static NbdAddress *address_new(const char *path, const char *host, const char *port,
                               const char *export_name)
{
    NbdAddress *a = g_new0(NbdAddress, 1);
    g_autofree char *name = g_uri_escape_string(export_name, "/", false);
    a->path = g_strdup(path);
    a->host = g_strdup(host);
    a->port = g_strdup(port);
    a->export_name = g_strdup(export_name);
    a->text = path ? g_strdup_printf("nbd+unix:///%s?socket=%s", name, path)
                   : g_strdup_printf(strchr(host, ':') ? "nbd://[%s]:%s/%s" : "nbd://%s:%s/%s",
                                     host, port, name);
    return a;
}

static int check_path(const char *path, GError **error)
{
    if (strlen(path) < sizeof((struct sockaddr_un *)NULL)->sun_path)
        return 0;
    return error_set(error, -EINVAL, "UNIX socket path '%s' is too long", path);
}

// {"type": "unix", "path": …} or {"type": "inet", "host": …, "port": …}; what type is left out by
// old scripts follows from the rest.
static int from_server(const json_t *values, const char *export_name, NbdAddress **ret_address,
                       GError **error)
{
    const char *type = driver_value_str(values, "server.type", NULL);
    const char *path = driver_value_str(values, "server.path", NULL);
    const char *host = driver_value_str(values, "server.host", NULL);
    const char *port = driver_value_str(values, "server.port", NBD_DEFAULT_PORT);
    bool is_unix = type ? g_str_equal(type, "unix") : path != NULL;
    if (is_unix && !path)
        return error_set(error, -EINVAL, "Parameter 'server.path' is missing");
    if (!is_unix && !host)
        return error_set(error, -EINVAL, "Parameter 'server.host' is missing");
    int r = is_unix ? check_path(path, error) : 0;
    if (r == 0)
        *ret_address = address_new(is_unix ? path : NULL, host, port, export_name);
    return r;
}

int nbd_address_from_values(const json_t *values, NbdAddress **ret_address, GError **error)
{
    const char *export_name = driver_value_str(values, "export", "");
    const char *path = driver_value_str(values, "path", NULL);
    const char *host = driver_value_str(values, "host", NULL);
    unsigned n_given = !!json_object_get(values, "server") + !!path + !!host;
    if (strlen(export_name) > 4096)
        return error_set(error, -EINVAL, "export name too long to send to server");
    if (n_given > 1)
        return error_set(error, -EINVAL, "path and host may not be used at the same time");
    if (!n_given)
        return error_set(error, -EINVAL, "NBD server address missing");
    if (!path && !host)
        return from_server(values, export_name, ret_address, error);
    int r = path ? check_path(path, error) : 0;
    if (r == 0)
        *ret_address = address_new(path, host, driver_value_str(values, "port", NBD_DEFAULT_PORT),
                                   export_name);
    return r;
}

static char *socket_of_query(const char *query)
{
    g_autoptr(GHashTable) params =
        query ? g_uri_parse_params(query, -1, "&", G_URI_PARAMS_NONE, NULL) : NULL;
    return params ? g_strdup(g_hash_table_lookup(params, "socket")) : NULL;
}

int nbd_address_from_uri(const char *text, NbdAddress **ret_address, GError **error)
{
    g_autoptr(GUri) uri = g_uri_parse(text, G_URI_FLAGS_ENCODED_QUERY, NULL);
    const char *scheme = uri ? g_uri_get_scheme(uri) : "";
    if (g_str_has_prefix(scheme, "nbds"))
        return error_set(error, -ENOTSUP,
                         "%s: a URI names no credentials for TLS: describe the node with tls-creds",
                         text);
    bool is_unix = g_str_equal(scheme, "nbd+unix");
    if (!is_unix && !g_str_equal(scheme, "nbd") && !g_str_equal(scheme, "nbd+tcp"))
        return error_set(error, -EINVAL, "%s: not the URI of an NBD export", text);
    const char *path_part = g_uri_get_path(uri), *host = g_uri_get_host(uri);
    const char *export_name = *path_part == '/' ? path_part + 1 : path_part;
    g_autofree char *path = is_unix ? socket_of_query(g_uri_get_query(uri)) : NULL;
    if (is_unix ? !path : !host || !*host)
        return error_set(error, -EINVAL, "%s: it has no %s", text,
                         is_unix ? "socket=PATH" : "host");
    int r = is_unix ? check_path(path, error) : 0;
    g_autofree char *port = g_uri_get_port(uri) > 0 ? g_strdup_printf("%d", g_uri_get_port(uri))
                                                    : g_strdup(NBD_DEFAULT_PORT);
    if (r == 0)
        *ret_address = address_new(path, host, port, export_name);
    return r;
}

// --- connecting ----------------------------------------------------------------------------------

// Takes `fd`, also on failure. A socket that is connected, or negative.
static int connect_one(Fiber *self, int fd, const struct sockaddr *to, socklen_t len,
                       uint64_t timeout_ns)
{
    if (fd < 0)
        return -errno;
    int r = 0;
    // A unix socket whose queue is full answers EAGAIN.
    for (uint64_t slept_ns = 0; (r = connect(fd, to, len) < 0 ? -errno : 0) == -EAGAIN;) {
        enum { PAUSE_NS = 10000000 };
        if (slept_ns >= timeout_ns)
            break;
        if ((r = fiber_sleep(self, PAUSE_NS)) < 0)
            break;
        slept_ns += PAUSE_NS;
    }
    if (r == -EINPROGRESS) {
        int failure = 0;
        socklen_t failure_len = sizeof failure;
        r = fd_wait(self, fd, POLLOUT, timeout_ns);
        if (r == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &failure_len) < 0)
            r = -errno;
        if (r == 0)
            r = -failure;
    }
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

static int connect_unix(Fiber *self, const char *path, uint64_t timeout_ns, GError **error)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    g_strlcpy(to.sun_path, path, sizeof to.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int r = connect_one(self, fd, (struct sockaddr *)&to, sizeof to, timeout_ns);
    return r < 0 ? error_set(error, r, "Failed to connect to '%s': %s", path, g_strerror(-r)) : r;
}

typedef struct Lookup {
    const NbdAddress *address;
    struct addrinfo *found;
} Lookup;

static int look_up(void *arg)
{
    Lookup *l = arg;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    return getaddrinfo(l->address->host, l->address->port, &hints, &l->found);
}

static void set_tcp_options(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one); // hosts that vanish are noticed
}

static int connect_tcp(Fiber *self, const NbdAddress *address, uint64_t timeout_ns, GError **error)
{
    Lookup l = {.address = address};
    int r = loop_work(self, look_up, &l);
    if (r != 0)
        return error_set(error, -EHOSTUNREACH, "address resolution failed for %s:%s: %s",
                         address->host, address->port, gai_strerror(r));
    r = -EHOSTUNREACH;
    for (struct addrinfo *a = l.found; a && r < 0 && r != -ECANCELED; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        r = connect_one(self, fd, a->ai_addr, a->ai_addrlen, timeout_ns);
    }
    freeaddrinfo(l.found);
    if (r < 0)
        return error_set(error, r, "Failed to connect to '%s:%s': %s", address->host, address->port,
                         g_strerror(-r));
    set_tcp_options(r);
    return r;
}

int nbd_address_connect(Fiber *self, const NbdAddress *address, uint64_t timeout_ns, GError **error)
{
    return address->path ? connect_unix(self, address->path, timeout_ns, error)
                         : connect_tcp(self, address, timeout_ns, error);
}
