// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon sends one JSON value a line. Lines that are events are kept until somebody asks for
// them.
#include "qmp-client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { GREETING_MS = 10000, RECEIVE_BYTES = 64 << 10 };

struct QmpClient {
    int fd;
    char *path;
    GString *received;
    gsize n_searched; // bytes of it that have no end of a line
    GQueue events;    // json_t
    json_t *commands; // of query-commands; NULL: not asked yet
};

// -- connecting -----------------------------------------------------------------------------------

// Paths of sockets are short; the name within an open directory is, whatever its path.
static int connect_unix(const char *path)
{
    g_autofree char *folder = g_path_get_dirname(path), *name = g_path_get_basename(path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder_fd < 0)
        return -errno;
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", folder_fd,
                     name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), r = 0;
    if (n < 0 || (size_t)n >= sizeof(address.sun_path))
        r = -ENAMETOOLONG;
    else if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        r = -errno;
    close(folder_fd);
    if (r < 0 && fd >= 0)
        close(fd);
    return r < 0 ? r : fd;
}

static int fail_connect(const char *path, int number, GError **error)
{
    if (number == EACCES || number == EPERM)
        return ctl_fail(error, CTL_DENIED,
                        "the control socket %s may not be used by this user: use sudo, or have "
                        "yourself added to the socket's group",
                        path);
    bool is_service = g_str_equal(path, CHAIND_RUN_DIR "/control.sock");
    g_autofree char *command = is_service ? g_strdup("chaind --service")
                                          : g_strdup_printf("chaind --state DIR --qmp %s", path);
    return ctl_fail(
        error, CTL_NO_DAEMON,
        "no daemon answers at %s (%s): start one with '%s', or name the socket of yours "
        "with --socket or CHAIND_SOCKET",
        path, g_strerror(number), command);
}

// -- lines ----------------------------------------------------------------------------------------

static int fail_lost(const QmpClient *client, GError **error)
{
    return ctl_fail(error, CTL_NO_DAEMON,
                    "the daemon at %s has ended the connection: 'chainctl status' says whether it "
                    "still runs",
                    client->path);
}

// A line without its end; NULL: there is none yet. Owned.
static char *take_line(QmpClient *client)
{
    GString *received = client->received;
    char *end =
        memchr(received->str + client->n_searched, '\n', received->len - client->n_searched);
    client->n_searched = received->len;
    if (!end)
        return NULL;
    gsize len = (gsize)(end - received->str);
    char *line = g_strndup(received->str, len);
    g_string_erase(received, 0, (gssize)len + 1);
    client->n_searched = 0;
    return line;
}

// 1: bytes came; 0: none did until then, or a signal came.
static int receive(QmpClient *client, int timeout_ms, GError **error)
{
    struct pollfd in = {client->fd, POLLIN, 0};
    int n = poll(&in, 1, timeout_ms);
    if (n == 0 || (n < 0 && errno == EINTR))
        return 0;
    gsize before = client->received->len;
    g_string_set_size(client->received, before + RECEIVE_BYTES);
    ssize_t got = n < 0 ? -1 : recv(client->fd, client->received->str + before, RECEIVE_BYTES, 0);
    g_string_set_size(client->received, before + (gsize)MAX(got, 0));
    return got <= 0 ? fail_lost(client, error) : 1;
}

// The next value of the wire. NULL without `error`: none came in time, or a signal did and
// `stops_for_signals`.
static json_t *next_value(QmpClient *client, int timeout_ms, bool stops_for_signals, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    char *line;
    while (!(line = take_line(client))) {
        gint64 left_ms = (deadline - g_get_monotonic_time() + 999) / 1000;
        int r = receive(client, timeout_ms < 0 ? -1 : (int)MAX(left_ms, 0), error);
        if (r < 0 || (r == 0 && (stops_for_signals || (timeout_ms >= 0 && left_ms <= 0))))
            return NULL;
    }
    json_error_t fault;
    json_t *value = json_loads(line, 0, &fault);
    if (!json_is_object(value)) {
        json_decref(value);
        value = NULL;
        ctl_fail(error, CTL_FAILED, "what answers at %s does not speak QMP: %s", client->path,
                 fault.text);
    }
    g_free(line);
    return value;
}

