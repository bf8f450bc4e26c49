// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening, watching and closing named chains, each on one loop. One fiber a loop looks now and then
// whether another program changed the size of a file; it ends with the loop's last node.
#include "nodes.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "file-log.h"
#include "log.h"

// Often enough to tell a user what went wrong, and rare enough to cost nothing.
static const uint64_t SIZE_CHECK_NS = UINT64_C(5000000000);

// Of one loop, and touched only there.
typedef struct Watch {
    GPtrArray *open; // NamedNode
    Fiber *fiber;    // NULL: nothing to watch, or it is on its way out
} Watch;

struct NamedNode {
    NodeEvents events; // first
    Nodes *nodes;
    Loop *loop;
    Watch *watch;
    char *name, *label, *summary;
    Node *node; // NULL: closed
    FileLog file_log;
    bool is_corrupt;
};

struct Nodes {
    const Loops *loops;
    MapMemory *memory;
    GHashTable *by_name; // NamedNode, owned
    unsigned n_opened;   // also those that failed
    unsigned n_watches;
    Watch *watches; // one a loop
};

static void named_node_free(gpointer p)
{
    NamedNode *named = p;
    g_assert(!named->node);
    g_free(named->name);
    g_free(named->label);
    g_free(named->summary);
    g_free(named);
}

Nodes *nodes_new(const Loops *loops, MapMemory *memory)
{
    Nodes *nodes = g_new0(Nodes, 1);
    nodes->loops = loops;
    nodes->memory = memory;
    nodes->by_name = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, named_node_free);
    nodes->n_watches = loops_count(loops);
    nodes->watches = g_new0(Watch, nodes->n_watches);
    for (unsigned i = 0; i < nodes->n_watches; i++)
        nodes->watches[i].open = g_ptr_array_new();
    return nodes;
}

void nodes_free(Nodes *nodes)
{
    if (!nodes)
        return;
    for (unsigned i = 0; i < nodes->n_watches; i++)
        g_ptr_array_unref(nodes->watches[i].open);
    g_free(nodes->watches);
    g_hash_table_unref(nodes->by_name);
    g_free(nodes);
}

// -- watching -------------------------------------------------------------------------------------

static void check_sizes(Fiber *self, const NamedNode *named)
{
    // The chain may change, and the disk be closed, whenever this waits.
    for (Node *node = node_ref(named->node), *next; node; node = next) {
        File *files[] = {node_file(node), node_metadata_file(node)};
        for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
            if (files[i])
                file_check_size(self, files[i]); // what fails here fails for clients, too
        next = chain_backing(node);
        if (next)
            node_ref(next);
        node_unref_close(self, node);
    }
}

static void watch_sizes(Fiber *self, void *arg)
{
    Watch *watch = arg;
    while (fiber_sleep(self, SIZE_CHECK_NS) == 0)
        for (guint i = 0; i < watch->open->len; i++)
            check_sizes(self, watch->open->pdata[i]);
}

static void begin_watching(NamedNode *named)
{
    Watch *watch = named->watch;
    g_ptr_array_add(watch->open, named);
    // Without memory for a fiber the disk is served all the same.
    if (!watch->fiber &&
        fiber_spawn(named->loop, "sizes of files", watch_sizes, watch, &watch->fiber) < 0)
        watch->fiber = NULL;
}

static void end_watching(NamedNode *named)
{
    Watch *watch = named->watch;
    g_ptr_array_remove(watch->open, named);
    if (watch->open->len == 0 && watch->fiber)
        fiber_cancel(g_steal_pointer(&watch->fiber));
}

// -- opening --------------------------------------------------------------------------------------

typedef struct Opening {
    NamedNode *named;
    const NodeSpec *spec;
    int result;
    GError *error;
} Opening;

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

