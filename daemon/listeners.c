// SPDX-License-Identifier: LGPL-2.1-or-later
// Turns addresses into listening sockets and back into URIs. Sockets are bound before any image is
// opened: a wrong address costs nothing, and clients that come early wait in the backlog.
#include "listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "activation.h"
#include "log.h"
#include "nbd-address.h"
#include "nbd/listen.h"
#include "socket-files.h"

struct Listeners {
    char *address;      // of listeners_open_at(), or NULL
    GArray *fds;        // int; owned until listeners_serve()
    GPtrArray *served;  // NbdsListener, since then
    GPtrArray *origins; // char *: "nbd+unix:///%s?socket=…" split at %s: prefix, suffix, …
    SocketFiles *files;
    char *private_dir;
    bool only_given;
    NbdsTls tls;
    char *tls_query; // of the URIs: "tls-certificates=…", or NULL
};

G_GNUC_PRINTF(3, 4)
static int fail(GError **error, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    GError *e = g_error_new_valist(G_FILE_ERROR, g_file_error_from_errno(code), format, args);
    va_end(args);
    g_propagate_error(error, e);
    return -code;
}

static void add_uri(Listeners *listeners, const char *prefix, const char *suffix)
{
    g_ptr_array_add(listeners->origins, g_strdup(prefix));
    g_ptr_array_add(listeners->origins, g_strdup(suffix));
}

static void add_unix_uri(Listeners *listeners, const char *path)
{
    g_autofree char *escaped = g_uri_escape_string(path, "/", false);
    g_autofree char *suffix = g_strconcat("?socket=", escaped, NULL);
    add_uri(listeners, "nbd+unix:///", suffix);
}

static int add_unix(Listeners *listeners, const char *path, const SocketAccess *access,
                    GError **error)
{
    int fd = socket_files_listen(listeners->files, path, access, error);
    if (fd < 0)
        return fd;
    g_array_append_val(listeners->fds, fd);
    add_unix_uri(listeners, path);
    return 0;
}

// The port that was really bound ("0" lets the kernel choose).
static unsigned bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof(address);
    char port[NI_MAXSERV] = "0";
    if (getsockname(fd, (struct sockaddr *)&address, &len) == 0)
        getnameinfo((struct sockaddr *)&address, len, NULL, 0, port, sizeof(port), NI_NUMERICSERV);
    return (unsigned)g_ascii_strtoull(port, NULL, 10);
}

// `host` "": every address of the machine.
static void add_tcp_uri(Listeners *listeners, const char *host, int fd)
{
    bool is_v6 = strchr(host, ':') != NULL;
    g_autofree char *prefix =
        g_strdup_printf("nbd://%s%s%s:%u/", is_v6 ? "[" : "", *host ? host : "localhost",
                        is_v6 ? "]" : "", bound_port(fd));
    add_uri(listeners, prefix, "");
}

static bool is_any_address(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6
               ? IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)address)->sin6_addr)
               : ((const struct sockaddr_in *)address)->sin_addr.s_addr == INADDR_ANY;
}

static int add_tcp(Listeners *listeners, const NbdAddress *address, GError **error)
{
    guint first = listeners->fds->len;
    int r = nbds_listen_tcp(address->host, address->port, listeners->fds, error);
    if (r < 0)
        return r;
    add_tcp_uri(listeners, strcmp(address->host, "*") ? address->host : "",
                g_array_index(listeners->fds, int, first));
    return 0;
}

// `access` is of unix sockets.
static int add_address(Listeners *listeners, const char *text, const SocketAccess *access,
                       GError **error)
{
    g_auto(NbdAddress) address = {0};
    int r = nbd_address_parse(text, &address, error);
    if (r < 0)
        return r;
    return address.path ? add_unix(listeners, address.path, access, error)
                        : add_tcp(listeners, &address, error);
}

// Why no directory with a socket can be made in `base`; NULL: one can, as far as is known.
static const char *why_unfit(const char *base)
{
    enum {
        MAX_BASE = sizeof((struct sockaddr_un){0}.sun_path) - sizeof("/chaind-XXXXXX/nbd.sock")
    };
    if (!g_path_is_absolute(base))
        return "not an absolute path";
    if (strlen(base) > MAX_BASE)
        return "too long for the path of a socket";
    return access(base, W_OK | X_OK) == 0 ? NULL : g_strerror(errno);
}

