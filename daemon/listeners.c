// SPDX-License-Identifier: LGPL-2.1-or-later
// Turns addresses into listening sockets and back into URIs. Sockets are bound before any image is
// opened: a wrong address costs nothing, and clients that come early wait in the backlog.
#include "listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "nbd/listen.h"
#include "socket-files.h"

typedef struct Address {
    char *path; // unix socket (absolute), or NULL
    char *host; // TCP; "" is every address of the machine
    char *port;
} Address;

struct Listeners {
    GArray *fds;        // int; owned until listeners_serve()
    GPtrArray *origins; // char *: "nbd+unix:///%s?socket=…" split at %s: prefix, suffix, …
    SocketFiles *files;
    char *private_dir;
    bool activated;
};

static void address_clear(Address *address)
{
    g_free(address->path);
    g_free(address->host);
    g_free(address->port);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Address, address_clear)

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

// getaddrinfo() would take names of services, and takes larger numbers modulo 65536.
static bool is_port(const char *text)
{
    guint64 n;
    return g_ascii_string_to_unsigned(text, 10, 0, UINT16_MAX, &n, NULL);
}

// HOST:PORT, [IPV6]:PORT and :PORT have no slash; everything else is a path.
static int parse_address(const char *text, Address *ret_address, GError **error)
{
    const char *colon = strrchr(text, ':');
    if (strchr(text, '/') || !colon) {
        g_autofree char *path = g_canonicalize_filename(text, NULL);
        if (strlen(path) >= sizeof((struct sockaddr_un){0}.sun_path))
            return fail(error, EINVAL,
                        "the socket path '%s' is longer than the 107 bytes that unix sockets allow",
                        path);
        ret_address->path = g_steal_pointer(&path);
        return 0;
    }

    g_autofree char *host = g_strndup(text, (gsize)(colon - text));
    size_t len = strlen(host);
    bool in_brackets = len >= 2 && host[0] == '[' && host[len - 1] == ']';
    if (!colon[1])
        return fail(error, EINVAL, "'%s' has no port: write HOST:PORT, such as localhost:10809",
                    text);
    if (strchr(host, ':') && !in_brackets)
        return fail(error, EINVAL, "'%s' is ambiguous: write [IPV6]:PORT, such as [::1]:10809",
                    text);
    if (!is_port(colon + 1))
        return fail(error, EINVAL,
                    "'%s': the port must be a number from 0 to 65535, such as 10809; for a file "
                    "name with a colon write ./NAME",
                    text);
    ret_address->host = in_brackets ? g_strndup(host + 1, len - 2) : g_steal_pointer(&host);
    ret_address->port = g_strdup(colon + 1);
    return 0;
}

int listeners_check_address(const char *address, GError **error)
{
    g_auto(Address) parsed = {0};
    return parse_address(address, &parsed, error);
}

static void add_uri(Listeners *listeners, const char *prefix, const char *suffix)
{
    g_ptr_array_add(listeners->origins, g_strdup(prefix));
    g_ptr_array_add(listeners->origins, g_strdup(suffix));
}

