// SPDX-License-Identifier: LGPL-2.1-or-later
// One fiber writes the file, one accepts clients, each client has one. A client is read until the
// empty line, answered and disconnected; who takes longer than a moment is disconnected before.
#include "metrics-service.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/stream.h"
#include "chardev.h"
#include "log.h"
#include "metrics.h"

enum { MAX_CLIENTS = 8, REQUEST_BYTES = 4096, SOCKET_MODE = 0660, FILE_MODE = 0644 };

static const uint64_t CLIENT_TIMEOUT_NS = 10000000000; // Prometheus gives up then, too
static const uint64_t RETRY_NS = 50000000;             // when the host has no descriptor left

struct MetricsService {
    const Daemon *daemon;
    char *path, *temporary; // of the file; NULL: there is none
    uint64_t interval_ns;
    bool is_failing;  // the log knows
    Chardev *chardev; // the socket; NULL: there is none
    StreamListener *listener;
    Fiber *writer, *acceptor;
    GPtrArray *clients; // Stream
    FiberQueue left;    // a client has
    FiberWaitGroup fibers;
    bool is_stopping;
};

// -- opening --------------------------------------------------------------------------------------

// A path, or HOST:PORT; owned.
static json_t *backend_of(const char *address)
{
    const char *colon = strrchr(address, ':');
    if (strchr(address, '/') || !colon)
        return json_pack("{s:s, s:{s:{s:s, s:{s:s}}}}", "type", "socket", "data", "addr", "type",
                         "unix", "data", "path", address);
    g_autofree char *host = g_strndup(address, (gsize)(colon - address));
    g_autofree char *bare = *host == '[' ? g_strndup(host + 1, strlen(host + 1) - 1) : NULL;
    return json_pack("{s:s, s:{s:{s:s, s:{s:s, s:s}}}}", "type", "socket", "data", "addr", "type",
                     "inet", "data", "host", bare ? bare : host, "port", colon + 1);
}

static int open_socket(MetricsService *service, const char *address, GError **error)
{
    json_auto_t *backend = backend_of(address);
    service->chardev = chardev_open(NULL, NULL, backend, error);
    if (!service->chardev) {
        g_prefix_error(error, "metrics: ");
        return -EINVAL;
    }
    static const SocketAccess access = {SOCKET_MODE, (uid_t)-1, (gid_t)-1};
    return strchr(address, '/') ? socket_files_set_access(service->chardev->files, &access, error)
                                : 0;
}

MetricsService *metrics_service_open(const Daemon *daemon, const DaemonSettings *settings,
                                     GError **error)
{
    MetricsService *service = g_new0(MetricsService, 1);
    service->daemon = daemon;
    service->clients = g_ptr_array_new();
    service->interval_ns = settings->metrics_interval_s * UINT64_C(1000000000);
    if (settings->metrics_path) {
        service->path = g_canonicalize_filename(settings->metrics_path, NULL);
        service->temporary = g_strconcat(service->path, ".tmp", NULL);
    }
    if (settings->metrics_address && open_socket(service, settings->metrics_address, error) < 0)
        g_clear_pointer(&service, metrics_service_free);
    return service;
}

void metrics_service_free(MetricsService *service)
{
    if (!service)
        return;
    chardev_close(service->chardev);
    g_ptr_array_unref(service->clients);
    g_free(service->path);
    g_free(service->temporary);
    g_free(service);
}

// -- the file -------------------------------------------------------------------------------------

typedef struct Writing {
    const MetricsService *service;
    const GString *text;
} Writing;

static int write_all(int fd, const GString *text)
{
    for (gsize at = 0; at < text->len;) {
        ssize_t n = write(fd, text->str + at, text->len - at);
        if (n < 0 && errno != EINTR)
            return -errno;
        at += (gsize)MAX(n, 0);
    }
    return 0;
}

// On a worker. Readers find the old text or the new one.
static int write_file(void *arg)
{
    const Writing *w = arg;
    const char *temporary = w->service->temporary;
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, FILE_MODE);
    if (fd < 0)
        return -errno;
    int r = write_all(fd, w->text);
    close(fd);
    if (r == 0 && rename(temporary, w->service->path) < 0)
        r = -errno;
    if (r < 0)
        unlink(temporary);
    return r;
}

static void note_result(MetricsService *service, int r)
{
    if (r < 0 && !service->is_failing)
        log_line(LOG_WARNING, "the metrics cannot be written to '%s': %s; tried again every %u s",
                 service->path, g_strerror(-r), (unsigned)(service->interval_ns / 1000000000));
    service->is_failing = r < 0;
}

static void write_files(Fiber *self, void *arg)
{
    MetricsService *service = arg;
    while (!service->is_stopping) {
        GString *text = metrics_make(self, service->daemon);
        Writing writing = {service, text};
        note_result(service, loop_work(self, write_file, &writing));
        g_string_free(text, true);
        if (!service->is_stopping)
            fiber_sleep(self, service->interval_ns);
    }
    unlink(service->path);
    service->writer = NULL;
    fiber_wait_group_done(&service->fibers);
}

// -- HTTP -----------------------------------------------------------------------------------------

typedef struct Client {
    MetricsService *service;
    Stream *stream;
    LoopTimer timeout;
} Client;

static void timed_out(LoopTimer *timer)
{
    stream_shutdown(((Client *)((char *)timer - offsetof(Client, timeout)))->stream);
}

