// SPDX-License-Identifier: LGPL-2.1-or-later
// Runs the actions of all families (QmpAction) in the order that command.h gives. The union of
// their arguments is made from their tables at the start. Control loop.
//
//     each drained by itself → all prepared → all drained → all committed → resumed → finished →
//     started → cleaned
//     one of them failed → the drained ones resumed → the prepared ones aborted, last first →
//     cleaned
#include "transaction.h"

#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/table.h"
#include "jobs/job.h"

typedef struct Transaction {
    Fiber *self;
    QmpCall *call;
    QmpStep *steps;
    size_t n_prepared, n_drained;
} Transaction;

// -- types ----------------------------------------------------------------------------------------

static const QmpType completion_mode = {
    .name = "ActionCompletionMode",
    .kind = QMP_ENUM,
    .doc = "When the jobs that a transaction starts complete: each for itself, or together.",
    .values = (const char *const[]){"individual", "grouped", NULL},
};
static const QmpType properties = {
    .name = "TransactionProperties",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"completion-mode", &completion_mode, true, "individual, unless it is given"}, {0}},
};

// Filled in by make_types().
static QmpType action_kind = {.name = "TransactionActionKind", .kind = QMP_ENUM};
static QmpType action = {
    .name = "TransactionAction",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &action_kind, .doc = "what to do"}, {0}},
    .tag = "type",
};
static const QmpType actions = {.kind = QMP_ARRAY, .element = &action};
static const QmpType transaction_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"actions", &actions, .doc = "in their order"},
                                   {"properties", &properties, true, "of the transaction"},
                                   {0}},
};

static const QmpType abort_data = {.name = "Abort", .kind = QMP_OBJECT};

// {"data": …}, which stands beside "type".
static const QmpType *wrap_data(const QmpAction *of)
{
    QmpMember *members = g_new0(QmpMember, 2);
    members[0] = (QmpMember){"data", of->data, .doc = "its arguments"};
    QmpType *type = g_new0(QmpType, 1);
    type->name = g_strdup_printf("%s-action", of->name);
    type->kind = QMP_OBJECT;
    type->members = members;
    return type;
}

// They live as long as the process, as other types do.
static void make_types(const QmpFamily *const *families)
{
    if (action.variants)
        return;
    GArray *values = g_array_new(true, false, sizeof(char *));
    GArray *variants = g_array_new(true, false, sizeof(QmpVariant));
    for (; *families; families++) {
        for (const QmpAction *of = (*families)->actions; of && of->name; of++) {
            QmpVariant variant = {of->name, wrap_data(of)};
            g_array_append_val(values, of->name);
            g_array_append_val(variants, variant);
        }
    }
    action_kind.values = (const char *const *)g_array_free(values, false);
    action.variants = (const QmpVariant *)g_array_free(variants, false);
}

// -- running --------------------------------------------------------------------------------------

static int prepare(Transaction *t, const json_t *entry, GError **error)
{
    QmpStep *step = &t->steps[t->n_prepared];
    t->call->steps = t->steps;
    t->call->n_steps = t->n_prepared;
    step->action = qmp_table_find_action(t->call->table, qmp_args_str(entry, "type"));
    int r = step->action->prepare(t->self, t->call, json_object_get(entry, "data"), &step->state,
                                  error);
    t->n_prepared += r == 0;
    return r;
}

