// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and jobs end first, then clients and disks, then what they stood on.
#include <errno.h>

#include "chain-core/remote-call.h"
#include "daemon-life.h"
#include "daemon/state/disks-opening.h"
#include "daemon/state/recovery.h"
#include "log.h"
#include "metrics-service.h"
#include "reload.h"

// Of an end, which takes 10 s at most but for this machine's own storage: commands and jobs get the
// first part; clients have 5 s after that; other machines may be silent until the second.
enum {
    COMMANDS_TIMEOUT_US = 3 * G_USEC_PER_SEC,
    STOP_TIMEOUT_US = 7 * G_USEC_PER_SEC,
};

// Jobs that a command started end with the commands.
static void end_commands(Fiber *self, void *arg)
{
    const Daemon *daemon = arg;
    disks_give_up_opening(self, daemon);
    reload_end(self, daemon->reload);
    qmp_server_end_commands(self, daemon->qmp);
    job_table_end(self, daemon->jobs);
}

static void stop_metrics(Fiber *self, void *arg)
{
    metrics_service_stop(self, arg);
}

static void stop_monitors(Fiber *self, void *arg)
{
    qmp_server_stop(self, arg);
}

static void give_up_nodes(Fiber *self, void *arg)
{
    const Daemon *daemon = arg;
    nodes_give_up(daemon->nodes);
    nodes_give_up_opening(self, daemon->nodes);
}

// No command runs after this. One that waits for a disk that does not answer is waited for; what
// waits for other machines goes on without them.
static void finish_commands(const Daemon *daemon, gint64 began_us)
{
    RemoteCall call;
    remote_call_start_reserve(&call, daemon_control_loop(daemon), end_commands, (void *)daemon);
    if (remote_call_wait(&call, began_us + COMMANDS_TIMEOUT_US) != -ETIMEDOUT)
        return;
    log_line(LOG_WARNING, "a command or job still runs: the storage that it needs does not answer; "
                          "waiting (a second signal leaves at once)");
    remote_call_reserve(daemon_control_loop(daemon), give_up_nodes, (void *)daemon);
    remote_call_wait(&call, -1);
}

typedef struct ControlEnd {
    Daemon *daemon;
    gint64 began_us;
    FiberWaitGroup stopping;
    int result;
} ControlEnd;

static void stop_server(Fiber *self, void *arg)
{
    ControlEnd *end = arg;
    nbd_server_stop(self, end->daemon->nbd);
    fiber_wait_group_done(&end->stopping);
}

// Clients and disks end at the same time: a client that hangs holds up its own disk only.
static void close_all(Fiber *self, void *arg)
{
    ControlEnd *end = arg;
    Daemon *daemon = end->daemon;
    fiber_wait_group_add(&end->stopping, 1);
    int stopped = fiber_spawn_reserve(fiber_loop(self), "nbd: stop", stop_server, end);
    if (stopped < 0)
        fiber_wait_group_done(&end->stopping);
    disks_stop(daemon);
    gint64 left_us = end->began_us + STOP_TIMEOUT_US - g_get_monotonic_time();
    end->result = disks_close_all(self, daemon->nodes, daemon->exports,
                                  (uint64_t)MAX(left_us, 0) * UINT64_C(1000));
    fiber_wait_group_wait(self, &end->stopping);
    if (stopped < 0)
        end->result = -ENOMEM;
    if (end->result != -ENOMEM)
        nbd_server_end(daemon->nbd);
}

int daemon_end(Daemon *daemon)
{
    ControlEnd end = {.daemon = daemon, .began_us = g_get_monotonic_time()};
    stop_set_reload(daemon->stop, NULL, NULL);
    if (daemon->qmp) {
        remote_call_reserve(daemon_control_loop(daemon), stop_metrics, daemon->metrics);
        finish_commands(daemon, end.began_us);
    }
    if (daemon->exports && remote_call_reserve(daemon_control_loop(daemon), close_all, &end) < 0)
        end.result = -ENOMEM;
    stop_set_leave(daemon->stop, NULL, NULL);
    if (end.result == -ENOMEM) {
        log_line(LOG_ERROR, "stopped without closing everything: out of memory");
        daemon_remove_sockets(daemon);
        return -ENOMEM;
    }
    if (daemon->qmp)
        remote_call_reserve(daemon_control_loop(daemon), stop_monitors, daemon->qmp);
    loops_stop(daemon->control);
    qmp_server_free(daemon->qmp);
    job_table_free(daemon->jobs);
    loops_stop(daemon->loops);
    iothreads_stop(daemon->iothreads);
    loops_free(daemon->control);
    loops_free(daemon->loops);
    iothreads_free(daemon->iothreads);
    service_free(daemon->service);
    reload_free(daemon->reload);
    access_free(daemon->access);
    exports_free(daemon->exports);
    nbd_server_free(daemon->nbd);
    nodes_free(daemon->nodes);
    job_history_free(daemon->history);
    catalogue_free(daemon->catalogue);
    objects_free(daemon->objects);
    throttle_groups_free(daemon->throttle_groups);
    tls_creds_table_free(daemon->tls_creds);
    map_memory_free(daemon->memory);
    monitors_free(daemon->monitors);
    metrics_service_free(daemon->metrics);
    inherited_fds_free(daemon->inherited);
    activation_clear(&daemon->activation);
    options_clear(&daemon->options);
    config_free(daemon->config);
    return end.result;
}
