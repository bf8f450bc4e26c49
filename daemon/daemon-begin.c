// SPDX-License-Identifier: LGPL-2.1-or-later
// From the sockets, which are opened first since a wrong address costs nothing then, to the
// monitors, whose clients find everything there.
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "chain-core/remote-call.h"
#include "configure.h"
#include "configured-listeners.h"
#include "daemon-life.h"
#include "daemon/commands/block-jobs.h"
#include "daemon/commands/commands.h"
#include "daemon/commands/disk-jobs.h"
#include "daemon/commands/jobs.h"
#include "daemon/qmp/error.h"
#include "daemon/qmp/table.h"
#include "daemon/state/disks-opening.h"
#include "daemon/state/recovery.h"
#include "job-log.h"
#include "log.h"
#include "metrics-service.h"
#include "reload.h"
#include "startup.h"
#include "throttle-policy.h"

enum { REQUEST_FIBERS = 4096 }; // of each loop, besides two for each client

#define RAISE_LIMIT "ulimit -Hn, or LimitNOFILE= of the unit"

static void last_client_left(void *arg)
{
    Daemon *daemon = arg;
    if (daemon->is_for_client)
        stop_request(daemon->stop, "the last client left");
}

static void clients_or_exports_changed(void *arg)
{
    const Daemon *daemon = arg;
    service_changed(daemon->service);
}

// An eighth of the machine's memory, by what an idle client takes (stacks and a receive buffer),
// but no more than have stacks when vm.max_map_count is the kernel's default.
static unsigned choose_max_connections(const Options *options)
{
    enum { CLIENT_BYTES = 64 << 10, MIN_CLIENTS = 256, MAX_CLIENTS = 6000 };
    if (options->daemon.max_connections)
        return options->daemon.max_connections;
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return (unsigned)CLAMP(bytes / 8 / CLIENT_BYTES, MIN_CLIENTS, MAX_CLIENTS);
}

static uint64_t descriptor_limit(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : UINT64_MAX;
}

// On a loop.
static void full(void *arg, NbdsFull why)
{
    const Daemon *daemon = arg;
    switch (why) {
    case NBDS_FULL_CONNECTIONS:
        log_line(LOG_WARNING,
                 "%u clients are connected, as many as --max-connections allows: others wait until "
                 "one leaves",
                 choose_max_connections(&daemon->options));
        break;
    case NBDS_FULL_DESCRIPTORS:
        log_line(LOG_WARNING,
                 "clients wait until others leave: the limit of %" G_GUINT64_FORMAT
                 " open files is reached, but for some that images need; raise it (" RAISE_LIMIT
                 ")",
                 descriptor_limit());
        break;
    case NBDS_FULL_MEMORY:
        log_line(LOG_WARNING, "a client was turned away: there is no memory for its stacks");
        break;
    case NBDS_FULL_HANDSHAKES:
        log_line(LOG_WARNING, "too many clients have connected and chosen no export: those that "
                              "came first are disconnected");
        break;
    case NBDS_FULL_NOT:
    case NBDS_FULL_N_REASONS:
        break;
    }
}

// On a loop.
static bool may_use(void *arg, const NbdsPeer *peer, const char *name)
{
    return access_allows(((const Daemon *)arg)->access, peer, name);
}

// On a loop.
static void tls_failed(void *arg, const char *sentence)
{
    log_line(LOG_WARNING, "a client did not come in: %s", sentence);
}

static unsigned choose_n_loops(const Options *options, const Config *config)
{
    unsigned n_processors = (unsigned)g_get_num_processors();
    if (options->daemon.n_loops)
        return options->daemon.n_loops;
    return *options->qmp_paths || options->startups->len || options->daemon.state_dir ||
                   config_has(config, &settings_control)
               ? n_processors
               : MIN(options->disks->len, n_processors);
}

// On the only processor a loop that polls for a client's request keeps that client from running.
static uint64_t choose_busy_poll_ns(const Options *options)
{
    return g_get_num_processors() > 1 ? options->daemon.busy_poll_us * UINT64_C(1000) : 0;
}

static void remove_sockets(void *arg)
{
    daemon_remove_sockets(arg);
}

