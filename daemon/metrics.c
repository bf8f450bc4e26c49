// SPDX-License-Identifier: LGPL-2.1-or-later
// All of an export is copied in one go, and told family by family: meanwhile exports come and go.
#include "metrics.h"

#include "chain-core/map-memory.h"
#include "daemon.h"
#include "daemon/qmp/pace.h"
#include "daemon/state/disk-nodes.h"
#include "metrics-process.h"
#include "metrics-text.h"

// -- exports --------------------------------------------------------------------------------------

typedef struct ExportSample {
    char *id, *name;
    NbdsExportStats stats;
    uint64_t size_bytes;
    ThrottleLimits limits;
} ExportSample;

static void sample_free(gpointer p)
{
    ExportSample *sample = p;
    g_free(sample->id);
    g_free(sample->name);
    g_free(sample);
}

static GPtrArray *sample_exports(const Daemon *daemon)
{
    GPtrArray *samples = g_ptr_array_new_with_free_func(sample_free);
    const GPtrArray *exports = exports_all(daemon->exports);
    for (guint i = 0; i < exports->len; i++) {
        const Export *export = exports->pdata[i];
        NbdsExportStats stats;
        if (!exports_get_stats(export, &stats))
            continue;
        ExportSample *sample = g_new(ExportSample, 1);
        *sample = (ExportSample){
            .id = g_strdup(export->id),
            .name = g_strdup(export->name),
            .stats = stats,
            .size_bytes = nbds_export_size_bytes(export->nbds),
        };
        if (export->throttle)
            throttle_group_get_limits(export->throttle, &sample->limits);
        g_ptr_array_add(samples, sample);
    }
    return samples;
}

static const char *const operations[NBDS_N_OPERATIONS] = {
    [NBDS_OPERATION_READ] = "read",
    [NBDS_OPERATION_WRITE] = "write",
    [NBDS_OPERATION_FLUSH] = "flush",
    [NBDS_OPERATION_TRIM] = "trim",
    [NBDS_OPERATION_CACHE] = "cache",
    [NBDS_OPERATION_WRITE_ZEROES] = "write-zeroes",
    [NBDS_OPERATION_BLOCK_STATUS] = "block-status",
};

// A family with a sample for each export, and each operation.
typedef struct Writer {
    Fiber *self;
    QmpPace pace;
    GString *text;
    const GPtrArray *exports; // ExportSample
} Writer;

static void write_counts(Writer *w, const char *name, const char *help, size_t offset)
{
    metrics_text_family(w->text, name, "counter", help);
    for (guint i = 0; i < w->exports->len; i++, qmp_pace(w->self, &w->pace)) {
        const ExportSample *e = w->exports->pdata[i];
        const uint64_t *counts = (const uint64_t *)((const char *)&e->stats + offset);
        for (unsigned op = 0; op < NBDS_N_OPERATIONS; op++)
            metrics_text_sample(w->text, name, (double)counts[op], "export", e->id, "name", e->name,
                                "operation", operations[op], NULL);
    }
}

static void write_bytes(Writer *w, const char *name, const char *help, NbdsOperation operation)
{
    metrics_text_family(w->text, name, "counter", help);
    for (guint i = 0; i < w->exports->len; i++, qmp_pace(w->self, &w->pace)) {
        const ExportSample *e = w->exports->pdata[i];
        metrics_text_sample(w->text, name, (double)e->stats.bytes[operation], "export", e->id,
                            "name", e->name, NULL);
    }
}

static double size_of(const ExportSample *e)
{
    return (double)e->size_bytes;
}

static double clients_of(const ExportSample *e)
{
    return e->stats.n_clients;
}

static double in_flight_of(const ExportSample *e)
{
    return (double)e->stats.n_in_flight;
}

static void write_gauge(Writer *w, const char *name, const char *help,
                        double (*value_of)(const ExportSample *))
{
    metrics_text_family(w->text, name, "gauge", help);
    for (guint i = 0; i < w->exports->len; i++, qmp_pace(w->self, &w->pace)) {
        const ExportSample *e = w->exports->pdata[i];
        metrics_text_sample(w->text, name, value_of(e), "export", e->id, "name", e->name, NULL);
    }
}

