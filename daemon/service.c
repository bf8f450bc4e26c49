// SPDX-License-Identifier: LGPL-2.1-or-later
// The talk with the service manager is on the control loop, which has no data I/O. Its timers run
// only as they are needed: the heartbeat's if there is a watchdog, the status's from a change until
// it is told, and as long as jobs run.
//
//     phase      entered by            timers
//     STARTING   service_starting()    more time
//     READY      service_ready()       heartbeat, status
//     STOPPING   service_stopping()    more time
#include "service.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <systemd/sd-daemon.h>

#include "chain-core/remote-call.h"
#include "heartbeat.h"
#include "service-status.h"

static const uint64_t SECOND_NS = 1000000000;

// A storage that does not answer is given up: then the manager's own limit ends the daemon.
static const uint64_t NO_PROGRESS_NS = 300 * SECOND_NS;

enum {
    STATUS_PAUSE_S = 3,
    MORE_TIME_EVERY_S = 5,
    MORE_TIME_S = 15, // so that a message may come late
    BEATS_PER_WATCHDOG = 4,
};

typedef enum Phase { PHASE_NEW, PHASE_STARTING, PHASE_READY, PHASE_STOPPING } Phase;

struct Service {
    ServiceParts of;
    Loop *loop; // control
    Phase phase;
    const char *why; // STOPPING

    LoopTimer status;
    LoopCall changed;
    atomic_bool is_changed; // a message is under way, or the timer is armed
    char *text;             // told last
    uint64_t told_ns;

    LoopTimer beat;
    Heartbeat *heartbeat;
    uint64_t beat_ns; // 0: there is no watchdog

    LoopTimer more_time;
    guint n_open;         // exports and nodes
    uint64_t progress_ns; // when that was another number
};

// -- status ---------------------------------------------------------------------------------------

static unsigned count_disks(const Service *service)
{
    const GPtrArray *exports = exports_all(service->of.exports);
    g_autoptr(GHashTable) nodes = g_hash_table_new(NULL, NULL);
    for (guint i = 0; i < exports->len; i++)
        g_hash_table_add(nodes, export_node(exports->pdata[i]));
    return g_hash_table_size(nodes);
}

static const char *job_state(JobStatus status, const JobInfo *info)
{
    switch (status) {
    case JOB_PAUSED:
    case JOB_STANDBY:
        return info->io_status == JOB_IO_NOSPACE  ? "paused: no space"
               : info->io_status == JOB_IO_FAILED ? "paused: I/O error"
                                                  : "paused";
    case JOB_READY:
        return "ready";
    case JOB_WAITING:
    case JOB_PENDING:
        return "waiting";
    case JOB_ABORTING:
        return "aborting";
    case JOB_CREATED:
    case JOB_RUNNING:
    case JOB_CONCLUDED:
    case JOB_NULL:
    case JOB_N_STATUSES:
        break;
    }
    return NULL;
}

static GArray *list_jobs(const Service *service)
{
    const GPtrArray *jobs = job_table_all(service->of.jobs);
    GArray *all = g_array_new(false, false, sizeof(ServiceJob));
    for (guint i = 0; i < jobs->len; i++) {
        const Job *job = jobs->pdata[i];
        JobStatus status = job_status(job);
        if (status == JOB_CONCLUDED || status == JOB_NULL)
            continue;
        JobInfo info = job_info(job, loop_now_ns(service->loop));
        ServiceJob one = {job_id(job), job_state(status, &info), info.current, info.total,
                          info.seconds_left};
        g_array_append_val(all, one);
    }
    return all;
}

// Returns whether it will be another soon, without a change that somebody tells of.
static bool make_text(Service *service, char **ret_text)
{
    const NbdsServer *server = nbd_server_get(service->of.nbd);
    g_autoptr(GArray) jobs = list_jobs(service);
    ServiceFacts facts = {
        .n_disks = count_disks(service),
        .n_clients = server ? nbds_server_n_clients(server) : 0,
        .jobs = (const ServiceJob *)jobs->data,
        .n_jobs = jobs->len,
    };
    bool is_moving = false;
    for (guint i = 0; i < jobs->len; i++)
        is_moving |= !facts.jobs[i].state;
    *ret_text = service_status_text(&facts);
    return is_moving;
}

static void arm_status(Service *service)
{
    uint64_t now = loop_now_ns(service->loop), due = service->told_ns + STATUS_PAUSE_S * SECOND_NS;
    if (!service->status.heap_index)
        loop_timer_start(service->loop, &service->status, due > now ? due - now : 0);
}

// `prefix`: what else the manager is told, and then in any case.
static void tell_status(Service *service, const char *prefix)
{
    g_autofree char *text = NULL;
    atomic_store(&service->is_changed, false); // what changes from here on is told next time
    bool is_moving = make_text(service, &text);
    service->told_ns = loop_now_ns(service->loop);
    if (*prefix || g_strcmp0(text, service->text) != 0)
        sd_notifyf(0, "%sSTATUS=%s", prefix, text);
    g_free(service->text);
    service->text = g_steal_pointer(&text);
    if (is_moving)
        arm_status(service);
}

