// SPDX-License-Identifier: LGPL-2.1-or-later
// First all that can fail: files are read, credentials loaded, new sockets bound, on a worker. Then
// what holds is exchanged. Keys that the command line has do not change.
#include "reload.h"

#include <errno.h>
#include <stdatomic.h>

#include "configure.h"
#include "configured-listeners.h"
#include "daemon.h"
#include "log.h"
#include "throttle-policy.h"

struct Reload {
    Daemon *daemon;
    FiberMutex lock;
    bool has_ended;
    LoopCall call;
    atomic_bool is_posted; // the call is
    bool is_waiting;       // one that SIGHUP asked for has not begun
};

ReloadReport reload_report_new(void)
{
    return (ReloadReport){g_ptr_array_new_with_free_func(g_free),
                          g_ptr_array_new_with_free_func(g_free),
                          g_ptr_array_new_with_free_func(g_free)};
}

void reload_report_clear(ReloadReport *report)
{
    g_clear_pointer(&report->done, g_ptr_array_unref);
    g_clear_pointer(&report->waiting, g_ptr_array_unref);
    g_clear_pointer(&report->failed, g_ptr_array_unref);
}

// -- reading --------------------------------------------------------------------------------------

typedef struct Reading {
    const Daemon *daemon;
    GPtrArray *mistakes; // char *
    Config *config;
} Reading;

static int read_on_worker(void *arg)
{
    Reading *reading = arg;
    const Daemon *daemon = reading->daemon;
    reading->config = configure_read(&daemon->options, reading->mistakes);
    configure_add_defaults(reading->config, &daemon->options,
                           daemon->activation.fds[ACTIVATION_NBD]->len,
                           daemon->activation.fds[ACTIVATION_CONTROL]->len);
    return 0;
}

// Owned; NULL with a sentence: the files have mistakes.
static Config *read_config(Fiber *self, const Daemon *daemon, GError **error)
{
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    Reading reading = {.daemon = daemon, .mistakes = mistakes};
    int r = loop_work(self, read_on_worker, &reading);
    for (guint i = 0; mistakes->len > 1 && i < mistakes->len; i++)
        log_line(LOG_ERROR, "%s", (const char *)mistakes->pdata[i]);
    if (r == 0 && !mistakes->len)
        return reading.config;
    if (r < 0)
        g_ptr_array_add(mistakes, g_strdup(g_strerror(-r)));
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "%s", (const char *)mistakes->pdata[0]);
    if (mistakes->len > 1)
        g_prefix_error(error, "%u mistakes, the first: ", mistakes->len);
    config_free(reading.config);
    return NULL;
}

// -- what changed ---------------------------------------------------------------------------------

// The command line has it: files do not matter.
static bool is_overridden(const Options *options, const ConfigChange *change)
{
    if (change->section == &settings_daemon)
        return options->said & UINT64_C(1) << (change->key - settings_daemon.keys);
    return change->section == &settings_control && *options->qmp_paths;
}

static char *describe(const ConfigChange *change)
{
    g_autofree char *place =
        change->place ? g_strdup_printf("%s:%u: ", change->place->path, change->place->line)
                      : g_strdup("");
    return g_strdup_printf("%s'%s' of [%s%s%s] takes effect when chaind starts again", place,
                           change->key->name, change->section->name, change->label ? " " : "",
                           change->label ? change->label : "");
}

static void apply_log_level(const Daemon *daemon, GPtrArray *done)
{
    LogLevel level = (LogLevel)config_daemon(daemon->config)->log_level;
    log_set_level(level);
    g_ptr_array_add(done, g_strdup_printf("the log level is %s", log_level_names[level]));
}

// Of what is not a listener.
static void apply_changes(const Daemon *daemon, const GArray *changes, ReloadReport *report)
{
    bool is_access_changed = false, are_limits_changed = false;
    for (guint i = 0; i < changes->len; i++) {
        const ConfigChange *change = &g_array_index(changes, ConfigChange, i);
        if (is_overridden(&daemon->options, change))
            continue;
        bool is_limit = change->section == &settings_throttle_group ||
                        change->key->names == &settings_throttle_group;
        are_limits_changed |= is_limit;
        is_access_changed |= change->section == &settings_export && !is_limit;
        if (change->key->effect == CONFIG_AT_START)
            g_ptr_array_add(report->waiting, describe(change));
        else if (change->section == &settings_daemon && g_str_equal(change->key->name, "log"))
            apply_log_level(daemon, report->done);
    }
    if (is_access_changed)
        g_ptr_array_add(report->done, g_strdup("who may use which export has changed"));
    if (are_limits_changed)
        g_ptr_array_add(report->done, g_strdup("what clients of exports may do has changed"));
}

// -- reloading ------------------------------------------------------------------------------------