// -- commands -------------------------------------------------------------------------------------

static int send_all(const QmpClient *client, const char *bytes, size_t len, GError **error)
{
    while (len) {
        ssize_t n = send(client->fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_lost(client, error);
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

// The reply; events before it are kept.
static json_t *await_reply(QmpClient *client, GError **error)
{
    for (;;) {
        json_t *value = next_value(client, -1, false, error);
        if (!value || !json_object_get(value, "event"))
            return value;
        g_queue_push_tail(&client->events, value);
    }
}

json_t *qmp_client_run(QmpClient *client, const char *command, json_t *args, GError **error)
{
    json_auto_t *request = json_pack("{s:s, s:o*}", "execute", command, "arguments", args);
    char *text = json_dumps(request, JSON_COMPACT);
    int r = send_all(client, text, strlen(text), error);
    free(text);
    json_auto_t *reply = r == 0 ? await_reply(client, error) : NULL;
    if (!reply)
        return NULL;
    const json_t *refusal = json_object_get(reply, "error");
    if (refusal) {
        const char *desc = json_string_value(json_object_get(refusal, "desc"));
        ctl_fail(error, ctl_status_of_qmp(refusal), "%s", desc ? desc : "refused without a reason");
        return NULL;
    }
    return json_incref(json_object_get(reply, "return"));
}

bool qmp_client_has(QmpClient *client, const char *command)
{
    size_t i;
    const json_t *info;
    if (!client->commands)
        client->commands = qmp_client_run(client, "query-commands", NULL, NULL);
    json_array_foreach(client->commands, i, info)
    {
        if (g_strcmp0(json_string_value(json_object_get(info, "name")), command) == 0)
            return true;
    }
    return false;
}

json_t *qmp_client_next_event(QmpClient *client, int timeout_ms, GError **error)
{
    json_t *event = g_queue_pop_head(&client->events);
    return event ? event : next_value(client, timeout_ms, true, error);
}

// -- life -----------------------------------------------------------------------------------------

static int negotiate(QmpClient *client, GError **error)
{
    json_auto_t *greeting = next_value(client, GREETING_MS, false, error);
    const json_t *refusal = json_object_get(greeting, "error");
    if (refusal)
        return ctl_fail(error, ctl_status_of_qmp(refusal), "the socket %s is for others: %s",
                        client->path, json_string_value(json_object_get(refusal, "desc")));
    if (!greeting || !json_object_get(greeting, "QMP")) {
        if (!error || !*error)
            ctl_fail(error, CTL_NO_DAEMON, "what listens at %s does not greet as a daemon does",
                     client->path);
        return -1;
    }
    json_auto_t *reply = qmp_client_run(client, "qmp_capabilities", NULL, error);
    return reply ? 0 : -1;
}

QmpClient *qmp_client_open(const char *path, GError **error)
{
    int fd = connect_unix(path);
    if (fd < 0) {
        fail_connect(path, -fd, error);
        return NULL;
    }
    QmpClient *client = g_new0(QmpClient, 1);
    client->fd = fd;
    client->path = g_strdup(path);
    client->received = g_string_new(NULL);
    g_queue_init(&client->events);
    if (negotiate(client, error) == 0)
        return client;
    qmp_client_free(client);
    return NULL;
}

void qmp_client_free(QmpClient *client)
{
    if (!client)
        return;
    close(client->fd);
    g_free(client->path);
    g_string_free(client->received, TRUE);
    g_queue_clear_full(&client->events, (GDestroyNotify)json_decref);
    json_decref(client->commands);
    g_free(client);
}
