// SPDX-License-Identifier: LGPL-2.1-or-later
// Points in time that are to go divide the layers of a chain into groups, each of which becomes one
// layer. Which one stays is what ways differ in. The tables of control say who else uses a layer;
// the nodes' loop looks at metadata and files meanwhile others work. Control loop.
#include "plans.h"

#include <errno.h>
#include <string.h>

#include "chain-core/chain-plan.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "held-chain.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType job_type = {
    .name = "ChainPlanJob",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"stream", "commit", NULL},
};
static const QmpType step_type = {
    .name = "ChainPlanStep",
    .kind = QMP_OBJECT,
    .doc = "A job, with the arguments that block-stream or block-commit would get.",
    .members =
        (const QmpMember[]){
            {"job", &job_type, .doc = "which one"},
            {"device", &qmp_str,
             .doc = "of a stream the layer that stays, of a commit the chain's"},
            {"top-node", &qmp_str, true, "of a commit: the highest layer that is committed"},
            {"base-node", &qmp_str, true,
             "of a commit the layer that stays; of a stream what lies below it then, if anything"},
            {"copy", &qmp_int,
             .doc = "bytes to be moved, or shared where the file system can, or less where they "
                    "stay compressed"},
            {"space", &qmp_int,
             .doc = "bytes that the layer that stays takes in addition, at most"},
            {"freed", &qmp_int, .doc = "bytes of files that nobody here needs then"},
            {0}},
};
static const QmpType steps_type = {.kind = QMP_ARRAY, .element = &step_type};
static const QmpType way_type = {
    .name = "ChainPlanWay",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"stays", &qmp_str, .doc = "the layer that is left of the group"},
            {"steps", &steps_type, .doc = "one or two jobs, in this order"},
            {"copy", &qmp_int, .doc = "bytes to be moved by all of them"},
            {"space", &qmp_int,
             .doc = "the most that is needed at a time, when files are removed after the step that "
                    "frees them"},
            {"freed", &qmp_int, .doc = "bytes of files at the end"},
            {"blocked", &qmp_str, true, "why it cannot be: who relies on what would change"},
            {0}},
};
static const QmpType ways_type = {.kind = QMP_ARRAY, .element = &way_type};
static const QmpType group_type = {
    .name = "ChainPlanGroup",
    .kind = QMP_OBJECT,
    .doc = "Neighbouring points in time that go, and with them all layers of the group but one.",
    .members = (const QmpMember[]){{"points", &qmp_str_array, .doc = "from the lowest on"},
                                   {"ways", &ways_type,
                                    .doc = "those that can be before those that cannot, the one "
                                           "that moves least first"},
                                   {0}},
};
static const QmpType groups_type = {.kind = QMP_ARRAY, .element = &group_type};
static const QmpType plan_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the top node of the chain"},
                                   {"points", &qmp_str_array, true,
                                    "the layers whose points in time are to go: what each of them "
                                    "shows, with what lies below "
                                    "it. Without it all but the top, which shows the present"},
                                   {0}},
};

// -- the chain ------------------------------------------------------------------------------------

// A layer of the chain, as it was found with the graph lock held.
typedef struct PlanLayer {
    const char *name;    // of the chain
    char *others;        // who else stands on it; NULL: nobody
    uint64_t file_bytes; // of the host
    bool goes;           // its point in time
} PlanLayer;

typedef struct Plan {
    HeldChain chain;
    PlanLayer *layers; // from the lowest on
    unsigned n;
    ChainPlanCost *costs; // of each layer, as the one of its group that stays
    int result;
} Plan;

// All who use it but `upper`, and disks that only keep it in its place; owned, or NULL.
static char *others_text(const NamedNode *named, const NamedNode *upper)
{
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by != upper && !g_str_equal(use->role, NODE_USE_ROLE_DISK))
            g_string_append_printf(text, "%s%s", text->len ? ", " : "", use->user);
    }
    bool is_empty = !text->len;
    char *owned = g_string_free(text, is_empty);
    return is_empty ? NULL : owned;
}

static void collect_layers(Plan *plan)
{
    const NamedNode *upper = NULL;
    unsigned i = plan->n = plan->chain.n;
    plan->layers = g_new0(PlanLayer, plan->n);
    for (const NamedNode *n = plan->chain.use->used; n; upper = n, n = named_node_below(n)) {
        if (n->node->ops->is_filter)
            continue;
        i--;
        plan->layers[i].name = plan->chain.names[i];
        plan->layers[i].others = upper ? others_text(n, upper) : NULL;
    }
}