static int add_unix(Listeners *listeners, const char *path, mode_t mode, GError **error)
{
    int fd = socket_files_listen(listeners->files, path, mode, error);
    if (fd < 0)
        return fd;
    g_array_append_val(listeners->fds, fd);
    g_autofree char *escaped = g_uri_escape_string(path, "/", false);
    g_autofree char *suffix = g_strconcat("?socket=", escaped, NULL);
    add_uri(listeners, "nbd+unix:///", suffix);
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

static int add_tcp(Listeners *listeners, const Address *address, GError **error)
{
    guint first = listeners->fds->len;
    int r = nbds_listen_tcp(address->host, address->port, listeners->fds, error);
    if (r < 0)
        return r;
    const char *host = *address->host && strcmp(address->host, "*") ? address->host : "localhost";
    bool is_v6 = strchr(host, ':') != NULL;
    g_autofree char *prefix =
        g_strdup_printf("nbd://%s%s%s:%u/", is_v6 ? "[" : "", host, is_v6 ? "]" : "",
                        bound_port(g_array_index(listeners->fds, int, first)));
    add_uri(listeners, prefix, "");
    return 0;
}

static int add_address(Listeners *listeners, const char *text, GError **error)
{
    g_auto(Address) address = {0};
    int r = parse_address(text, &address, error);
    if (r < 0)
        return r;
    return address.path ? add_unix(listeners, address.path, 0, error)
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
    return add_unix(listeners, path, 0600, error);
}

static bool is_listening_stream(int fd)
{
    int type = 0, listening = 0;
    socklen_t len = sizeof(int);
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening;
}

int listeners_take_activation(GError **error)
{
    enum { MAX_FDS = 1024 };
    const char *pid = g_getenv("LISTEN_PID"), *count = g_getenv("LISTEN_FDS");
    guint64 n = 0;
    bool ours = pid && count && g_ascii_strtoull(pid, NULL, 10) == (guint64)getpid();
    if (ours && !g_ascii_string_to_unsigned(count, 10, 0, MAX_FDS, &n, NULL))
        return fail(error, EINVAL, "LISTEN_FDS is '%s', which is not a number of sockets", count);
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    g_unsetenv("LISTEN_FDNAMES");
    return (int)n;
}

// sd_listen_fds(3): descriptors from 3 on. Their names do not matter: NBD is all there is to serve.
static int add_activated(Listeners *listeners, unsigned n, GError **error)
{
    enum { FIRST_FD = 3 };
    for (int fd = FIRST_FD; fd < FIRST_FD + (int)n; fd++) {
        if (!is_listening_stream(fd))
            return fail(error, EINVAL,
                        "descriptor %d from socket activation is not a listening stream socket: "
                        "the unit needs ListenStream= and Accept=no",
                        fd);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        g_array_append_val(listeners->fds, fd);
    }
    return 0;
}

static int open_all(Listeners *listeners, unsigned n_activated, char *const *addresses,
                    GError **error)
{
    int r = add_activated(listeners, n_activated, error);
    if (r < 0)
        return r;
    if (!addresses)
        return 0;
    listeners->activated = n_activated > 0 && !*addresses;
    if (n_activated == 0 && !*addresses)
        return add_private(listeners, error);
    for (; *addresses; addresses++) {
        r = add_address(listeners, *addresses, error);
        if (r < 0)
            return r;
    }
    return 0;
}

static Listeners *listeners_new(void)
{
    Listeners *listeners = g_new0(Listeners, 1);
    listeners->fds = g_array_new(false, false, sizeof(int));
    listeners->origins = g_ptr_array_new_with_free_func(g_free);
    listeners->files = socket_files_new();
    return listeners;
}

Listeners *listeners_open(unsigned n_activated, char *const *addresses, GError **error)
{
    Listeners *listeners = listeners_new();
    if (open_all(listeners, n_activated, addresses, error) < 0)
        g_clear_pointer(&listeners, listeners_free);
    return listeners;
}

Listeners *listeners_open_fd(int fd, GError **error)
{
    if (!is_listening_stream(fd)) {
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
    g_free(listeners->private_dir);
    g_array_unref(listeners->fds);
    socket_files_free(listeners->files);
    g_ptr_array_unref(listeners->origins);
    g_free(listeners);
}

bool listeners_are_activated(const Listeners *listeners)
{
    return listeners->activated;
}

void listeners_serve(Listeners *listeners, NbdsServer *server, const Loops *loops)
{
    for (guint i = 0; i < listeners->fds->len; i++)
        nbds_server_add_listener(server, loops_get(loops, i),
                                 g_array_index(listeners->fds, int, i));
    g_array_set_size(listeners->fds, 0);
}

char **listeners_uris(const Listeners *listeners, const char *export_name)
{
    GStrvBuilder *uris = g_strv_builder_new();
    g_autofree char *name = g_uri_escape_string(export_name, "", true);
    for (guint i = 0; i + 1 < listeners->origins->len; i += 2) {
        g_autofree char *uri = g_strconcat(g_ptr_array_index(listeners->origins, i), name,
                                           g_ptr_array_index(listeners->origins, i + 1), NULL);
        g_strv_builder_add(uris, uri);
    }
    char **all = g_strv_builder_end(uris);
    g_strv_builder_unref(uris);
    return all;
}
