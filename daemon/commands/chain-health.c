// SPDX-License-Identifier: LGPL-2.1-or-later
// The files are looked at on the loop of the chain, and asked for by their paths on a worker.
// Control loop.
#include "chain-health.h"

#include <errno.h>
#include <sys/stat.h>

#include "chain-core/qcow2-check.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "held-chain.h"

static const QmpType check_type = {
    .name = "ChainHealthCheck",
    .kind = QMP_OBJECT,
    .doc = "What a check of an image's refcounts and tables has found.",
    .members = (const QmpMember[]){{"corruptions", &qmp_int, .doc = "faults that endanger data"},
                                   {"leaks", &qmp_int, .doc = "clusters that nothing uses"},
                                   {"leaked", &qmp_int, .doc = "bytes of these"},
                                   {"error", &qmp_str, true, "why it could not be checked"},
                                   {0}},
};
static const QmpType layer_type = {
    .name = "ChainHealthLayer",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"node-name", &qmp_str, .doc = "the layer"},
            {"filename", &qmp_str, .doc = "its file"},
            {"missing", &qmp_bool,
             .doc = "whether nothing, or another file, has that name now; what was opened is still "
                    "served, and gone when it is closed; not known of a relative path"},
            {"changed", &qmp_str, true,
             "how another program has changed it, of a layer that nobody may write"},
            {"check", &check_type, true, "if a check was asked for, of a layer that nobody writes"},
            {0}},
};
static const QmpType layers_type = {.kind = QMP_ARRAY, .element = &layer_type};
static const QmpType health_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the top node of the chain"},
                                   {"check", &qmp_bool, true,
                                    "whether refcounts and tables of images that nobody writes are "
                                    "checked, too, which reads all of their metadata; false"},
                                   {0}},
};

typedef struct LayerHealth {
    char *path; // NULL: it has no file
    bool is_missing;
    char *change, *fault; // or NULL
    bool is_checked;
    Qcow2CheckResult check;
    uint64_t cluster_bytes;
} LayerHealth;

typedef struct Health {
    HeldChain chain;
    bool checks;
    LayerHealth *layers;
} Health;

// -- on the chain's loop --------------------------------------------------------------------------

typedef struct Look {
    const char *path;
    uint64_t id[2];
    bool is_missing;
} Look;

static int look_on_worker(void *arg)
{
    Look *look = arg;
    struct stat st;
    look->is_missing =
        stat(look->path, &st) < 0
            ? errno == ENOENT
            : S_ISREG(st.st_mode) && (st.st_dev != look->id[0] || st.st_ino != look->id[1]);
    return 0;
}

static void look_at(Fiber *self, File *file, LayerHealth *layer)
{
    g_autoptr(GError) error = NULL;
    Look look = {.path = file_path(file)};
    layer->path = g_strdup(look.path);
    file_identity(file, look.id);
    if (g_path_is_absolute(look.path) && loop_work(self, look_on_worker, &look) == 0)
        layer->is_missing = look.is_missing;
    if (file_check_unchanged(self, file, &error) < 0)
        layer->change = g_strdup(error->message);
}

static void check(Fiber *self, const Node *node, File *file, LayerHealth *layer)
{
    g_autoptr(GError) error = NULL;
    layer->is_checked = true;
    layer->cluster_bytes = node->preferred_bytes;
    if (qcow2_check(self, file, 0, &layer->check, &error) < 0)
        layer->fault = g_strdup(error->message);
    else if (!node->read_only)
        layer->fault = g_strdup("a job has begun to write it meanwhile");
}

static void look_on_loop(Fiber *self, void *arg)
{
    Health *health = arg;
    for (unsigned i = 0; i < health->chain.n; i++) {
        Node *node = health->chain.nodes[i];
        File *file = node_metadata_file(node);
        if (!file)
            file = node_file(node);
        if (!file)
            continue;
        look_at(self, file, &health->layers[i]);
        if (health->checks && node->read_only && node->ops->fill)
            check(self, node, file, &health->layers[i]);
    }
}

// -- control --------------------------------------------------------------------------------------

static json_t *describe_check(const LayerHealth *layer)
{
    return json_pack("{s:I, s:I, s:I, s:s*}", "corruptions", (json_int_t)layer->check.n_corruptions,
                     "leaks", (json_int_t)layer->check.n_leaks, "leaked",
                     (json_int_t)(layer->check.n_leaks * layer->cluster_bytes), "error",
                     layer->fault);
}

static json_t *describe(const Health *health)
{
    json_t *layers = json_array();
    for (unsigned i = health->chain.n; i-- > 0;) {
        const LayerHealth *layer = &health->layers[i];
        g_autofree char *path = g_utf8_make_valid(layer->path ? layer->path : "", -1);
        json_array_append_new(layers,
                              json_pack("{s:s, s:s, s:b, s:s*, s:o*}", "node-name",
                                        health->chain.names[i], "filename", path, "missing",
                                        layer->is_missing, "changed", layer->change, "check",
                                        layer->is_checked ? describe_check(layer) : NULL));
    }
    return layers;
}

static void health_clear(Health *health)
{
    for (unsigned i = 0; health->layers && i < health->chain.n; i++) {
        LayerHealth *layer = &health->layers[i];
        g_free(layer->path);
        g_free(layer->change);
        g_free(layer->fault);
        if (layer->is_checked)
            qcow2_check_result_clear(&layer->check);
    }
    g_free(health->layers);
}

static int query_chain_health(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                              GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    const char *device = qmp_args_str(args, "device");
    Health health = {.checks = qmp_args_bool(args, "check", false)};
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = held_chain_begin(self, nodes, device, "a look at its files", &health.chain, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    if (r < 0)
        return r;
    health.layers = g_new0(LayerHealth, health.chain.n);
    if (remote_call_fiber_reserve(self, health.chain.loop, look_on_loop, &health) < 0)
        r = qmp_fail(error, "No memory for a fiber's stack");
    else
        *ret_reply = describe(&health);
    health_clear(&health);
    held_chain_end(self, nodes, &health.chain);
    return r;
}

static const QmpCommand commands[] = {
    {"query-chain-health", &health_args, &layers_type,
     "Whether the files of a chain, from the top down, are still there and what they were.",
     query_chain_health, .is_query = true},
    {0},
};

const QmpFamily qmp_chain_health_family = {.title = "Health", .commands = commands};
