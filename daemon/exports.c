// SPDX-License-Identifier: LGPL-2.1-or-later
// From FILE arguments to exports and back. A disk is opened, served, flushed and closed on one
// loop; the main thread makes remote calls and waits. What opening did to an image (repair,
// bitmaps dropped) is logged here, once.
#include "exports.h"

#include <errno.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "log.h"

typedef struct Disk {
    Qcow2Events events; // first
    bool is_corrupt;    // one of its images turned out to be
    const DiskOption *option;
    const Options *options;
    NbdsServer *server;
    MapMemory *memory;
    Loop *loop;
    Node *node; // our reference, for the last flush
    NbdsExport *export;
    char *summary;
    RemoteCall closing;
    int result;
    GError *error;
} Disk;

struct Exports {
    unsigned n;
    Disk disks[];
};

// "20 GiB", "512 bytes", "1.5 TiB"
static char *size_text(uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    for (; value >= 1024 && unit + 1 < G_N_ELEMENTS(units); unit++)
        value /= 1024;
    return g_strdup_printf("%.*f %s", value == (double)(uint64_t)value ? 0 : 1, value, units[unit]);
}

static char *summarize(const Disk *disk, const ChainInfo *info)
{
    const char *snapshot = disk->options->snapshot;
    g_autofree char *size = size_text(disk->node->size_bytes);
    g_autofree char *view = snapshot ? g_strdup_printf(", snapshot %s", snapshot)
                            : g_str_equal(info->top_format, "qcow2") ? g_strdup(", head")
                                                                     : g_strdup("");
    return g_strdup_printf("%s %s, %u layer%s%s%s", size, info->top_format, info->n_layers,
                           info->n_layers == 1 ? "" : "s", view,
                           disk->node->read_only ? ", read-only" : "");
}

// What clients see beside the name: "web: 20 GiB qcow2, 4 layers, head". Owned.
static char *describe(const Disk *disk)
{
    if (disk->options->description)
        return g_strdup(disk->options->description);
    const char *name = disk->option->name;
    char *text = *name ? g_strdup_printf("%s: %s", name, disk->summary) : g_strdup(disk->summary);
    if (strlen(text) <= OPTIONS_MAX_STRING && g_utf8_validate(text, -1, NULL))
        return text;
    g_free(text); // a snapshot's name may be anything
    return g_strdup("");
}

static void log_notices(const Disk *disk, const ChainInfo *info)
{
    for (char **notice = info->notices; notice && *notice; notice++)
        log_line(LOG_WARNING, "%s", *notice);
}

static void found_corrupt(const Qcow2Events *events, const char *sentence)
{
    ((Disk *)events)->is_corrupt = true;
    log_line(LOG_ERROR, "%s", sentence);
}

// Once for each file: the failure sticks (docs/ordering.md §9).
static void log_flush_failed(File *file, int error, void *arg)
{
    log_line(LOG_ERROR,
             "%s: sync failed: %s; every flush answers an error until it is opened again",
             file_path(file), g_strerror(-error));
}

static int open_disk(Fiber *self, Disk *disk)
{
    const Options *options = disk->options;
    ChainOpenOptions open = {
        .format = disk->option->format ? disk->option->format : options->format,
        .snapshot = options->snapshot,
        .read_only = options->read_only,
        .direct = options->direct,
        .force_share = options->force_share,
        .memory = disk->memory,
        .events = &disk->events,
        .flush_failed = log_flush_failed,
    };
    ChainInfo info = {0};
    int r = chain_open(self, disk->option->file, &open, &disk->node, &info, &disk->error);
    if (r < 0)
        return r;
    disk->summary = summarize(disk, &info);
    log_notices(disk, &info);
    chain_info_clear(&info);

    g_autofree char *description = describe(disk);
    NbdsExportConfig config = {
        .name = disk->option->name,
        .description = description,
        .node = disk->node,
        .read_only = options->read_only,
    };
    r = nbds_server_add_export(disk->server, &config, &disk->export, &disk->error);
    if (r < 0) {
        node_unref_close(self, disk->node);
        disk->node = NULL;
    }
    return r;
}