static int mark_points(Plan *plan, const char *device, const json_t *points, GError **error)
{
    size_t at;
    const json_t *point;
    for (unsigned i = 0; i + 1 < plan->n; i++)
        plan->layers[i].goes = !points;
    json_array_foreach(points, at, point)
    {
        const char *name = json_string_value(point);
        unsigned i = 0;
        while (i < plan->n && !g_str_equal(plan->layers[i].name, name))
            i++;
        if (i + 1 == plan->n)
            return qmp_fail(error, "Node '%s' shows the present, and is no point in time", name);
        if (i == plan->n)
            return qmp_fail(error, "Node '%s' is not a layer below '%s'", name, device);
        plan->layers[i].goes = true;
    }
    return 0;
}

// With the graph lock.
static int plan_begin(Fiber *self, Nodes *nodes, const json_t *args, Plan *plan, GError **error)
{
    const char *device = qmp_args_str(args, "device");
    int r = held_chain_begin(self, nodes, device, "plan", &plan->chain, error);
    if (r < 0)
        return r;
    collect_layers(plan);
    return mark_points(plan, device, json_object_get(args, "points"), error);
}

static void plan_end(Fiber *self, Nodes *nodes, Plan *plan)
{
    held_chain_end(self, nodes, &plan->chain);
    for (unsigned i = 0; i < plan->n; i++)
        g_free(plan->layers[i].others);
    g_free(plan->layers);
    g_free(plan->costs);
}

// The layers [i, end) are a group: their points go, but for the last one's. Its end; layers that
// change nothing are one by themselves.
static unsigned group_end(const Plan *plan, unsigned i)
{
    while (plan->layers[i].goes)
        i++;
    return i + 1;
}

// -- on the nodes' loop ---------------------------------------------------------------------------

static uint64_t allocated_bytes(Fiber *self, File *file)
{
    uint64_t bytes;
    return file && file_allocated_bytes(self, file, &bytes) == 0 ? bytes : 0;
}

static int plan_group(Fiber *self, Plan *plan, unsigned first, unsigned end)
{
    Node *const *nodes = plan->chain.nodes;
    for (unsigned i = first; i < end; i++)
        plan->layers[i].file_bytes = allocated_bytes(self, node_file(nodes[i])) +
                                     allocated_bytes(self, node_metadata_file(nodes[i]));
    return chain_plan(self, nodes + first, end - first, plan->costs + first);
}

static void plan_on_loop(Fiber *self, void *arg)
{
    Plan *plan = arg;
    plan->costs = g_new0(ChainPlanCost, plan->n);
    for (unsigned i = 0, end; i < plan->n && plan->result == 0; i = end) {
        end = group_end(plan, i);
        if (end - i > 1)
            plan->result = plan_group(self, plan, i, end);
    }
}

// -- the reply ------------------------------------------------------------------------------------

// Who stands on the highest of those that were committed stands on what stays then.
static uint64_t freed_by_commit(const Plan *plan, unsigned stays, unsigned end)
{
    uint64_t bytes = 0;
    for (unsigned i = stays + 1; i < end; i++)
        bytes += plan->layers[i].file_bytes;
    return bytes;
}

// A layer that somebody else stands on is needed, and so is what lies below it.
static uint64_t freed_by_stream(const Plan *plan, unsigned first, unsigned stays)
{
    uint64_t bytes = 0;
    for (unsigned i = stays; i-- > first && !plan->layers[i].others;)
        bytes += plan->layers[i].file_bytes;
    return bytes;
}

// A commit into `stays` changes what it and the layers up to the highest but one show.
static char *blocked_text(const Plan *plan, unsigned stays, unsigned end)
{
    for (unsigned i = stays; i + 1 < end; i++)
        if (plan->layers[i].others)
            return g_strdup_printf("node '%s' would show something else to %s",
                                   plan->layers[i].name, plan->layers[i].others);
    return NULL;
}

typedef struct Way {
    unsigned first, end, stays;
    uint64_t copy, space, freed;
    char *blocked;
} Way;