void daemon_remove_sockets(const Daemon *daemon)
{
    nbd_server_remove_files(daemon->nbd);
    monitors_remove_files(daemon->monitors);
}

// -- control --------------------------------------------------------------------------------------

typedef struct EventPost {
    LoopCall call; // first
    const Daemon *daemon;
    const char *event;
    json_t *data;
} EventPost;

static void event_arrives(LoopCall *call)
{
    EventPost *post = (EventPost *)call;
    qmp_emit(post->daemon, post->event, post->data);
    g_free(post);
}

// On any thread; `event` is a literal.
static void post_event(void *arg, const char *event, json_t *data)
{
    EventPost *post = g_new(EventPost, 1);
    *post = (EventPost){.call.fn = event_arrives, .daemon = arg, .event = event, .data = data};
    loop_post(daemon_control_loop(arg), &post->call);
}

static void export_removed(void *arg, const char *id)
{
    qmp_emit(arg, "BLOCK_EXPORT_DELETED", json_pack("{s:s}", "id", id));
}

static void job_happened(void *arg, const Job *job, const JobEvent *event)
{
    const Daemon *daemon = arg;
    service_changed(daemon->service);
    job_log_happened(job, event, job_history_disk(daemon->history, job));
    job_history_happened(daemon->history, daemon_control_loop(daemon), job, event);
    qmp_jobs_happened(arg, job, event);
    qmp_block_jobs_happened(arg, job, event);
}

typedef struct ControlStart {
    Daemon *daemon;
    GPtrArray *listeners; // Listeners, which are taken; NULL: no NBD server is wanted yet
    int result;
    GError *error;
} ControlStart;

static void serve_monitors(Fiber *self, void *arg)
{
    ControlStart *start = arg;
    start->result = metrics_service_start(start->daemon->metrics, fiber_loop(self));
    if (start->result < 0)
        qmp_fail(&start->error, "the metrics cannot be served: no memory for a fiber's stack");
    else
        start->result = monitors_serve(start->daemon->monitors, start->daemon->qmp, &start->error);
}

static int start_control(Daemon *daemon, GError **error)
{
    daemon->control = loops_start("control", 1, NULL, error);
    if (!daemon->control)
        return -ENOSYS;
    daemon->service = service_new(daemon_control_loop(daemon));
    daemon->qmp = qmp_server_new(daemon_control_loop(daemon), daemon, qmp_families);
    daemon->jobs = job_table_new(job_happened, daemon);
    daemon->history = job_history_new(daemon->catalogue);
    daemon->reload = reload_new(daemon);
    return 0;
}

// Last: clients find everything there.
static int start_monitors(Daemon *daemon, GError **error)
{
    ControlStart start = {.daemon = daemon};
    remote_call_reserve(daemon_control_loop(daemon), serve_monitors, &start);
    if (start.error)
        g_propagate_error(error, start.error);
    return start.result;
}

// -- disks and sockets ----------------------------------------------------------------------------

static void start_remembered(Fiber *self, QmpCall *call)
{
    Catalogue *catalogue = call->daemon->catalogue;
    if (!catalogue)
        return;
    fiber_mutex_lock(self, &catalogue->lock);
    disks_recover(self, call->daemon);
    disks_open_all(self, call->daemon);
    fiber_mutex_unlock(self, &catalogue->lock);
    disks_wait_opened(self, call->daemon);
    fiber_mutex_lock(self, &catalogue->lock);
    disk_jobs_resume(self, call, catalogue);
    fiber_mutex_unlock(self, &catalogue->lock);
}

// The server comes first: it is there before a client can be.
static void open_disks(Fiber *self, void *arg)
{
    ControlStart *start = arg;
    Daemon *daemon = start->daemon;
    if (start->listeners)
        nbd_server_start(daemon->nbd, NULL);
    QmpCall call = {
        .daemon = daemon,
        .table = qmp_server_table(daemon->qmp),
        .is_negotiated = true,
    };
    start->result = startup_run(self, &call, &daemon->options, &start->error);
    if (start->result == 0)
        start->result =
            disks_open(self, &daemon->options, daemon->nodes, daemon->exports, &start->error);
    if (start->result == 0)
        start_remembered(self, &call);
    while (start->result == 0 && start->listeners && start->listeners->len)
        nbd_server_listen(daemon->nbd, g_ptr_array_steal_index(start->listeners, 0));
}

