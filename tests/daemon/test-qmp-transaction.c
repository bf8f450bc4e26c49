// SPDX-License-Identifier: LGPL-2.1-or-later
// Transactions: the order in which actions are prepared, drained, committed, resumed, aborted and
// cleaned, and that all take effect or none.
#include "../loop/in-fiber.h"

#include <string.h>

#include "daemon/commands/transaction.h"
#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/qmp/table.h"

// Of the table that is not there.
static FiberMutex lock;

FiberMutex *nodes_graph_lock(Nodes *nodes)
{
    return &lock;
}

static GString *said; // what the actions did, in order

static const QmpType note_data = {
    .name = "Note",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str}, {0}},
};

static void say(const char *verb, void *state)
{
    fiber_assert(lock.owner);
    g_string_append_printf(said, "%s%s %s", said->len ? ", " : "", verb, (char *)state);
}

static int prepare(Fiber *self, QmpCall *call, const json_t *data, void **ret_state, GError **error)
{
    const char *name = json_string_value(json_object_get(data, "name"));
    say("prepare", (void *)name);
    if (strchr(name, '!'))
        return qmp_fail(error, "%s fails", name);
    *ret_state = g_strdup(name);
    return 0;
}

static int drain(Fiber *self, void *state, GError **error)
{
    say("drain", state);
    return strchr(state, '?') ? qmp_fail(error, "%s cannot be drained", (char *)state) : 0;
}

static void commit(Fiber *self, void *state)
{
    say("commit", state);
}

static void undo(Fiber *self, void *state)
{
    say("abort", state);
}

static void resume(Fiber *self, void *state)
{
    say("resume", state);
}

static int finish(Fiber *self, void *state, GError **error)
{
    say("finish", state);
    return strchr(state, '%') ? qmp_fail(error, "%s cannot be finished", (char *)state) : 0;
}

static void clean(Fiber *self, void *state)
{
    say("clean", state);
    g_free(state);
}

static const char *node_of(const json_t *data)
{
    return json_string_value(json_object_get(data, "name"));
}

// Of a node that is not there.
int drain_rehearse(Fiber *self, Nodes *nodes, const char *name, const char *what, GError **error)
{
    fiber_assert(!lock.owner);
    g_string_append_printf(said, "%srehearse %s", said->len ? ", " : "", name);
    return strchr(name, '~') ? qmp_fail(error, "%s hangs", name) : 0;
}

static const QmpAction note_actions[] = {
    {"disk", &note_data, "Rehearses.", prepare, drain, commit, undo, resume, clean,
     .drains = node_of},
    {"note", &note_data, "Notes.", prepare, drain, commit, undo, resume, clean},
    {"long", &note_data, "Has work left.", prepare, drain, commit, undo, resume, clean, finish},
    {"plain", &note_data, "Prepares only.", .prepare = prepare, .clean = clean},
    {0},
};
static const QmpFamily notes = {.title = "Notes", .actions = note_actions};
static const QmpFamily *const families[] = {&notes, &qmp_transaction_family, NULL};

typedef struct Try {
    const char *actions;
    char *reply;
} Try;

static void run_transaction(Fiber *self, void *arg)
{
    Try *one = arg;
    QmpTable *table = qmp_table_new(families);
    Daemon daemon = {0};
    QmpCall call = {.daemon = &daemon, .table = table, .is_negotiated = true};
    json_auto_t *request = json_loads(one->actions, 0, NULL);
    fiber_assert(request);
    json_auto_t *reply = qmp_table_dispatch(self, &call, request);
    fiber_assert(!lock.owner);
    one->reply = json_dumps(reply, JSON_COMPACT);
    qmp_table_free(table);
}

static void assert_done(const char *actions, const char *reply, const char *order)
{
    g_autofree char *request =
        g_strdup_printf("{\"execute\":\"transaction\",\"arguments\":{\"actions\":[%s]}}", actions);
    Try one = {request};
    said = g_string_new(NULL);
    run_in_fiber(run_transaction, &one);
    assert_string_equal(one.reply, reply);
    assert_string_equal(said->str, order);
    free(one.reply);
    g_string_free(said, true);
}