static void write_histogram(GString *text, const ExportSample *e, unsigned op)
{
    static const char bucket[] = "chaind_export_request_duration_seconds_bucket";
    const uint64_t *latencies = e->stats.latencies[op];
    uint64_t n = 0;
    for (unsigned i = 0; i < NBDS_N_LATENCIES; i++) {
        char le[G_ASCII_DTOSTR_BUF_SIZE] = "+Inf";
        n += latencies[i];
        if (i + 1 < NBDS_N_LATENCIES)
            g_ascii_formatd(le, sizeof le, "%.9g", (double)(UINT64_C(1) << i) / 1e6);
        metrics_text_sample(text, bucket, (double)n, "export", e->id, "name", e->name, "operation",
                            operations[op], "le", le, NULL);
    }
    metrics_text_sample(text, "chaind_export_request_duration_seconds_sum",
                        (double)e->stats.latency_ns[op] / 1e9, "export", e->id, "name", e->name,
                        "operation", operations[op], NULL);
    metrics_text_sample(text, "chaind_export_request_duration_seconds_count", (double)n, "export",
                        e->id, "name", e->name, "operation", operations[op], NULL);
}

static void write_histograms(Writer *w)
{
    metrics_text_family(w->text, "chaind_export_request_duration_seconds", "histogram",
                        "From the start of a request to its reply, what it waits for limits "
                        "included; of kinds of which there were any.");
    for (guint i = 0; i < w->exports->len; i++, qmp_pace(w->self, &w->pace)) {
        const ExportSample *e = w->exports->pdata[i];
        for (unsigned op = 0; op < NBDS_N_OPERATIONS; op++)
            if (e->stats.n_requests[op])
                write_histogram(w->text, e, op);
    }
}

static void write_limits(Writer *w, const char *name, const char *help, ThrottleKind first)
{
    static const char *const directions[] = {"total", "read", "write"};
    metrics_text_family(w->text, name, "gauge", help);
    for (guint i = 0; i < w->exports->len; i++) {
        const ExportSample *e = w->exports->pdata[i];
        for (unsigned d = 0; d < G_N_ELEMENTS(directions); d++)
            if (e->limits.rates[first + d].average)
                metrics_text_sample(w->text, name, (double)e->limits.rates[first + d].average,
                                    "export", e->id, "name", e->name, "direction", directions[d],
                                    NULL);
    }
}

static void write_exports(Writer *w)
{
    write_counts(w, "chaind_export_requests_total", "Requests that were answered, errors included.",
                 offsetof(NbdsExportStats, n_requests));
    write_counts(w, "chaind_export_request_errors_total",
                 "Requests that were answered with an error.", offsetof(NbdsExportStats, n_errors));
    write_bytes(w, "chaind_export_read_bytes_total", "Bytes that clients have read.",
                NBDS_OPERATION_READ);
    write_bytes(w, "chaind_export_written_bytes_total", "Bytes that clients have written.",
                NBDS_OPERATION_WRITE);
    write_bytes(w, "chaind_export_zeroed_bytes_total", "Bytes that clients have zeroed.",
                NBDS_OPERATION_WRITE_ZEROES);
    write_bytes(w, "chaind_export_trimmed_bytes_total", "Bytes that clients have discarded.",
                NBDS_OPERATION_TRIM);
    write_histograms(w);
    write_gauge(w, "chaind_export_requests_in_flight", "Requests that are executed now.",
                in_flight_of);
    write_gauge(w, "chaind_export_clients", "Connections that use it now.", clients_of);
    write_gauge(w, "chaind_export_size_bytes", "What clients see.", size_of);
    write_limits(w, "chaind_export_limit_bytes_per_second", "Of its throttle group.",
                 THROTTLE_BPS_TOTAL);
    write_limits(w, "chaind_export_limit_requests_per_second", "Of its throttle group.",
                 THROTTLE_IOPS_TOTAL);
}

// -- disks ----------------------------------------------------------------------------------------

static double disk_is_open(const Daemon *daemon, const Disk *disk)
{
    return !disk->problem;
}

static double disk_size(const Daemon *daemon, const Disk *disk)
{
    const NamedNode *head = disk_layer_node(daemon->nodes, disk->head);
    return head ? (double)head->facts.size_bytes : 0;
}

static double disk_depth(const Daemon *daemon, const Disk *disk)
{
    unsigned n = 0;
    for (const DiskLayer *layer = disk->head; layer; layer = layer->below)
        n++;
    return n;
}

static double disk_points(const Daemon *daemon, const Disk *disk)
{
    return disk->points->len;
}

