// SPDX-License-Identifier: LGPL-2.1-or-later
// The life of a monitor. Replies and events stand in one queue, in the order in which they came to
// be, so that events of a command precede its reply.
//
// A client that does not read is not served further: its next command waits until most of what is
// unsent is sent. So of replies there is never much more than one. Events still queue up; beyond a
// bound the monitor is closed, since the client would miss some.
//
// A large reply becomes text on a worker, so that other monitors do not wait for that.
//
//     receiver: greeting → command → command → … → the client left, or qmp_monitor_end_commands()
//     and qmp_monitor_end() → waits for the sender
//     sender: line → line → … → the receiver takes no more, and nothing is unsent
#include "monitor.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "daemon/log.h"
#include "framing.h"
#include "table.h"
#include "version.h"

enum {
    RECEIVE_BYTES = 16 << 10,
    SEND_BYTES = 64 << 10,        // in one go
    SLOW_BYTES = 1 << 20,         // unsent: the next command waits
    MAX_UNSENT_EVENTS = 16 << 20, // bytes: closed
    LARGE_ARRAY = 32,             // elements of a reply: takes about as long as asking a worker
};

typedef struct Line {
    char *text; // with its CRLF
    size_t len;
    bool is_event;
} Line;

struct QmpMonitor {
    QmpMonitorConfig config;
    QmpCall call;
    Stream *stream;
    Fiber *receiver;
    GQueue lines; // Line, unsent
    size_t unsent_bytes, unsent_event_bytes;
    FiberQueue has_lines, has_sent;
    bool is_receiving; // inside stream_recv()
    bool is_ending;    // takes no more commands
    bool is_last;      // and no more events will come
    bool is_complete;  // nothing will be queued any more
    bool is_broken;    // nothing can be sent any more
    bool is_sender_there;
    LoopTimer timeout;
};

// -- sending --------------------------------------------------------------------------------------

static void break_off(QmpMonitor *monitor)
{
    monitor->is_broken = true;
    stream_shutdown(monitor->stream);
    fiber_queue_wake_all(&monitor->has_lines);
    fiber_queue_wake_all(&monitor->has_sent);
}

// Takes `text`.
static void queue_line(QmpMonitor *monitor, char *text, bool is_event)
{
    if (monitor->is_broken || monitor->is_complete) {
        g_free(text);
        return;
    }
    Line *line = g_new(Line, 1);
    *line = (Line){text, strlen(text), is_event};
    g_queue_push_tail(&monitor->lines, line);
    monitor->unsent_bytes += line->len;
    monitor->unsent_event_bytes += is_event ? line->len : 0;
    if (monitor->unsent_event_bytes > MAX_UNSENT_EVENTS) {
        log_about(LOG_WARNING, &(LogAbout){.client = monitor->config.name},
                  "a client of '%s' does not read what it is sent: %zu bytes of replies and events "
                  "wait for it; it is disconnected",
                  monitor->config.name, monitor->unsent_bytes);
        break_off(monitor);
    } else {
        fiber_queue_wake_all(&monitor->has_lines);
    }
}

static void line_free(gpointer p)
{
    g_free(((Line *)p)->text);
    g_free(p);
}

static int add_to_text(const char *bytes, size_t len, void *text)
{
    g_string_append_len(text, bytes, (gssize)len);
    return 0;
}

// With CRLF; owned.
static char *line_of(const json_t *value)
{
    GString *text = g_string_new(NULL);
    json_dump_callback(value, add_to_text, text, JSON_ENSURE_ASCII);
    g_string_append(text, "\r\n");
    return g_string_free(text, false);
}

static void queue_json(QmpMonitor *monitor, const json_t *value)
{
    queue_line(monitor, line_of(value), false);
}