static Way way_of(const Plan *plan, unsigned first, unsigned end, unsigned stays)
{
    const ChainPlanCost *cost = &plan->costs[stays];
    uint64_t freed_first = freed_by_commit(plan, stays, end);
    uint64_t both = cost->commit_space + cost->stream_space;
    return (Way){
        .first = first,
        .end = end,
        .stays = stays,
        .copy = cost->commit_bytes + cost->stream_bytes,
        .space = MAX(cost->commit_space, both > freed_first ? both - freed_first : 0),
        .freed = freed_first + freed_by_stream(plan, first, stays),
        .blocked = blocked_text(plan, stays, end),
    };
}

static int compare_ways(const void *a, const void *b)
{
    const Way *x = a, *y = b;
    if (!x->blocked != !y->blocked)
        return x->blocked ? 1 : -1;
    if (x->copy != y->copy)
        return x->copy < y->copy ? -1 : 1;
    return (x->space > y->space) - (x->space < y->space);
}

static json_t *describe_steps(const Plan *plan, const Way *way)
{
    const ChainPlanCost *cost = &plan->costs[way->stays];
    const char *stays = plan->layers[way->stays].name;
    json_t *steps = json_array();
    if (way->stays + 1 < way->end)
        json_array_append_new(steps,
                              json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "job", "commit",
                                        "device", plan->layers[plan->n - 1].name, "top-node",
                                        plan->layers[way->end - 1].name, "base-node", stays, "copy",
                                        (json_int_t)cost->commit_bytes, "space",
                                        (json_int_t)cost->commit_space, "freed",
                                        (json_int_t)freed_by_commit(plan, way->stays, way->end)));
    if (way->stays == way->first)
        return steps;
    const char *base = way->first ? plan->layers[way->first - 1].name : NULL;
    json_array_append_new(
        steps, json_pack("{s:s, s:s, s:s*, s:I, s:I, s:I}", "job", "stream", "device", stays,
                         "base-node", base, "copy", (json_int_t)cost->stream_bytes, "space",
                         (json_int_t)cost->stream_space, "freed",
                         (json_int_t)freed_by_stream(plan, way->first, way->stays)));
    return steps;
}

static json_t *describe_way(const Plan *plan, const Way *way)
{
    return json_pack("{s:s, s:o, s:I, s:I, s:I, s:s*}", "stays", plan->layers[way->stays].name,
                     "steps", describe_steps(plan, way), "copy", (json_int_t)way->copy, "space",
                     (json_int_t)way->space, "freed", (json_int_t)way->freed, "blocked",
                     way->blocked);
}

static json_t *describe_group(const Plan *plan, unsigned first, unsigned end)
{
    json_t *points = json_array(), *described = json_array();
    g_autofree Way *ways = g_new(Way, end - first);
    for (unsigned i = first; i < end; i++)
        ways[i - first] = way_of(plan, first, end, i);
    qsort(ways, end - first, sizeof(Way), compare_ways);
    for (unsigned i = 0; i < end - first; i++) {
        json_array_append_new(described, describe_way(plan, &ways[i]));
        g_free(ways[i].blocked);
    }
    for (unsigned i = first; i + 1 < end; i++)
        json_array_append_new(points, json_string(plan->layers[i].name));
    return json_pack("{s:o, s:o}", "points", points, "ways", described);
}

static json_t *describe(const Plan *plan)
{
    json_t *groups = json_array();
    for (unsigned i = 0, end; i < plan->n; i = end) {
        end = group_end(plan, i);
        if (end - i > 1)
            json_array_append_new(groups, describe_group(plan, i, end));
    }
    return groups;
}

static int x_chain_plan(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    Plan plan = {0};
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = plan_begin(self, nodes, args, &plan, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    if (r == 0 && remote_call_fiber_reserve(self, plan.chain.loop, plan_on_loop, &plan) < 0)
        r = qmp_fail(error, "No memory for a fiber's stack");
    if (r == 0 && plan.result < 0)
        r = qmp_fail(error, "Failed to read the tables of the chain of '%s': %s",
                     qmp_args_str(args, "device"), g_strerror(-plan.result));
    if (r == 0)
        *ret_reply = describe(&plan);
    plan_end(self, nodes, &plan);
    return r;
}

static const QmpCommand commands[] = {
    {"x-chain-plan", &plan_args, &groups_type,
     "Which jobs would remove points in time from a chain, and what they would move, need and "
     "free, in each way: by streaming layers up, by committing them down, and for several points "
     "by both, with each of the layers as the one that stays. From metadata only; nothing is "
     "changed.",
     x_chain_plan, .is_query = true},
    {0},
};

const QmpFamily qmp_plans_family = {.title = "Plans", .commands = commands};