int qmp_rehearse_transaction(Fiber *self, QmpCall *call, const json_t *args, GError **error)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(args, "actions"), i, entry)
    {
        const QmpAction *of = qmp_table_find_action(call->table, qmp_args_str(entry, "type"));
        int r = of->drains ? drain_rehearse(self, call->daemon->nodes,
                                            of->drains(json_object_get(entry, "data")),
                                            "the transaction was not begun", error)
                           : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static int prepare_and_drain(Transaction *t, const json_t *args, GError **error)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(args, "actions"), i, entry)
    {
        int r = prepare(t, entry, error);
        if (r < 0)
            return r;
    }
    for (; t->n_drained < t->n_prepared; t->n_drained++) {
        QmpStep *step = &t->steps[t->n_drained];
        int r = step->action->drain ? step->action->drain(t->self, step->state, error) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static void commit_all(Transaction *t)
{
    for (size_t i = 0; i < t->n_prepared; i++)
        if (t->steps[i].action->commit)
            t->steps[i].action->commit(t->self, t->steps[i].state);
}

static void resume_all(Transaction *t)
{
    for (size_t i = 0; i < t->n_drained; i++)
        if (t->steps[i].action->resume)
            t->steps[i].action->resume(t->self, t->steps[i].state);
}

static void abort_all(Transaction *t)
{
    for (size_t i = t->n_prepared; i-- > 0;)
        if (t->steps[i].action->abort)
            t->steps[i].action->abort(t->self, t->steps[i].state);
}

static int finish_all(Transaction *t, GError **error)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < t->n_prepared; i++)
        if (t->steps[i].action->finish)
            r = t->steps[i].action->finish(t->self, t->steps[i].state, error);
    return r;
}

static void clean_all(Transaction *t)
{
    for (size_t i = 0; i < t->n_prepared; i++)
        if (t->steps[i].action->clean)
            t->steps[i].action->clean(t->self, t->steps[i].state);
}

static void start_all(Transaction *t)
{
    for (size_t i = 0; i < t->n_prepared; i++)
        if (t->steps[i].action->start)
            t->steps[i].action->start(t->self, t->steps[i].state);
}

static bool is_grouped(const json_t *args)
{
    const char *mode = qmp_args_str(json_object_get(args, "properties"), "completion-mode");
    return mode && g_str_equal(mode, "grouped");
}

// Only jobs complete.
static int check_grouped(const QmpTable *table, const json_t *args, GError **error)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(args, "actions"), i, entry)
    {
        const char *type = qmp_args_str(entry, "type");
        if (!qmp_table_find_action(table, type)->is_job)
            return qmp_fail(error,
                            "Action '%s' does not support transaction property completion-mode = "
                            "grouped",
                            type);
    }
    return 0;
}

// With the graph lock.
static int run_all(Transaction *t, const json_t *args, GError **error)
{
    int r = prepare_and_drain(t, args, error);
    bool is_committed = r == 0;
    if (is_committed)
        commit_all(t);
    resume_all(t);
    if (is_committed) // what the other actions refer to must stay meanwhile
        r = finish_all(t, error);
    if (r < 0)
        abort_all(t);
    else
        start_all(t);
    clean_all(t);
    return r;
}

int qmp_run_transaction(Fiber *self, QmpCall *call, const json_t *args, GError **error)
{
    size_t n = json_array_size(json_object_get(args, "actions"));
    g_autofree QmpStep *steps = g_new0(QmpStep, n + 1);
    QmpCall of_actions = *call;
    Transaction t = {.self = self, .call = &of_actions, .steps = steps};
    if (is_grouped(args))
        of_actions.group = job_group_new();
    int r = run_all(&t, args, error);
    job_group_unref(of_actions.group);
    return r;
}

static int transaction(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    int r = is_grouped(args) ? check_grouped(call->table, args, error) : 0;
    if (r == 0)
        r = qmp_rehearse_transaction(self, call, args, error);
    if (r < 0)
        return r;
    fiber_mutex_lock(self, lock);
    r = qmp_run_transaction(self, call, args, error);
    fiber_mutex_unlock(self, lock);
    return r;
}

static int fail_on_purpose(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                           GError **error)
{
    return qmp_fail(error, "Transaction aborted using Abort action");
}

static const QmpAction abort_action[] = {
    {.name = "abort",
     .data = &abort_data,
     .doc = "Fails, and with it the transaction: for tests.",
     .prepare = fail_on_purpose},
    {0},
};

static const QmpCommand commands[] = {
    {"transaction", &transaction_args, NULL,
     "Does several things together or, when one of them fails, none.", transaction},
    {0},
};

const QmpFamily qmp_transaction_family = {
    .title = "Transactions",
    .commands = commands,
    .actions = abort_action,
    .link = make_types,
};