// Where the directory of the private socket is made: where the session keeps such things, or else
// where temporary files go. Borrowed; NULL with a sentence.
static const char *find_private_base(GError **error)
{
    const char *runtime = g_getenv("XDG_RUNTIME_DIR"), *tmp = g_get_tmp_dir();
    if (runtime && *runtime) {
        const char *why = why_unfit(runtime);
        if (!why)
            return runtime;
        log_line(LOG_WARNING,
                 "XDG_RUNTIME_DIR is '%s': %s; using '%s' for the private socket instead. Set it "
                 "right, or name a socket with --nbd",
                 runtime, why, tmp);
    }
    const char *why = why_unfit(tmp);
    if (!why)
        return tmp;
    fail(error, EINVAL,
         "the private socket cannot be made in '%s': %s; name a socket with --nbd, or set TMPDIR",
         tmp, why);
    return NULL;
}

// A socket in a directory of its own that only this user may enter.
static int add_private(Listeners *listeners, GError **error)
{
    const char *base = find_private_base(error);
    if (!base)
        return -EINVAL;
    g_autofree char *dir = g_build_filename(base, "chaind-XXXXXX", NULL);
    if (!g_mkdtemp(dir))
        return fail(error, errno,
                    "cannot make a directory for the private socket in '%s': %s; name a socket "
                    "with --nbd",
                    base, g_strerror(errno));
    listeners->private_dir = g_steal_pointer(&dir);
    g_autofree char *path = g_build_filename(listeners->private_dir, "nbd.sock", NULL);
    return add_unix(listeners, path, &(SocketAccess){0600, -1, -1}, error);
}

// What clients of the socket would call it. The name of one without a path cannot be in a URI.
static void add_given_uri(Listeners *listeners, int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof(address);
    char host[NI_MAXHOST];
    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0)
        return;
    const struct sockaddr_un *local = (const struct sockaddr_un *)&address;
    if (address.ss_family == AF_UNIX && len > offsetof(struct sockaddr_un, sun_path) &&
        *local->sun_path)
        add_unix_uri(listeners, local->sun_path);
    else if (address.ss_family != AF_UNIX &&
             getnameinfo((struct sockaddr *)&address, len, host, sizeof(host), NULL, 0,
                         NI_NUMERICHOST) == 0)
        add_tcp_uri(listeners, is_any_address(&address) ? "" : host, fd);
}

static void add_given(Listeners *listeners, const GArray *given)
{
    for (guint i = 0; i < given->len; i++) {
        int fd = g_array_index(given, int, i);
        g_array_append_val(listeners->fds, fd);
        add_given_uri(listeners, fd);
    }
}

static int open_all(Listeners *listeners, const GArray *given, char *const *addresses,
                    GError **error)
{
    if (given)
        add_given(listeners, given);
    if (!addresses)
        return 0;
    int r = 0;
    listeners->only_given = listeners->fds->len && !*addresses;
    if (!listeners->fds->len && !*addresses)
        return add_private(listeners, error);
    for (; *addresses; addresses++) {
        r = add_address(listeners, *addresses, &(SocketAccess){0, -1, -1}, error);
        if (r < 0)
            return r;
    }
    return 0;
}

static Listeners *listeners_new(void)
{
    Listeners *listeners = g_new0(Listeners, 1);
    listeners->fds = g_array_new(false, false, sizeof(int));
    listeners->served = g_ptr_array_new();
    listeners->origins = g_ptr_array_new_with_free_func(g_free);
    listeners->files = socket_files_new();
    return listeners;
}

Listeners *listeners_open(const GArray *given, char *const *addresses, GError **error)
{
    Listeners *listeners = listeners_new();
    if (open_all(listeners, given, addresses, error) < 0)
        g_clear_pointer(&listeners, listeners_free);
    return listeners;
}

Listeners *listeners_open_at(const char *address, const SocketAccess *access, GError **error)
{
    Listeners *listeners = listeners_new();
    listeners->address = g_strdup(address);
    if (add_address(listeners, address, access, error) < 0)
        g_clear_pointer(&listeners, listeners_free);
    return listeners;
}