static void write_disks(GString *text, const Daemon *daemon, const char *name, const char *help,
                        double (*value_of)(const Daemon *, const Disk *))
{
    const GPtrArray *disks = daemon->catalogue->disks;
    metrics_text_family(text, name, "gauge", help);
    for (guint i = 0; i < disks->len; i++)
        metrics_text_sample(text, name, value_of(daemon, disks->pdata[i]), "disk",
                            ((const Disk *)disks->pdata[i])->name, NULL);
}

static void write_all_disks(GString *text, const Daemon *daemon)
{
    write_disks(text, daemon, "chaind_disk_open", "Whether a remembered disk is open: 1 or 0.",
                disk_is_open);
    write_disks(text, daemon, "chaind_disk_size_bytes", "What it shows; 0 while it is not open.",
                disk_size);
    write_disks(text, daemon, "chaind_disk_layers", "Images that it consists of.", disk_depth);
    write_disks(text, daemon, "chaind_disk_points", "Its points in time.", disk_points);
}

// -- jobs -----------------------------------------------------------------------------------------

static double job_done(const JobInfo *info)
{
    return (double)info->current;
}

static double job_length(const JobInfo *info)
{
    return (double)info->total;
}

static double job_rate(const JobInfo *info)
{
    return (double)info->rate;
}

static void write_jobs(GString *text, Fiber *self, const Daemon *daemon, const char *name,
                       const char *help, double (*value_of)(const JobInfo *))
{
    const GPtrArray *jobs = job_table_all(daemon->jobs);
    metrics_text_family(text, name, "gauge", help);
    for (guint i = 0; i < jobs->len; i++) {
        const Job *job = jobs->pdata[i];
        JobInfo info = job_info(job, loop_now_ns(fiber_loop(self)));
        metrics_text_sample(text, name, value_of(&info), "job", job_id(job), "type",
                            job_kind(job)->type, NULL);
    }
}

static void write_all_jobs(GString *text, Fiber *self, const Daemon *daemon)
{
    static const char name[] = "chaind_job_status";
    const GPtrArray *jobs = job_table_all(daemon->jobs);
    metrics_text_family(text, name, "gauge", "1 for the status that a job has.");
    for (guint i = 0; i < jobs->len; i++)
        metrics_text_sample(text, name, 1, "job", job_id(jobs->pdata[i]), "type",
                            job_kind(jobs->pdata[i])->type, "status",
                            job_status_name(job_status(jobs->pdata[i])), NULL);
    write_jobs(text, self, daemon, "chaind_job_done_bytes", "What a job has done.", job_done);
    write_jobs(text, self, daemon, "chaind_job_length_bytes",
               "What there is to do in all, as far as is known.", job_length);
    write_jobs(text, self, daemon, "chaind_job_rate_bytes_per_second",
               "Copied or shared in the last seconds.", job_rate);
}

// -- loops ----------------------------------------------------------------------------------------

typedef struct LoopSample {
    char *thread;
    LoopStats stats;
    uint64_t n_in_flight; // requests of exports
} LoopSample;

static void loop_sample_clear(gpointer p)
{
    g_free(((LoopSample *)p)->thread);
}

// Takes `thread`.
static void sample_loop(GArray *samples, const Daemon *daemon, char *thread, const Loop *loop)
{
    NbdsServer *server = nbd_server_get(daemon->nbd);
    LoopSample sample = {thread, loop_stats(loop),
                         server ? nbds_server_n_executing(server, loop) : 0};
    g_array_append_val(samples, sample);
}

static GArray *sample_loops(const Daemon *daemon)
{
    GArray *samples = g_array_new(false, false, sizeof(LoopSample));
    g_array_set_clear_func(samples, loop_sample_clear);
    for (unsigned i = 0; i < loops_count(daemon->loops); i++)
        sample_loop(samples, daemon, loops_thread_name(daemon->loops, i),
                    loops_get(daemon->loops, i));
    for (guint i = 0; i < iothreads_count(daemon->iothreads); i++)
        sample_loop(samples, daemon, iothreads_thread_name(daemon->iothreads, i),
                    iothreads_get(daemon->iothreads, i));
    sample_loop(samples, daemon, loops_thread_name(daemon->control, 0),
                daemon_control_loop(daemon));
    return samples;
}

static double loop_turns(const LoopSample *loop)
{
    return (double)loop->stats.n_turns;
}

static double loop_sleeps(const LoopSample *loop)
{
    return (double)loop->stats.n_sleeps;
}