// The head, up to its empty line: only its first line matters. False: there is none.
static bool receive_head(Fiber *self, Stream *stream, char head[REQUEST_BYTES])
{
    size_t n = 0;
    while (n + 1 < REQUEST_BYTES) {
        ssize_t got = stream_recv(self, stream, head + n, REQUEST_BYTES - 1 - n);
        if (got <= 0)
            return false;
        n += (size_t)got;
        head[n] = '\0';
        if (memmem(head, n, "\r\n\r\n", 4) || memmem(head, n, "\n\n", 2))
            return true;
    }
    return false;
}

typedef enum Answer { ANSWER_METRICS, ANSWER_NOT_FOUND, ANSWER_NO_METHOD, ANSWER_BAD } Answer;

static Answer answer_to(const char *head)
{
    g_autofree char *line = g_strndup(head, strcspn(head, "\r\n"));
    g_auto(GStrv) words = g_strsplit(line, " ", -1);
    if (g_strv_length(words) != 3 || !g_str_has_prefix(words[2], "HTTP/1."))
        return ANSWER_BAD;
    words[1][strcspn(words[1], "?")] = '\0';
    if (!g_str_equal(words[0], "GET"))
        return ANSWER_NO_METHOD;
    return g_str_equal(words[1], "/metrics") ? ANSWER_METRICS : ANSWER_NOT_FOUND;
}

static void send_answer(Fiber *self, const Client *client, Answer answer)
{
    static const char *const status[] = {"200 OK", "404 Not Found", "405 Method Not Allowed",
                                         "400 Bad Request"};
    GString *body = answer == ANSWER_METRICS ? metrics_make(self, client->service->daemon)
                                             : g_string_new("GET /metrics is all there is\n");
    g_autofree char *head = g_strdup_printf(
        "HTTP/1.1 %s\r\n%sContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        "Content-Length: %" G_GSIZE_FORMAT "\r\nConnection: close\r\n\r\n",
        status[answer], answer == ANSWER_NO_METHOD ? "Allow: GET\r\n" : "", body->len);
    struct iovec iov[] = {{head, strlen(head)}, {body->str, body->len}};
    if (stream_send(self, client->stream, iov, 2) == 0)
        stream_end_sending(client->stream);
    g_string_free(body, true);
}

static void serve_client(Fiber *self, void *arg)
{
    Client *client = arg;
    MetricsService *service = client->service;
    char head[REQUEST_BYTES], rest[256];
    loop_timer_start(fiber_loop(self), &client->timeout, CLIENT_TIMEOUT_NS);
    if (receive_head(self, client->stream, head)) {
        send_answer(self, client, answer_to(head));
        while (stream_recv(self, client->stream, rest, sizeof rest) > 0) // until it has all
            ;
    }
    loop_timer_stop(fiber_loop(self), &client->timeout);
    g_ptr_array_remove(service->clients, client->stream);
    stream_free(client->stream);
    g_free(client);
    fiber_queue_wake_all(&service->left);
    fiber_wait_group_done(&service->fibers);
}

static void begin_client(Fiber *self, MetricsService *service, int fd)
{
    Client *client = g_new0(Client, 1);
    client->service = service;
    client->stream = stream_new_fd(fiber_loop(self), fd);
    client->timeout.fn = timed_out;
    g_ptr_array_add(service->clients, client->stream);
    fiber_wait_group_add(&service->fibers, 1);
    if (fiber_spawn(fiber_loop(self), "metrics client", serve_client, client, NULL) == 0)
        return;
    g_ptr_array_remove(service->clients, client->stream);
    stream_free(client->stream);
    g_free(client);
    fiber_wait_group_done(&service->fibers);
}

static void accept_clients(Fiber *self, void *arg)
{
    MetricsService *service = arg;
    while (!service->is_stopping) {
        if (service->clients->len >= MAX_CLIENTS) {
            fiber_queue_wait(self, &service->left, true, "metrics: many clients");
            continue;
        }
        int fd = stream_accept(self, service->listener);
        if (fd >= 0)
            begin_client(self, service, fd);
        else if (!service->is_stopping)
            fiber_sleep(self, RETRY_NS);
    }
    service->acceptor = NULL;
    fiber_wait_group_done(&service->fibers);
}

// -- life -----------------------------------------------------------------------------------------

static int spawn(MetricsService *service, Loop *control, const char *name, FiberFn *fn,
                 Fiber **ret_fiber)
{
    fiber_wait_group_add(&service->fibers, 1);
    int r = fiber_spawn(control, name, fn, service, ret_fiber);
    if (r < 0)
        fiber_wait_group_done(&service->fibers);
    return r;
}

int metrics_service_start(MetricsService *service, Loop *control)
{
    int r = 0;
    if (service->path)
        r = spawn(service, control, "metrics file", write_files, &service->writer);
    if (r < 0 || !service->chardev)
        return r;
    int fd = g_array_index(service->chardev->sockets, int, 0);
    g_array_remove_index(service->chardev->sockets, 0);
    service->listener = stream_listener_new_fd(control, fd);
    return spawn(service, control, "metrics listener", accept_clients, &service->acceptor);
}

void metrics_service_stop(Fiber *self, MetricsService *service)
{
    if (!service)
        return;
    service->is_stopping = true;
    if (service->writer)
        fiber_cancel(service->writer);
    if (service->acceptor)
        fiber_cancel(service->acceptor);
    for (guint i = 0; i < service->clients->len; i++)
        stream_shutdown(service->clients->pdata[i]);
    fiber_wait_group_wait(self, &service->fibers);
    if (service->listener)
        stream_listener_free(service->listener);
    service->listener = NULL;
}