static int start_disks(Daemon *daemon, GPtrArray *listeners, GError **error)
{
    ControlStart start = {.daemon = daemon, .listeners = listeners};
    int r = remote_call_reserve(daemon_control_loop(daemon), open_disks, &start);
    if (start.error)
        g_propagate_error(error, start.error);
    return r < 0 ? r : start.result;
}

static int start_loops(Daemon *daemon, GError **error)
{
    const Options *options = &daemon->options;
    unsigned max_connections = choose_max_connections(options);
    LoopConfig loop_config = {
        .busy_poll_ns = choose_busy_poll_ns(options),
        .max_fibers = REQUEST_FIBERS + 2 * max_connections, // any loop may have all of them
    };
    daemon->loops =
        loops_start("loop", choose_n_loops(options, daemon->config), &loop_config, error);
    if (!daemon->loops || start_control(daemon, error) < 0)
        return -ENOSYS;
    daemon->memory = map_memory_new(options->daemon.map_memory_bytes);
    daemon->iothreads = iothreads_new(&loop_config);
    daemon->throttle_groups = throttle_groups_new();
    daemon->tls_creds = tls_creds_table_new();
    daemon->objects = objects_new();
    daemon->nodes = nodes_new(daemon->loops, daemon->memory, post_event, daemon);
    nodes_set_throttle_groups(daemon->nodes, daemon->throttle_groups);
    nodes_set_tls_creds(daemon->nodes, daemon->tls_creds);
    daemon->nbd = nbd_server_new(
        &(NbdsServerConfig){
            .limits.max_connections = max_connections,
            .may_use = may_use,
            .last_client_left = last_client_left,
            .clients_changed = clients_or_exports_changed,
            .full = full,
            .tls_failed = tls_failed,
            .arg = daemon,
        },
        daemon->loops);
    daemon->exports = exports_new(daemon->nodes, daemon->nbd, export_removed, daemon);
    exports_watch(daemon->exports, clients_or_exports_changed, daemon);
    throttle_policy_begin(daemon);
    return 0;
}

static int open_state(Daemon *daemon, GError **error)
{
    const char *dir = daemon->options.daemon.state_dir;
    Database *database = dir ? database_open(dir, error) : NULL;
    daemon->catalogue = database ? catalogue_load(database, dir, error) : NULL;
    return dir && !daemon->catalogue ? -EIO : 0;
}

static int use_tls(Listeners *listeners, const TlsOption *option, GError **error)
{
    ListenSettings settings = {
        .tls_certificates = option->certificates,
        .tls_psk = option->psk_file,
        .tls_verify_peer = option->verifies_peer,
    };
    NbdsTls tls;
    if (option->mode == NBDS_TLS_OFF)
        return 0;
    if (configured_tls_read(&settings, &tls, error) < 0)
        return -EINVAL;
    tls.mode = option->mode;
    listeners_set_tls(listeners, &tls, option->certificates, option->psk_file);
    nbds_tls_clear(&tls);
    return 0;
}

// Of the command line, and given ones.
static int open_sockets(Daemon *daemon, char *const *addresses, GPtrArray *ret_listeners,
                        GError **error)
{
    const Options *options = &daemon->options;
    const GArray *given = daemon->activation.fds[ACTIVATION_NBD];
    Listeners *listeners = listeners_open(given, addresses, error);
    if (!listeners)
        return -EINVAL;
    g_ptr_array_add(ret_listeners, listeners);
    daemon->prints_uris = !listeners_are_only_given(listeners);
    daemon->is_for_client = !daemon->prints_uris && !options->daemon.state_dir &&
                            !daemon->activation.fds[ACTIVATION_CONTROL]->len;
    return use_tls(listeners, &options->tls, error);
}