static void status_is_due(LoopTimer *timer)
{
    tell_status((Service *)((char *)timer - offsetof(Service, status)), "");
}

static void change_arrives(LoopCall *call)
{
    Service *service = (Service *)((char *)call - offsetof(Service, changed));
    if (service->phase == PHASE_READY)
        arm_status(service);
}

void service_changed(Service *service)
{
    if (service && !atomic_exchange(&service->is_changed, true))
        loop_post(service->loop, &service->changed);
}

// -- watchdog -------------------------------------------------------------------------------------

static void beat(LoopTimer *timer)
{
    Service *service = (Service *)((char *)timer - offsetof(Service, beat));
    g_autoptr(GPtrArray) loops = g_ptr_array_new();
    for (unsigned i = 0; i < loops_count(service->of.loops); i++)
        g_ptr_array_add(loops, loops_get(service->of.loops, i));
    for (guint i = 0; i < iothreads_count(service->of.iothreads); i++)
        g_ptr_array_add(loops, iothreads_get(service->of.iothreads, i));
    if (heartbeat_check(service->heartbeat, loops))
        sd_notify(0, "WATCHDOG=1");
    loop_timer_start(service->loop, &service->beat, service->beat_ns);
}

// -- more time ------------------------------------------------------------------------------------

static void take_more_time(LoopTimer *timer)
{
    Service *service = (Service *)((char *)timer - offsetof(Service, more_time));
    guint n_open = exports_all(service->of.exports)->len + nodes_all(service->of.nodes)->len;
    uint64_t now = loop_now_ns(service->loop);
    if (n_open != service->n_open)
        service->progress_ns = now;
    service->n_open = n_open;
    if (now - service->progress_ns >= NO_PROGRESS_NS)
        return;
    g_autofree char *what =
        service->phase == PHASE_STOPPING
            ? g_strdup_printf("stopping (%s), %u disks to be closed", service->why,
                              count_disks(service))
            : g_strdup_printf("starting, %u disks are open", count_disks(service));
    sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64 "\nSTATUS=%s", MORE_TIME_S * UINT64_C(1000000),
               what);
    loop_timer_start(service->loop, &service->more_time, MORE_TIME_EVERY_S * SECOND_NS);
}

static void begin_more_time(Service *service)
{
    service->progress_ns = loop_now_ns(service->loop);
    service->n_open = 0;
    take_more_time(&service->more_time);
}

// -- phases ---------------------------------------------------------------------------------------

Service *service_new(Loop *control)
{
    uint64_t watchdog_us;
    if (!g_getenv("NOTIFY_SOCKET"))
        return NULL;
    Service *service = g_new0(Service, 1);
    *service = (Service){
        .loop = control,
        .status.fn = status_is_due,
        .changed.fn = change_arrives,
        .beat.fn = beat,
        .more_time.fn = take_more_time,
        .heartbeat = heartbeat_new(),
    };
    if (sd_watchdog_enabled(0, &watchdog_us) > 0)
        service->beat_ns = watchdog_us * 1000 / BEATS_PER_WATCHDOG;
    return service;
}

void service_free(Service *service)
{
    if (!service)
        return;
    heartbeat_free(service->heartbeat);
    g_free(service->text);
    g_free(service);
}

static void stop_timers(Service *service)
{
    loop_timer_stop(service->loop, &service->status);
    loop_timer_stop(service->loop, &service->beat);
    loop_timer_stop(service->loop, &service->more_time);
}

static void enter_starting(Fiber *self, void *arg)
{
    Service *service = arg;
    service->phase = PHASE_STARTING;
    begin_more_time(service);
}

static void enter_ready(Fiber *self, void *arg)
{
    Service *service = arg;
    stop_timers(service);
    service->phase = PHASE_READY;
    tell_status(service, "READY=1\n");
    if (service->beat_ns)
        beat(&service->beat);
}

static void enter_stopping(Fiber *self, void *arg)
{
    Service *service = arg;
    stop_timers(service);
    service->phase = PHASE_STOPPING;
    sd_notify(0, "STOPPING=1");
    begin_more_time(service);
}

void service_starting(Service *service, const ServiceParts *parts)
{
    if (!service)
        return;
    service->of = *parts;
    remote_call_reserve(service->loop, enter_starting, service);
}

void service_ready(Service *service)
{
    if (service)
        remote_call_reserve(service->loop, enter_ready, service);
}

void service_stopping(Service *service, const char *why)
{
    if (!service)
        return;
    service->why = why;
    remote_call_reserve(service->loop, enter_stopping, service);
}

void service_failed(int error, int exit_status, const char *sentence)
{
    sd_notifyf(0, "STATUS=%s\nERRNO=%d\nEXIT_STATUS=%d", sentence, -error, exit_status);
}

void service_reloading(Service *service)
{
    if (service)
        sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRId64 "\nSTATUS=reloading",
                   g_get_monotonic_time());
}

void service_reloaded(Service *service)
{
    if (service)
        tell_status(service, "READY=1\n");
}