static void open_disk_fiber(Fiber *self, void *arg)
{
    Disk *disk = arg;
    disk->result = open_disk(self, disk);
}

// Requests first: what they wrote is flushed too.
static void close_disk_fiber(Fiber *self, void *arg)
{
    Disk *disk = arg;
    nbds_server_remove_export(self, disk->export);
    disk->result = disk->node->read_only ? 0 : node_flush(self, disk->node);
    node_unref_close(self, disk->node);
    disk->node = NULL;
}

Exports *exports_open(const Options *options, const Loops *loops, NbdsServer *server,
                      MapMemory *memory, GError **error)
{
    unsigned n = options->disks->len;
    Exports *exports = g_malloc0(sizeof(*exports) + n * sizeof(exports->disks[0]));
    for (; exports->n < n; exports->n++) {
        Disk *disk = &exports->disks[exports->n];
        *disk = (Disk){
            .events = {.corrupt = found_corrupt},
            .option = g_ptr_array_index(options->disks, exports->n),
            .options = options,
            .server = server,
            .memory = memory,
            .loop = loops_get(loops, exports->n),
        };
        int r = remote_call_reserve(disk->loop, open_disk_fiber, disk);
        if (r < 0)
            g_set_error(&disk->error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                        "'%s' cannot be opened: no memory for a fiber's stack", disk->option->file);
        else if (disk->result < 0 && !disk->error)
            g_set_error(&disk->error, G_FILE_ERROR, g_file_error_from_errno(-disk->result),
                        "'%s' cannot be opened: %s", disk->option->file, g_strerror(-disk->result));
        if (disk->error) {
            g_propagate_error(error, disk->error);
            exports_close(exports, -1);
            return NULL;
        }
    }
    return exports;
}

static int log_end(const Disk *disk, int r)
{
    if (r < 0) {
        log_line(LOG_ERROR, "'%s' could not be closed: no memory for a fiber's stack",
                 disk->option->file);
        return r;
    }
    if (disk->result < 0) {
        log_line(LOG_ERROR,
                 "'%s' could not be flushed at the end: %s; what was written since the last "
                 "flush may be lost",
                 disk->option->file,
                 disk->is_corrupt ? "it is corrupt" : g_strerror(-disk->result));
        return -EIO;
    }
    return 0;
}

// Says which disks are late before it waits for any of them without limit.
static void wait_patiently(Exports *exports, int *results, gint64 patience_us)
{
    gint64 deadline_us = patience_us < 0 ? -1 : g_get_monotonic_time() + patience_us;
    for (unsigned i = 0; i < exports->n; i++) {
        Disk *disk = &exports->disks[i];
        results[i] = remote_call_wait(&disk->closing, deadline_us);
        if (results[i] == -ETIMEDOUT)
            log_line(LOG_WARNING,
                     "'%s' is not closed yet: its storage or a client does not answer; waiting "
                     "(a second signal leaves at once)",
                     disk->option->file);
    }
}

int exports_close(Exports *exports, gint64 patience_us)
{
    if (!exports)
        return 0;
    for (unsigned i = 0; i < exports->n; i++) {
        Disk *disk = &exports->disks[i];
        remote_call_start_reserve(&disk->closing, disk->loop, close_disk_fiber, disk);
    }
    g_autofree int *results = g_new0(int, exports->n + 1);
    wait_patiently(exports, results, patience_us);

    int result = 0;
    for (unsigned i = 0; i < exports->n; i++) {
        Disk *disk = &exports->disks[i];
        if (results[i] == -ETIMEDOUT)
            results[i] = remote_call_wait(&disk->closing, -1);
        int r = log_end(disk, results[i]);
        if (r == -ENOMEM || result == 0)
            result = r;
        g_free(disk->summary);
    }
    g_free(exports);
    return result;
}

unsigned exports_count(const Exports *exports)
{
    return exports->n;
}

const char *exports_name(const Exports *exports, unsigned i)
{
    return exports->disks[i].option->name;
}

const char *exports_summary(const Exports *exports, unsigned i)
{
    return exports->disks[i].summary;
}
