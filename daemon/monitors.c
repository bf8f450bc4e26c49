// SPDX-License-Identifier: LGPL-2.1-or-later
// Monitors' sockets are bound before anything is opened, as those of NBD are: a wrong path costs
// nothing. Only the daemon's user may connect: who can write to such a socket controls the daemon,
// and can have it open any file that it may open.
//
// --chardev names a socket or the terminal, and --monitor has it speak QMP. Whatever their order,
// clients are served after all other options have taken effect.
#include "monitors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/qmp/args.h"
#include "socket-files.h"
#include "stdio-relay.h"

enum { SOCKET_MODE = 0600 };

typedef struct MonitorSocket {
    int fd; // -1: it is the server's
    bool is_listener;
    char *name;
} MonitorSocket;

struct Monitors {
    GArray *sockets; // MonitorSocket
    SocketFiles *files;
    StdioRelay *stdio; // NULL: not used
};

// -- options --------------------------------------------------------------------------------------

static const QmpType backend = {
    .name = "ChardevBackendKind",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"socket", "stdio", NULL},
};
static const QmpType socket_options = {
    .name = "ChardevSocket",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, true},
                                   {"fd", &qmp_str, true},
                                   {"server", &qmp_bool, true},
                                   {"wait", &qmp_bool, true}, // nothing waits
                                   {0}},
};
static const QmpType stdio_options = {
    .name = "ChardevStdio",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"signal", &qmp_bool, true}, {0}}, // signals are not changed
};
static const QmpType chardev_type = {
    .name = "Chardev",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"backend", &backend}, {"id", &qmp_str}, {0}},
    .tag = "backend",
    .variants = (const QmpVariant[]){{"socket", &socket_options}, {"stdio", &stdio_options}, {0}},
};
static const QmpType mode = {
    .name = "MonitorMode", .kind = QMP_ENUM, .values = (const char *const[]){"control", NULL}};
static const QmpType monitor_type = {
    .name = "MonitorOptions",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"chardev", &qmp_str},
                                   {"id", &qmp_str, true},
                                   {"mode", &mode, true},
                                   {"pretty", &qmp_bool, true}, // lines stay lines
                                   {0}},
};

static int fail(GError **error, int number, const char *what)
{
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(number), "%s: %s", what,
                g_strerror(number));
    return -number;
}

static void add_socket(Monitors *monitors, int fd, bool is_listener, const char *name)
{
    MonitorSocket socket = {.fd = fd, .is_listener = is_listener, .name = g_strdup(name)};
    g_array_append_val(monitors->sockets, socket);
}

// -- sockets --------------------------------------------------------------------------------------

static int listen_at(Monitors *monitors, const char *path, GError **error)
{
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    int fd = socket_files_listen(monitors->files, absolute, SOCKET_MODE, error);
    if (fd < 0)
        return fd;
    add_socket(monitors, fd, true, absolute);
    return 0;
}

static int connect_to(Monitors *monitors, const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_autofree char *what = g_strdup_printf("Failed to connect to '%s'", path);
    if (strlen(path) >= sizeof address.sun_path)
        return fail(error, ENAMETOOLONG, what);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(error, errno, what);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        int number = errno;
        close(fd);
        return fail(error, number, what);
    }
    add_socket(monitors, fd, false, path);
    return 0;
}

// A socket that the process was started with.
static int take_fd(Monitors *monitors, const char *text, bool is_listener, GError **error)
{
    guint64 fd;
    struct stat st;
    if (!g_ascii_string_to_unsigned(text, 10, 0, INT_MAX, &fd, NULL)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "Unable to parse FD number %s", text);
        return -EINVAL;
    }
    if (fstat((int)fd, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "File descriptor '%s' is not a socket",
                    text);
        return -EINVAL;
    }
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    g_autofree char *name = g_strdup_printf("descriptor %s", text);
    add_socket(monitors, (int)fd, is_listener, name);
    return 0;
}

static int open_stdio(Monitors *monitors, bool is_background, GError **error)
{
    int fd;
    if (monitors->stdio || is_background) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "cannot use stdio %s",
                    is_background ? "with --daemonize" : "by multiple character devices");
        return -EINVAL;
    }
    monitors->stdio = stdio_relay_new(&fd, error);
    if (!monitors->stdio)
        return -EIO;
    add_socket(monitors, fd, false, "standard input");
    return 0;
}