const char *listeners_address(const Listeners *listeners)
{
    return listeners->address;
}

int listeners_set_access(const Listeners *listeners, const SocketAccess *access, GError **error)
{
    return socket_files_set_access(listeners->files, access, error);
}

Listeners *listeners_open_fd(int fd, GError **error)
{
    if (!activation_is_listening_stream(fd)) {
        fail(error, EINVAL, "descriptor %d is not a listening stream socket", fd);
        close(fd);
        return NULL;
    }
    Listeners *listeners = listeners_new();
    g_array_append_val(listeners->fds, fd);
    return listeners;
}

void listeners_remove_files(const Listeners *listeners)
{
    if (!listeners)
        return;
    socket_files_remove(listeners->files);
    if (listeners->private_dir)
        rmdir(listeners->private_dir);
}

void listeners_free(Listeners *listeners)
{
    if (!listeners)
        return;
    listeners_remove_files(listeners);
    for (guint i = 0; i < listeners->fds->len; i++)
        close(g_array_index(listeners->fds, int, i));
    nbds_tls_clear(&listeners->tls);
    g_free(listeners->tls_query);
    g_free(listeners->address);
    g_ptr_array_unref(listeners->served);
    g_free(listeners->private_dir);
    g_array_unref(listeners->fds);
    socket_files_free(listeners->files);
    g_ptr_array_unref(listeners->origins);
    g_free(listeners);
}

void listeners_change_tls(Fiber *self, Listeners *listeners, const NbdsTls *tls,
                          const char *certificates, const char *psk_file)
{
    listeners_set_tls(listeners, tls, certificates, psk_file);
    for (guint i = 0; i < listeners->served->len; i++)
        nbds_listener_set_tls(self, listeners->served->pdata[i], tls);
}

void listeners_set_tls(Listeners *listeners, const NbdsTls *tls, const char *certificates,
                       const char *psk_file)
{
    g_autofree char *path =
        certificates || psk_file
            ? g_canonicalize_filename(certificates ? certificates : psk_file, NULL)
            : NULL;
    g_autofree char *escaped = path ? g_uri_escape_string(path, "/", false) : NULL;
    nbds_tls_clear(&listeners->tls);
    listeners->tls = nbds_tls_copy(tls);
    g_clear_pointer(&listeners->tls_query, g_free);
    if (escaped)
        listeners->tls_query =
            g_strconcat(certificates ? "tls-certificates=" : "tls-psk-file=", escaped, NULL);
}

bool listeners_are_only_given(const Listeners *listeners)
{
    return listeners->only_given;
}

void listeners_serve(Listeners *listeners, NbdsServer *server, const Loops *loops)
{
    for (guint i = 0; i < listeners->fds->len; i++)
        g_ptr_array_add(listeners->served,
                        nbds_server_add_listener(server, loops_get(loops, i),
                                                 g_array_index(listeners->fds, int, i),
                                                 &listeners->tls));
    g_array_set_size(listeners->fds, 0);
}

void listeners_end(Fiber *self, Listeners *listeners, NbdsServer *server)
{
    for (guint i = 0; i < listeners->served->len; i++)
        nbds_server_remove_listener(self, server, listeners->served->pdata[i]);
    listeners_free(listeners);
}

char **listeners_uris(const Listeners *listeners, const char *export_name)
{
    GStrvBuilder *uris = g_strv_builder_new();
    g_autofree char *name = g_uri_escape_string(export_name, "", true);
    for (guint i = 0; i + 1 < listeners->origins->len; i += 2) {
        const char *prefix = g_ptr_array_index(listeners->origins, i);
        const char *suffix = g_ptr_array_index(listeners->origins, i + 1);
        bool is_tls = listeners->tls.mode == NBDS_TLS_REQUIRED;
        const char *query = is_tls ? listeners->tls_query : NULL;
        g_autofree char *uri = g_strconcat(is_tls ? "nbds" : "nbd", prefix + strlen("nbd"), name,
                                           suffix, query ? (*suffix ? "&" : "?") : "", query, NULL);
        g_strv_builder_add(uris, uri);
    }
    char **all = g_strv_builder_end(uris);
    g_strv_builder_unref(uris);
    return all;
}