// In pieces: the kernel takes its time to copy a large one, which others do not wait for.
static int send_line(Fiber *self, QmpMonitor *monitor, const Line *line)
{
    int r = 0;
    for (size_t at = 0; at < line->len && r >= 0 && !monitor->is_broken; at += SEND_BYTES) {
        struct iovec iov = {line->text + at, MIN(line->len - at, SEND_BYTES)};
        r = stream_send(self, monitor->stream, &iov, 1);
        if (line->len > SEND_BYTES)
            fiber_yield(self);
    }
    return r;
}

static void send_lines(Fiber *self, void *arg)
{
    QmpMonitor *monitor = arg;
    while (!monitor->is_broken && !(monitor->is_complete && !monitor->lines.length)) {
        Line *line = g_queue_pop_head(&monitor->lines);
        if (!line) {
            fiber_queue_wait(self, &monitor->has_lines, false, "qmp: nothing to send");
            continue;
        }
        int r = send_line(self, monitor, line);
        monitor->unsent_bytes -= line->len;
        monitor->unsent_event_bytes -= line->is_event ? line->len : 0;
        line_free(line);
        if (r < 0)
            break_off(monitor);
        fiber_queue_wake_all(&monitor->has_sent);
    }
    monitor->is_sender_there = false;
    fiber_queue_wake_all(&monitor->has_sent);
}

// -- receiving ------------------------------------------------------------------------------------

static void greet(QmpMonitor *monitor)
{
    json_auto_t *greeting =
        json_pack("{s:{s:o, s:[]}}", "QMP", "version", qmp_version_make(), "capabilities");
    queue_json(monitor, greeting);
}

// Is there a long list in it?
static bool is_large(const json_t *reply)
{
    const json_t *result = json_object_get(reply, "return");
    const char *name;
    json_t *member;
    if (json_array_size(result) >= LARGE_ARRAY)
        return true;
    json_object_foreach((json_t *)result, name,
                        member) if (json_array_size(member) >= LARGE_ARRAY) return true;
    return false;
}

typedef struct Rendering {
    json_t *reply;
    char *line;
} Rendering;

static int render_on_worker(void *arg)
{
    Rendering *rendering = arg;
    rendering->line = line_of(rendering->reply);
    json_decref(rendering->reply); // which takes as long as making it
    return 0;
}

// Whoever is not the daemon's own user leaves a line for each change.
static void log_change(const QmpMonitor *monitor, const json_t *request, const json_t *reply)
{
    const SocketProcess *peer = monitor->config.peer;
    const char *name = json_string_value(json_object_get(request, "execute"));
    const QmpCommand *command =
        peer && name ? qmp_table_find_command(monitor->config.table, name) : NULL;
    if (!command || command->is_query)
        return;
    g_autofree char *who = socket_process_text(peer);
    log_line(peer->uid == geteuid() ? LOG_DEBUG : LOG_INFO, "%s by %s%s", name, who,
             json_object_get(reply, "error") ? ": refused, or failed" : "");
}

static void run(Fiber *self, QmpMonitor *monitor, const json_t *request)
{
    fiber_wait_group_add(monitor->config.running, 1);
    Rendering rendering = {.reply = qmp_table_dispatch(self, &monitor->call, request)};
    log_change(monitor, request, rendering.reply);
    if (is_large(rendering.reply))
        loop_work(self, render_on_worker, &rendering);
    else
        render_on_worker(&rendering);
    fiber_wait_group_done(monitor->config.running);
    queue_line(monitor, rendering.line, false);
}

static void refuse(QmpMonitor *monitor, const GError *error)
{
    json_auto_t *reply = json_pack("{s:o}", "error", qmp_error_to_json(error, -EINVAL));
    queue_json(monitor, reply);
}