static char *summarize(const Node *node, const NodeSpec *spec, const ChainInfo *info)
{
    g_autofree char *size = size_text(node->size_bytes);
    g_autofree char *view = spec->snapshot ? g_strdup_printf(", snapshot %s", spec->snapshot)
                            : g_str_equal(info->top_format, "qcow2") ? g_strdup(", head")
                                                                     : g_strdup("");
    return g_strdup_printf("%s %s, %u layer%s%s%s", size, info->top_format, info->n_layers,
                           info->n_layers == 1 ? "" : "s", view,
                           node->read_only ? ", read-only" : "");
}

static void log_notice(const NodeEvents *events, const char *sentence)
{
    log_line(LOG_WARNING, "%s", sentence);
}

static void found_corrupt(const NodeEvents *events, const char *sentence)
{
    ((NamedNode *)events)->is_corrupt = true;
    log_line(LOG_ERROR, "%s", sentence);
}

static void open_node(Fiber *self, void *arg)
{
    Opening *opening = arg;
    NamedNode *named = opening->named;
    const NodeSpec *spec = opening->spec;
    LayerOptions options = {
        .format = spec->format,
        .snapshot = spec->snapshot,
        .read_only = spec->read_only,
        .direct = spec->direct,
        .force_share = spec->force_share,
        .memory = named->nodes->memory,
        .events = &named->events,
        .file_event = file_log_event,
        .file_event_arg = &named->file_log,
    };
    ChainInfo info;
    opening->result = chain_open(self, spec->file, &options, &named->node, &info, &opening->error);
    if (opening->result < 0)
        return;
    named->summary = summarize(named->node, spec, &info);
    if (!spec->force_share) // there another program writes the files
        begin_watching(named);
}

static NamedNode *named_node_new(Nodes *nodes, const NodeSpec *spec)
{
    NamedNode *named = g_new0(NamedNode, 1);
    unsigned number = nodes->n_opened++;
    named->events = (NodeEvents){.corrupt = found_corrupt, .notice = log_notice};
    named->nodes = nodes;
    named->loop = loops_get(nodes->loops, number);
    named->watch = &nodes->watches[number % nodes->n_watches];
    named->name = spec->name ? g_strdup(spec->name) : g_strdup_printf("#node%u", number);
    named->label = g_strdup(spec->label);
    named->file_log.disk = named->label;
    return named;
}

NamedNode *nodes_open(Nodes *nodes, const NodeSpec *spec, GError **error)
{
    if (spec->name && nodes_find(nodes, spec->name)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "there is already a node named '%s': choose another name", spec->name);
        return NULL;
    }
    Opening opening = {.named = named_node_new(nodes, spec), .spec = spec};
    int r = remote_call_reserve(opening.named->loop, open_node, &opening);
    if (r < 0)
        g_set_error(&opening.error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                    "'%s' cannot be opened: no memory for a fiber's stack", spec->file);
    else if (opening.result < 0 && !opening.error)
        g_set_error(&opening.error, G_FILE_ERROR, g_file_error_from_errno(-opening.result),
                    "'%s' cannot be opened: %s", spec->file, g_strerror(-opening.result));
    if (opening.error) {
        g_propagate_error(error, opening.error);
        named_node_free(opening.named);
        return NULL;
    }
    g_hash_table_insert(nodes->by_name, opening.named->name, opening.named);
    return opening.named;
}

NamedNode *nodes_find(const Nodes *nodes, const char *name)
{
    return g_hash_table_lookup(nodes->by_name, name);
}

const char *named_node_name(const NamedNode *named)
{
    return named->name;
}

Loop *named_node_loop(const NamedNode *named)
{
    return named->loop;
}

const char *named_node_summary(const NamedNode *named)
{
    return named->summary;
}

bool named_node_is_corrupt(const NamedNode *named)
{
    return named->is_corrupt;
}

Node *named_node_get(const NamedNode *named)
{
    return named->node;
}

int named_node_close(Fiber *self, NamedNode *named)
{
    end_watching(named);
    Node *node = g_steal_pointer(&named->node);
    int r = node->read_only ? 0 : node_flush(self, node);
    node_unref_close(self, node);
    file_log_done(&named->file_log);
    return r;
}