#define NOTE(name) "{\"type\":\"note\",\"data\":{\"name\":\"" name "\"}}"
#define PLAIN(name) "{\"type\":\"plain\",\"data\":{\"name\":\"" name "\"}}"
#define DISK(name) "{\"type\":\"disk\",\"data\":{\"name\":\"" name "\"}}"
#define LONG(name) "{\"type\":\"long\",\"data\":{\"name\":\"" name "\"}}"
#define GENERIC(text) "{\"error\":{\"class\":\"GenericError\",\"desc\":\"" text "\"}}"

static void all_are_drained_before_one_is_committed(void **state)
{
    assert_done(NOTE("a") "," PLAIN("b") "," NOTE("c"), "{\"return\":{}}",
                "prepare a, prepare b, prepare c, drain a, drain c, commit a, commit c, resume a, "
                "resume c, clean a, clean b, clean c");
}

static void drains_are_rehearsed_one_by_one_before_anything_else(void **state)
{
    assert_done(DISK("a") "," PLAIN("b") "," DISK("c"), "{\"return\":{}}",
                "rehearse a, rehearse c, prepare a, prepare b, prepare c, drain a, drain c, "
                "commit a, commit c, resume a, resume c, clean a, clean b, clean c");
    assert_done(DISK("a") "," DISK("b~") "," DISK("c"), GENERIC("b~ hangs"),
                "rehearse a, rehearse b~");
}

static void a_failed_prepare_aborts_those_before_it(void **state)
{
    assert_done(NOTE("a") "," NOTE("b") "," NOTE("c!") "," NOTE("d"), GENERIC("c! fails"),
                "prepare a, prepare b, prepare c!, abort b, abort a, clean a, clean b");
}

static void a_failed_drain_resumes_and_aborts_all(void **state)
{
    assert_done(NOTE("a") "," NOTE("b?") "," NOTE("c"), GENERIC("b? cannot be drained"),
                "prepare a, prepare b?, prepare c, drain a, drain b?, resume a, abort c, abort b?, "
                "abort a, clean a, clean b?, clean c");
}

static void the_abort_action_undoes_what_came_before(void **state)
{
    assert_done(NOTE("a") ",{\"type\":\"abort\",\"data\":{}}",
                GENERIC("Transaction aborted using Abort action"), "prepare a, abort a, clean a");
}

static void what_is_finished_late_and_fails_undoes_all(void **state)
{
    assert_done(LONG("a") "," NOTE("b"), "{\"return\":{}}",
                "prepare a, prepare b, drain a, drain b, commit a, commit b, resume a, resume b, "
                "finish a, clean a, clean b");
    assert_done(
        NOTE("a") "," LONG("b%") "," LONG("c"), GENERIC("b% cannot be finished"),
        "prepare a, prepare b%, prepare c, drain a, drain b%, drain c, commit a, commit b%, "
        "commit c, resume a, resume b%, resume c, finish b%, abort c, abort b%, abort a, "
        "clean a, clean b%, clean c");
}

static void nothing_runs_when_an_action_is_wrong(void **state)
{
    assert_done(NOTE("a") ",{\"type\":\"nope\",\"data\":{}}",
                GENERIC("Parameter 'type' does not accept value 'nope'"), "");
    assert_done(NOTE("a") ",{\"type\":\"note\",\"data\":{}}",
                GENERIC("Parameter 'actions[1].data.name' is missing"), "");
    assert_done("", "{\"return\":{}}", "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drains_are_rehearsed_one_by_one_before_anything_else),
        cmocka_unit_test(all_are_drained_before_one_is_committed),
        cmocka_unit_test(a_failed_prepare_aborts_those_before_it),
        cmocka_unit_test(a_failed_drain_resumes_and_aborts_all),
        cmocka_unit_test(the_abort_action_undoes_what_came_before),
        cmocka_unit_test(what_is_finished_late_and_fails_undoes_all),
        cmocka_unit_test(nothing_runs_when_an_action_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