// Runs each command that is complete.
static void take_bytes(Fiber *self, QmpMonitor *monitor, QmpFraming *framing, const char *bytes,
                       size_t len)
{
    while (!monitor->is_ending && !monitor->is_broken) {
        g_autoptr(GError) error = NULL;
        json_auto_t *request = NULL;
        switch (qmp_framing_take(framing, &bytes, &len, &request, &error)) {
        case QMP_FRAME_NONE:
            return;
        case QMP_FRAME_VALUE:
            run(self, monitor, request);
            break;
        case QMP_FRAME_BAD:
            refuse(monitor, error);
            break;
        }
        while (monitor->unsent_bytes > SLOW_BYTES && !monitor->is_broken && !monitor->is_ending)
            fiber_queue_wait(self, &monitor->has_sent, true, "qmp: the client does not read");
    }
}

static void receive_commands(Fiber *self, QmpMonitor *monitor)
{
    g_autofree char *bytes = g_malloc(RECEIVE_BYTES);
    QmpFraming framing;
    qmp_framing_init(&framing);
    while (!monitor->is_ending && !monitor->is_broken) {
        monitor->is_receiving = true;
        ssize_t n = stream_recv(self, monitor->stream, bytes, RECEIVE_BYTES);
        monitor->is_receiving = false;
        if (n <= 0)
            break;
        take_bytes(self, monitor, &framing, bytes, (size_t)n);
    }
    qmp_framing_done(&framing);
}

// -- life -----------------------------------------------------------------------------------------

static void timed_out(LoopTimer *timer)
{
    break_off((QmpMonitor *)((char *)timer - offsetof(QmpMonitor, timeout)));
}

QmpMonitor *qmp_monitor_new(Stream *stream, const QmpMonitorConfig *config)
{
    QmpMonitor *monitor = g_new0(QmpMonitor, 1);
    monitor->config = *config;
    monitor->call = (QmpCall){
        .daemon = config->daemon,
        .table = config->table,
        .is_read_only = config->is_read_only,
        .peer = config->peer,
    };
    monitor->stream = stream;
    monitor->timeout.fn = timed_out;
    g_queue_init(&monitor->lines);
    return monitor;
}

void qmp_monitor_free(QmpMonitor *monitor)
{
    g_assert(!monitor->is_sender_there && !monitor->receiver);
    stream_free(monitor->stream);
    g_queue_clear_full(&monitor->lines, line_free);
    g_free(monitor);
}

void qmp_monitor_run(Fiber *self, QmpMonitor *monitor)
{
    monitor->is_sender_there = true;
    if (fiber_spawn(fiber_loop(self), "qmp sender", send_lines, monitor, NULL) < 0) {
        monitor->is_sender_there = false;
        return; // without memory for a stack the client is disconnected
    }
    monitor->receiver = self;
    greet(monitor);
    receive_commands(self, monitor);
    while (monitor->is_ending && !monitor->is_last && !monitor->is_broken)
        fiber_queue_wait(self, &monitor->has_sent, false, "qmp: takes no more commands");
    monitor->is_complete = true;
    fiber_queue_wake_all(&monitor->has_lines);
    while (monitor->is_sender_there)
        fiber_queue_wait(self, &monitor->has_sent, false, "qmp: sends what is left");
    loop_timer_stop(fiber_loop(self), &monitor->timeout);
    monitor->receiver = NULL;
}

void qmp_monitor_end_commands(QmpMonitor *monitor)
{
    monitor->is_ending = true;
    if (monitor->receiver && monitor->is_receiving)
        fiber_cancel(monitor->receiver);
    fiber_queue_wake_all(&monitor->has_sent);
}

void qmp_monitor_end(QmpMonitor *monitor, uint64_t timeout_ns)
{
    monitor->is_last = true;
    qmp_monitor_end_commands(monitor);
    if (!monitor->receiver)
        return;
    loop_timer_stop(fiber_loop(monitor->receiver), &monitor->timeout);
    loop_timer_start(fiber_loop(monitor->receiver), &monitor->timeout, timeout_ns);
}

void qmp_monitor_send_event(QmpMonitor *monitor, const char *text)
{
    if (monitor->call.is_negotiated)
        queue_line(monitor, g_strconcat(text, "\r\n", NULL), true);
}