// NULL in `*ret_change`: sockets are not the configuration's.
static int prepare_listeners(Fiber *self, const Daemon *daemon, const Config *now,
                             ListenChange **ret_change, GError **error)
{
    bool is_configured = !*daemon->options.addresses && nbd_server_get(daemon->nbd) &&
                         !nbd_server_is_stopping(daemon->nbd);
    *ret_change = is_configured ? listen_change_prepare(self, daemon->nbd, now, error) : NULL;
    return is_configured && !*ret_change ? -EINVAL : 0;
}

// Takes `now`.
static void commit(Fiber *self, Daemon *daemon, Config *now, ListenChange *listeners,
                   ReloadReport *report)
{
    Config *before = daemon->config;
    g_autoptr(GArray) changes = config_compare(before, now);
    daemon->config = now;
    access_set(daemon->access, now);
    NbdsServer *server = nbd_server_get(daemon->nbd);
    if (server)
        nbds_server_refresh_access(server);
    if (listeners && server && !nbd_server_is_stopping(daemon->nbd))
        listen_change_commit(self, listeners, daemon->nbd, before, report->done, report->failed);
    throttle_policy_change(self, daemon, before, report->failed);
    apply_changes(daemon, changes, report);
    config_free(before);
}

static int run_locked(Fiber *self, Daemon *daemon, ReloadReport *report, GError **error)
{
    ListenChange *listeners;
    Config *now = read_config(self, daemon, error);
    if (!now)
        return -EINVAL;
    if (prepare_listeners(self, daemon, now, &listeners, error) < 0) {
        config_free(now);
        return -EINVAL;
    }
    commit(self, daemon, now, listeners, report);
    listen_change_free(listeners);
    return 0;
}

static void tell(LogLevel level, const GPtrArray *lines)
{
    for (guint i = 0; i < lines->len; i++)
        log_line(level, "%s", (const char *)lines->pdata[i]);
}

// 0 or negative with a sentence.
static int run_in_turn(Fiber *self, Reload *reload, ReloadReport *report, GError **error)
{
    Daemon *daemon = reload->daemon;
    fiber_mutex_lock(self, &reload->lock);
    reload->is_waiting = false;
    int r = -ECANCELED;
    if (reload->has_ended) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, "chaind is stopping");
    } else {
        service_reloading(daemon->service);
        r = run_locked(self, daemon, report, error);
        service_reloaded(daemon->service);
    }
    fiber_mutex_unlock(self, &reload->lock);
    return r;
}

int reload_run(Fiber *self, Reload *reload, ReloadReport *report, GError **error)
{
    bool unused;
    g_autoptr(GError) fault = NULL;
    if (!options_config_path(&reload->daemon->options, &unused)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOENT,
                    "there is no configuration to read again: start chaind with --config or "
                    "--service");
        return -ENOENT;
    }
    int r = run_in_turn(self, reload, report, &fault);
    if (r < 0) {
        log_line(LOG_ERROR, "the configuration stays as it was: %s", fault->message);
        g_propagate_error(error, g_steal_pointer(&fault));
        return r;
    }
    tell(LOG_INFO, report->done);
    tell(LOG_WARNING, report->waiting);
    tell(LOG_ERROR, report->failed);
    bool is_quiet = !report->done->len && !report->waiting->len && !report->failed->len;
    log_line(LOG_INFO, "the configuration was read again%s",
             is_quiet ? ": nothing in it has changed" : "");
    return 0;
}

// -- SIGHUP ---------------------------------------------------------------------------------------

static void reload_fiber(Fiber *self, void *arg)
{
    Reload *reload = arg;
    g_auto(ReloadReport) report = reload_report_new();
    g_autoptr(GError) error = NULL;
    if (reload_run(self, reload, &report, &error) == -ENOENT) {
        reload->is_waiting = false;
        log_line(LOG_INFO, "SIGHUP: %s", error->message);
    }
}

// One that waits for another to end reads what is there then: a second one is not needed.
static void arrive(LoopCall *call)
{
    Reload *reload = (Reload *)((char *)call - offsetof(Reload, call));
    reload->is_posted = false;
    if (reload->is_waiting)
        return;
    Loop *loop = daemon_control_loop(reload->daemon);
    reload->is_waiting = true;
    if (fiber_spawn_reserve(loop, "reload", reload_fiber, reload) == 0)
        return;
    reload->is_waiting = false;
    log_line(LOG_ERROR, "the configuration was not read again: no memory for a fiber's stack");
}

void reload_post(void *arg)
{
    Reload *reload = arg;
    if (!atomic_exchange(&reload->is_posted, true))
        loop_post(daemon_control_loop(reload->daemon), &reload->call);
}

// -- life -----------------------------------------------------------------------------------------

Reload *reload_new(Daemon *daemon)
{
    Reload *reload = g_new0(Reload, 1);
    reload->daemon = daemon;
    reload->call.fn = arrive;
    return reload;
}

void reload_free(Reload *reload)
{
    g_free(reload);
}

void reload_end(Fiber *self, Reload *reload)
{
    fiber_mutex_lock(self, &reload->lock);
    reload->has_ended = true;
    fiber_mutex_unlock(self, &reload->lock);
}