static int open_chardev(Monitors *monitors, const Options *options, const json_t *args,
                        GError **error)
{
    const char *path = qmp_args_str(args, "path"), *fd = qmp_args_str(args, "fd");
    bool is_server = qmp_args_bool(args, "server", false);
    if (g_str_equal(qmp_args_str(args, "backend"), "stdio"))
        return open_stdio(monitors, options->daemonize, error);
    if (fd)
        return take_fd(monitors, fd, is_server, error);
    if (path)
        return is_server ? listen_at(monitors, path, error) : connect_to(monitors, path, error);
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                "a socket needs path= or fd=; monitors on TCP are not served");
    return -EINVAL;
}

// -- all of them ----------------------------------------------------------------------------------

static int check(const StartupOption *option, const QmpType *type, GError **error)
{
    int r = qmp_type_check(type, option->args, option->input, error);
    if (r < 0)
        g_prefix_error(error, "%s: ", option->text);
    return r;
}

static const StartupOption *find_chardev(const Options *options, const char *id)
{
    for (guint i = 0; i < options->startups->len; i++) {
        const StartupOption *option = options->startups->pdata[i];
        if (option->kind == STARTUP_CHARDEV && g_str_equal(qmp_args_str(option->args, "id"), id))
            return option;
    }
    return NULL;
}

static int open_monitor(Monitors *monitors, const Options *options, const StartupOption *option,
                        GError **error)
{
    const char *id = qmp_args_str(option->args, "chardev");
    const StartupOption *chardev = find_chardev(options, id);
    if (!chardev) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "%s: chardev \"%s\" not found",
                    option->text, id);
        return -EINVAL;
    }
    int r = open_chardev(monitors, options, chardev->args, error);
    if (r < 0)
        g_prefix_error(error, "%s: ", chardev->text);
    return r;
}

static int open_all(Monitors *monitors, const Options *options, GError **error)
{
    int r = 0;
    for (char **path = options->qmp_paths; r == 0 && *path; path++)
        r = listen_at(monitors, *path, error);
    // Chardevs first: a monitor's may come after it.
    for (guint i = 0; r == 0 && i < options->startups->len; i++) {
        const StartupOption *option = options->startups->pdata[i];
        if (option->kind == STARTUP_CHARDEV)
            r = check(option, &chardev_type, error);
    }
    for (guint i = 0; r == 0 && i < options->startups->len; i++) {
        const StartupOption *option = options->startups->pdata[i];
        if (option->kind == STARTUP_MONITOR) {
            r = check(option, &monitor_type, error);
            if (r == 0)
                r = open_monitor(monitors, options, option, error);
        }
    }
    return r;
}

static void socket_clear(gpointer p)
{
    MonitorSocket *socket = p;
    if (socket->fd >= 0)
        close(socket->fd);
    g_free(socket->name);
}

Monitors *monitors_open(const Options *options, GError **error)
{
    Monitors *monitors = g_new0(Monitors, 1);
    monitors->files = socket_files_new();
    monitors->sockets = g_array_new(false, false, sizeof(MonitorSocket));
    g_array_set_clear_func(monitors->sockets, socket_clear);
    if (open_all(monitors, options, error) < 0)
        g_clear_pointer(&monitors, monitors_free);
    return monitors;
}

void monitors_remove_files(const Monitors *monitors)
{
    if (monitors)
        socket_files_remove(monitors->files);
}

bool monitors_use_stdio(const Monitors *monitors)
{
    return monitors->stdio;
}

void monitors_free(Monitors *monitors)
{
    if (!monitors)
        return;
    socket_files_free(monitors->files);
    g_array_unref(monitors->sockets); // ends the relay, if it was not served
    stdio_relay_free(monitors->stdio);
    g_free(monitors);
}

int monitors_serve(Monitors *monitors, QmpServer *server, GError **error)
{
    for (guint i = 0; i < monitors->sockets->len; i++) {
        MonitorSocket *socket = &g_array_index(monitors->sockets, MonitorSocket, i);
        int fd = socket->fd;
        socket->fd = -1;
        int r = socket->is_listener ? qmp_server_add_listener(server, fd, socket->name)
                                    : qmp_server_add_client(server, fd, socket->name);
        if (r < 0) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                        "'%s' cannot be served: no memory for a fiber's stack", socket->name);
            return r;
        }
    }
    return 0;
}