static double loop_in_flight(const LoopSample *loop)
{
    return (double)loop->n_in_flight;
}

static void write_loops(GString *text, const GArray *loops, const char *name, const char *type,
                        const char *help, double (*value_of)(const LoopSample *))
{
    metrics_text_family(text, name, type, help);
    for (guint i = 0; i < loops->len; i++) {
        const LoopSample *loop = &g_array_index(loops, LoopSample, i);
        metrics_text_sample(text, name, value_of(loop), "thread", loop->thread, NULL);
    }
}

static void write_all_loops(GString *text, const Daemon *daemon)
{
    g_autoptr(GArray) loops = sample_loops(daemon);
    write_loops(text, loops, "chaind_loop_turns_total", "counter",
                "Turns of a thread's loop; in each it does what has come.", loop_turns);
    write_loops(text, loops, "chaind_loop_sleeps_total", "counter",
                "Turns after which there was nothing to do.", loop_sleeps);
    write_loops(text, loops, "chaind_loop_requests_in_flight", "gauge",
                "Requests of clients that the loop executes now.", loop_in_flight);
}

// -- the daemon -----------------------------------------------------------------------------------

static void write_lookups(GString *text, MapMemory *memory)
{
    MapMemoryLookups tables = map_memory_lookups(memory, MAP_MEMORY_SLICES);
    MapMemoryLookups maps = map_memory_lookups(memory, MAP_MEMORY_REGIONS);
    static const char hits[] = "chaind_map_memory_hits_total";
    static const char misses[] = "chaind_map_memory_misses_total";
    metrics_text_family(text, hits, "counter", "Look-ups that were answered from memory.");
    metrics_text_sample(text, hits, (double)tables.n_hits, "use", "tables", NULL);
    metrics_text_sample(text, hits, (double)maps.n_hits, "use", "maps", NULL);
    metrics_text_family(text, misses, "counter",
                        "Parts of tables that were read from images, and of maps that were made.");
    metrics_text_sample(text, misses, (double)tables.n_misses, "use", "tables", NULL);
    metrics_text_sample(text, misses, (double)maps.n_misses, "use", "maps", NULL);
}

static void write_daemon(GString *text, const Daemon *daemon)
{
    const MapMemory *memory = daemon->memory;
    const NbdsServer *server = nbd_server_get(daemon->nbd);
    metrics_text_family(text, "chaind_build_info", "gauge", "Always 1.");
    metrics_text_sample(text, "chaind_build_info", 1, "version", CHAIND_VERSION, NULL);
    metrics_text_family(text, "chaind_clients", "gauge",
                        "NBD clients that are connected, handshakes included.");
    metrics_text_sample(text, "chaind_clients", server ? nbds_server_n_clients(server) : 0, NULL);
    metrics_text_family(text, "chaind_map_memory_bytes", "gauge",
                        "Cached tables of images, and regions of merged maps.");
    metrics_text_sample(text, "chaind_map_memory_bytes",
                        (double)map_memory_used(memory, MAP_MEMORY_SLICES), "use", "tables", NULL);
    metrics_text_sample(text, "chaind_map_memory_bytes",
                        (double)map_memory_used(memory, MAP_MEMORY_REGIONS), "use", "maps", NULL);
    write_lookups(text, daemon->memory);
    metrics_text_family(text, "chaind_map_memory_dirty_bytes", "gauge",
                        "Of the tables, what is not on disk yet.");
    metrics_text_sample(text, "chaind_map_memory_dirty_bytes", (double)map_memory_dirty(memory),
                        NULL);
    metrics_text_family(text, "chaind_map_memory_limit_bytes", "gauge", "The bound of both.");
    metrics_text_sample(text, "chaind_map_memory_limit_bytes", (double)map_memory_limit(memory),
                        NULL);
}

static int append_process(void *text)
{
    metrics_process_append(text);
    return 0;
}

GString *metrics_make(Fiber *self, const Daemon *daemon)
{
    g_autoptr(GPtrArray) exports = sample_exports(daemon);
    GString *text = g_string_new(NULL);
    Writer writer = {self, qmp_pace_begin(), text, exports};
    write_daemon(text, daemon);
    if (daemon->catalogue)
        write_all_disks(text, daemon);
    write_all_jobs(text, self, daemon);
    write_exports(&writer);
    write_all_loops(text, daemon);
    loop_work(self, append_process, text);
    return text;
}
