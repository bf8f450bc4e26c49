// SPDX-License-Identifier: LGPL-2.1-or-later
// From FILE arguments to exports and back. Each disk is a named node (nodes.h) with an export on
// it; both live on one loop, and the main thread makes remote calls and waits.
#include "exports.h"

#include <errno.h>
#include <string.h>

#include "chain-core/remote-call.h"
#include "chain-core/whole-sectors.h"
#include "log.h"

typedef struct Disk {
    const DiskOption *option;
    const Options *options;
    NbdsServer *server;
    NamedNode *named;
    NbdsExport *export; // NULL: it could not be made
    RemoteCall closing;
    int result;
    GError *error;
} Disk;

struct Exports {
    unsigned n;
    Disk disks[];
};

// What clients see beside the name: "web: 20 GiB qcow2, 4 layers, head". Owned.
static char *describe(const Disk *disk)
{
    if (disk->options->description)
        return g_strdup(disk->options->description);
    const char *name = disk->option->name, *summary = named_node_summary(disk->named);
    char *text = *name ? g_strdup_printf("%s: %s", name, summary) : g_strdup(summary);
    if (strlen(text) <= OPTIONS_MAX_STRING && g_utf8_validate(text, -1, NULL))
        return text;
    g_free(text); // a snapshot's name may be anything
    return g_strdup("");
}

// Some clients can address sectors only (chaind(8), "SIZES"). A new reference.
static Node *node_to_export(Fiber *self, Node *node)
{
    return node->size_bytes % SECTOR_BYTES ? whole_sectors_new(self, node) : node_ref(node);
}

static void export_disk(Fiber *self, void *arg)
{
    Disk *disk = arg;
    Node *node = node_to_export(self, named_node_get(disk->named));
    g_autofree char *description = describe(disk);
    NbdsExportConfig config = {
        .name = disk->option->name,
        .description = description,
        .node = node,
        .read_only = disk->options->read_only,
        .padding_bytes = node->size_bytes - named_node_get(disk->named)->size_bytes,
    };
    disk->result = nbds_server_add_export(disk->server, &config, &disk->export, &disk->error);
    node_unref_close(self, node);
}

// Requests first: what they wrote is flushed too.
static void close_disk(Fiber *self, void *arg)
{
    Disk *disk = arg;
    if (disk->export)
        nbds_server_remove_export(self, disk->export);
    disk->result = named_node_close(self, disk->named);
}

// The node, and the export on it. When the second fails the first is there all the same.
static int open_disk(Disk *disk, Nodes *nodes, GError **error)
{
    const DiskOption *option = disk->option;
    const Options *options = disk->options;
    NodeSpec spec = {
        .name = *option->name ? option->name : NULL,
        .label = *option->name ? option->name : option->file,
        .file = option->file,
        .format = option->format ? option->format : options->format,
        .snapshot = options->snapshot,
        .read_only = options->read_only,
        .direct = options->direct,
        .force_share = options->force_share,
    };
    disk->named = nodes_open(nodes, &spec, error);
    if (!disk->named)
        return -EIO;
    int r = remote_call_reserve(named_node_loop(disk->named), export_disk, disk);
    if (r < 0)
        g_set_error(&disk->error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                    "'%s' cannot be exported: no memory for a fiber's stack", option->file);
    if (disk->error)
        g_propagate_error(error, disk->error);
    return r < 0 ? r : disk->result;
}

Exports *exports_open(const Options *options, Nodes *nodes, NbdsServer *server, GError **error)
{
    unsigned n = options->disks->len;
    Exports *exports = g_malloc0(sizeof(*exports) + n * sizeof(exports->disks[0]));
    int r = 0;
    while (r == 0 && exports->n < n) {
        Disk *disk = &exports->disks[exports->n];
        *disk = (Disk){
            .option = g_ptr_array_index(options->disks, exports->n),
            .options = options,
            .server = server,
        };
        r = open_disk(disk, nodes, error);
        exports->n += disk->named != NULL;
    }
    if (r == 0)
        return exports;
    exports_close(exports, -1);
    return NULL;
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
                 named_node_is_corrupt(disk->named) ? "it is damaged" : g_strerror(-disk->result));
        return -EIO;
    }
    return 0;
}

// Says which disks are late before it waits for any of them without limit.
static void wait_for_all(Exports *exports, int *results, gint64 timeout_us)
{
    gint64 deadline_us = timeout_us < 0 ? -1 : g_get_monotonic_time() + timeout_us;
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

int exports_close(Exports *exports, gint64 timeout_us)
{
    if (!exports)
        return 0;
    for (unsigned i = 0; i < exports->n; i++) {
        Disk *disk = &exports->disks[i];
        remote_call_start_reserve(&disk->closing, named_node_loop(disk->named), close_disk, disk);
    }
    g_autofree int *results = g_new0(int, exports->n + 1);
    wait_for_all(exports, results, timeout_us);

    int result = 0;
    for (unsigned i = 0; i < exports->n; i++) {
        Disk *disk = &exports->disks[i];
        if (results[i] == -ETIMEDOUT)
            results[i] = remote_call_wait(&disk->closing, -1);
        int r = log_end(disk, results[i]);
        if (r == -ENOMEM || result == 0)
            result = r;
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
    return named_node_summary(exports->disks[i].named);
}