// All sockets for NBD clients, before anything else: a wrong address costs nothing. NULL in
// `*ret_listeners`: none are wanted.
static int open_listeners(Daemon *daemon, GPtrArray **ret_listeners, GError **error)
{
    const Options *options = &daemon->options;
    const GArray *given = daemon->activation.fds[ACTIVATION_NBD];
    bool is_configured = !*options->addresses && config_has(daemon->config, &settings_listen);
    // Nobody but a client of a FILE, or a disk that is remembered, knows where a private socket is.
    bool needs_socket = options->disks->len || *options->addresses || given->len ||
                        (options->daemon.state_dir && !options_start_server(options));
    if ((!needs_socket || is_configured) && options->tls.mode != NBDS_TLS_OFF) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    "TLS is for the sockets of --nbd, and there is none: nbd-server-start takes "
                    "tls-creds, and [listen] has keys for it");
        return -EINVAL;
    }
    if (!needs_socket && !is_configured)
        return 0;
    *ret_listeners = g_ptr_array_new_with_free_func((GDestroyNotify)listeners_free);
    int r = 0;
    if (given->len || !is_configured)
        r = open_sockets(daemon, is_configured ? NULL : options->addresses, *ret_listeners, error);
    if (r == 0 && is_configured) {
        daemon->prints_uris = true;
        daemon->is_for_client = false;
        r = configured_listeners_open(daemon->config, *ret_listeners, error);
    }
    return r;
}

int daemon_begin(Daemon *daemon, GError **error)
{
    const Options *options = &daemon->options;
    const GArray *given_control = daemon->activation.fds[ACTIVATION_CONTROL];
    g_autoptr(GPtrArray) listeners = NULL;
    configure_add_defaults(daemon->config, options, daemon->activation.fds[ACTIVATION_NBD]->len,
                           given_control->len);
    if (open_state(daemon, error) < 0)
        return -EIO;
    if (open_listeners(daemon, &listeners, error) < 0)
        return -EINVAL;
    daemon->access = access_new();
    access_set(daemon->access, daemon->config);
    daemon->monitors =
        monitors_open(options, daemon->config, &daemon->activation, daemon->inherited, error);
    if (!daemon->monitors)
        return -EINVAL;
    daemon->metrics = metrics_service_open(daemon, &options->daemon, error);
    if (!daemon->metrics)
        return -EINVAL;
    if (start_loops(daemon, error) < 0)
        return -ENOSYS;
    stop_set_leave(daemon->stop, remove_sockets, daemon);
    service_starting(daemon->service,
                     &(ServiceParts){daemon->loops, daemon->iothreads, daemon->jobs, daemon->nodes,
                                     daemon->nbd, daemon->exports});
    int r = start_disks(daemon, listeners, error);
    if (r == 0)
        r = start_monitors(daemon, error);
    if (r == 0)
        stop_set_reload(daemon->stop, reload_post, daemon->reload);
    return r;
}

static unsigned count_open_files(void)
{
    unsigned n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    while (dir && g_dir_read_name(dir))
        n++;
    return n;
}

// So that nobody finds out from a client that waits.
static void check_descriptors(const Daemon *daemon)
{
    uint64_t limit = descriptor_limit(), for_clients = limit - limit / 8;
    unsigned n_exports = exports_all(daemon->exports)->len, n_open = count_open_files();
    if (n_open + (uint64_t)n_exports > for_clients)
        log_line(LOG_WARNING,
                 "the hard limit of %" G_GUINT64_FORMAT " open files does not allow a client for "
                 "each of the %u exports: raise it (" RAISE_LIMIT ")",
                 limit, n_exports);
}

// The URIs go to stdout, where scripts read them; the log says the same in words. On the control
// loop.
static void announce(Fiber *self, void *arg)
{
    const Daemon *daemon = arg;
    check_descriptors(daemon);
    const GPtrArray *exports = exports_all(daemon->exports);
    bool prints_uris = daemon->prints_uris && !monitors_use_stdio(daemon->monitors);
    for (guint i = 0; i < exports->len; i++) {
        const Export *export = exports->pdata[i];
        g_auto(GStrv) uris = nbd_server_uris(daemon->nbd, export->name);
        for (char **uri = uris; *uri && prints_uris; uri++)
            puts(*uri);
        g_autofree char *summary = named_node_summary(export_node(export));
        log_line(LOG_INFO, "serving '%s': %s", export->name, summary);
    }
    fflush(stdout);
    log_line(LOG_INFO, "ready");
}

void daemon_announce(const Daemon *daemon)
{
    remote_call_reserve(daemon_control_loop(daemon), announce, (void *)daemon);
}
