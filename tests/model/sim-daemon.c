// SPDX-License-Identifier: LGPL-2.1-or-later
// What the daemon has threads and the kernel for is replaced here: its loops, its log, and the
// watch for other programs that change files.
#include "sim-daemon.h"

#include "daemon/commands/block-commit.h"
#include "daemon/commands/block-jobs.h"
#include "daemon/commands/block-stream.h"
#include "daemon/commands/jobs.h"
#include "daemon/commands/nodes.h"
#include "daemon/log.h"
#include "daemon/qmp/table.h"
#include "daemon/size-watch.h"

enum { MEMORY_BYTES = 8 << 20, STEP_NS = 100000 };

struct Loops {
    Loop *loop;
};

struct SimDaemon {
    Loops loops; // of disks
    Daemon daemon;
};

static QmpTable *table; // for good
static const QmpFamily *const families[] = {
    &qmp_nodes_family,        &qmp_jobs_family,         &qmp_block_jobs_family,
    &qmp_block_stream_family, &qmp_block_commit_family, NULL,
};

// -- what is replaced -----------------------------------------------------------------------------

Loop *loops_get(const Loops *loops, unsigned i)
{
    return loops->loop;
}

unsigned loops_count(const Loops *loops)
{
    return 1;
}

char *loops_thread_name(const Loops *loops, unsigned i)
{
    return g_strdup_printf("loop-%u", i);
}

SizeWatch *size_watch_new(SizeWatchFn *fn, void *arg)
{
    return NULL;
}

void size_watch_free(SizeWatch *watch)
{
}

void size_watch_add(Fiber *self, SizeWatch *watch, const char *path, void *key)
{
}

void size_watch_remove(SizeWatch *watch, const void *key)
{
}

// Nothing here takes a thread.
Loops *loops_start(const char *name, unsigned n, const LoopConfig *config, GError **error)
{
    g_assert_not_reached();
}

void loops_stop(Loops *loops)
{
    g_assert_not_reached();
}

void loops_free(Loops *loops)
{
    g_assert_not_reached();
}

// Nothing goes wrong here of which the log would have to tell.
void __wrap_log_line(LogLevel level, const char *format, ...) G_GNUC_PRINTF(2, 3);
void __wrap_log_line(LogLevel level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_error("%s", text);
}

void __wrap_log_about(LogLevel level, const LogAbout *about, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
void __wrap_log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_error("%s", text);
}

// -- a daemon -------------------------------------------------------------------------------------

static void nobody_hears(void *arg, const Job *job, const JobEvent *event)
{
}

SimDaemon *sim_daemon_new(Fiber *self)
{
    SimDaemon *d = g_new0(SimDaemon, 1);
    d->loops.loop = fiber_loop(self);
    d->daemon.loops = &d->loops;
    d->daemon.memory = map_memory_new(MEMORY_BYTES);
    d->daemon.jobs = job_table_new(nobody_hears, NULL);
    d->daemon.nodes = nodes_new(&d->loops, d->daemon.memory, NULL, NULL);
    if (!table) // once: types of commands are filled in
        table = qmp_table_new(families);
    return d;
}

// Of what can be deleted now: what nobody stands on.
static NamedNode *find_deletable(const SimDaemon *d)
{
    const GPtrArray *all = nodes_all(d->daemon.nodes);
    for (guint i = 0; i < all->len; i++) {
        NamedNode *named = all->pdata[i];
        if (named->is_added && named->users->len == 0)
            return named;
    }
    return NULL;
}

void sim_daemon_close(Fiber *self, SimDaemon *d)
{
    NamedNode *named;
    while ((named = find_deletable(d))) {
        g_autofree char *name = g_strdup(named->name);
        g_autofree char *arguments = g_strdup_printf("{'node-name':'%s'}", name);
        g_autofree char *problem = sim_daemon_run(self, d, "blockdev-del", arguments);
        if (problem)
            g_error("blockdev-del of %s: %s", name, problem);
    }
    g_assert(nodes_all(d->daemon.nodes)->len == 0);
}

void sim_daemon_free(SimDaemon *d)
{
    job_table_free(d->daemon.jobs);
    nodes_free(d->daemon.nodes);
    map_memory_free(d->daemon.memory);
    g_free(d);
}

// -- commands -------------------------------------------------------------------------------------

char *sim_daemon_run(Fiber *self, SimDaemon *d, const char *command, const char *arguments)
{
    QmpCall call = {.daemon = &d->daemon, .table = table, .is_negotiated = true};
    g_autoptr(GString) text = g_string_new(arguments);
    g_string_replace(text, "'", "\"", 0);
    json_error_t where;
    json_t *args = json_loads(text->str, 0, &where);
    if (!args)
        g_error("%s: %s", text->str, where.text);
    json_auto_t *request = json_pack("{s:s, s:o}", "execute", command, "arguments", args);
    json_auto_t *reply = qmp_table_dispatch(self, &call, request);
    const json_t *error = json_object_get(reply, "error");
    return error ? g_strdup(json_string_value(json_object_get(error, "desc"))) : NULL;
}

char *sim_daemon_end_job(Fiber *self, SimDaemon *d, const char *id)
{
    Job *job = job_table_get(d->daemon.jobs, id, NULL);
    g_autofree char *arguments = g_strdup_printf("{'id':'%s'}", id);
    while (job_status(job) != JOB_CONCLUDED) {
        if (job_status(job) == JOB_READY)
            g_free(sim_daemon_run(self, d, "job-complete", arguments));
        fiber_sleep(self, STEP_NS);
    }
    char *problem = g_strdup(job_error(job));
    g_free(sim_daemon_run(self, d, "job-dismiss", arguments));
    return problem;
}

Node *sim_daemon_node(const SimDaemon *d, const char *name)
{
    const NamedNode *named = nodes_find(d->daemon.nodes, name);
    return named ? named->node : NULL;
}
