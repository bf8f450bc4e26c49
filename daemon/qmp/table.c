// SPDX-License-Identifier: LGPL-2.1-or-later
// Finds what a request asks for, checks it, runs it and makes the reply. Control loop.
#include "table.h"

#include <errno.h>

struct QmpTable {
    const QmpFamily *const *families;
    GHashTable *commands, *actions, *events; // by name
};

QmpTable *qmp_table_new(const QmpFamily *const *families)
{
    QmpTable *table = g_new0(QmpTable, 1);
    table->families = families;
    table->commands = g_hash_table_new(g_str_hash, g_str_equal);
    table->actions = g_hash_table_new(g_str_hash, g_str_equal);
    table->events = g_hash_table_new(g_str_hash, g_str_equal);
    for (; *families; families++) {
        const QmpFamily *family = *families;
        if (family->init)
            family->init();
        for (const QmpCommand *command = family->commands; command && command->name; command++)
            g_hash_table_insert(table->commands, (gpointer)command->name, (gpointer)command);
        for (const QmpAction *action = family->actions; action && action->name; action++)
            g_hash_table_insert(table->actions, (gpointer)action->name, (gpointer)action);
        for (const QmpEvent *event = family->events; event && event->name; event++)
            g_hash_table_insert(table->events, (gpointer)event->name, (gpointer)event);
    }
    for (families = table->families; *families; families++)
        if ((*families)->link)
            (*families)->link(table->families);
    return table;
}

void qmp_table_free(QmpTable *table)
{
    if (!table)
        return;
    g_hash_table_unref(table->commands);
    g_hash_table_unref(table->actions);
    g_hash_table_unref(table->events);
    g_free(table);
}

const QmpFamily *const *qmp_table_families(const QmpTable *table)
{
    return table->families;
}

const QmpCommand *qmp_table_find_command(const QmpTable *table, const char *name)
{
    return g_hash_table_lookup(table->commands, name);
}

const QmpEvent *qmp_table_find_event(const QmpTable *table, const char *name)
{
    return g_hash_table_lookup(table->events, name);
}

const QmpAction *qmp_table_find_action(const QmpTable *table, const char *name)
{
    return g_hash_table_lookup(table->actions, name);
}

int qmp_table_run(Fiber *self, QmpCall *call, const QmpCommand *command, json_t *args,
                  QmpInput input, json_t **ret_reply, GError **error)
{
    static const QmpType no_members = {.kind = QMP_OBJECT};
    int r = qmp_type_check(command->args ? command->args : &no_members, args, input, error);
    if (r < 0)
        return r;
    json_t *reply = NULL;
    r = command->fn(self, call, args, &reply, error);
    if (r < 0 && error && !*error)
        qmp_fail(error, "%s", g_strerror(-r)); // what failed below control has no words
    if (r < 0)
        return r;
    *ret_reply = reply ? reply : json_object();
    return 0;
}

int qmp_table_run_by_name(Fiber *self, const QmpCall *call, const char *name, json_t *args,
                          GError **error)
{
    QmpCall own = *call;
    json_t *reply = NULL;
    const QmpCommand *command = qmp_table_find_command(call->table, name);
    int r = qmp_table_run(self, &own, command, args, QMP_INPUT_JSON, &reply, error);
    json_decref(reply);
    json_decref(args);
    return r;
}

// -- requests -------------------------------------------------------------------------------------

static int check_request(const json_t *request, GError **error)
{
    const char *name;
    json_t *value;
    if (!json_is_object(request))
        return qmp_fail(error, "QMP input must be a JSON object");
    json_object_foreach((json_t *)request, name, value)
    {
        if (g_str_equal(name, "execute") && !json_is_string(value))
            return qmp_fail(error, "QMP input member 'execute' must be a string");
        if (g_str_equal(name, "arguments") && !json_is_object(value))
            return qmp_fail(error, "QMP input member 'arguments' must be an object");
        if (!g_str_equal(name, "execute") && !g_str_equal(name, "arguments") &&
            !g_str_equal(name, "id"))
            return qmp_fail(error, "QMP input member '%s' is unexpected", name);
    }
    if (!json_object_get(request, "execute"))
        return qmp_fail(error, "QMP input lacks member 'execute'");
    return 0;
}

static int find_command(const QmpCall *call, const char *name, const QmpCommand **ret_command,
                        GError **error)
{
    bool negotiates = g_str_equal(name, "qmp_capabilities");
    const QmpCommand *command = qmp_table_find_command(call->table, name);
    if (!call->is_negotiated && !negotiates)
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
    else if (call->is_negotiated && negotiates)
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Capabilities negotiation is already complete, command ignored");
    else if (!command)
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "The command %s has not been found", name);
    else
        *ret_command = command;
    return *ret_command ? 0 : -ENOENT;
}

static int check_access(const QmpCall *call, const QmpCommand *command, GError **error)
{
    if (!call->is_read_only || command->is_query)
        return 0;
    qmp_fail(error, "%s is no query, and this socket is for queries only: use the control socket",
             command->name);
    return -EACCES;
}

static int run_request(Fiber *self, QmpCall *call, const json_t *request, json_t **ret_reply,
                       GError **error)
{
    const QmpCommand *command = NULL;
    int r = check_request(request, error);
    if (r == 0)
        r = find_command(call, json_string_value(json_object_get(request, "execute")), &command,
                         error);
    if (r == 0)
        r = check_access(call, command, error);
    if (r < 0)
        return r;
    json_auto_t *args = json_incref(json_object_get(request, "arguments"));
    if (!args)
        args = json_object();
    return qmp_table_run(self, call, command, args, QMP_INPUT_JSON, ret_reply, error);
}

json_t *qmp_table_dispatch(Fiber *self, QmpCall *call, const json_t *request)
{
    g_autoptr(GError) error = NULL;
    json_t *result = NULL, *id = json_object_get(request, "id"), *reply = json_object();
    int r = run_request(self, call, request, &result, &error);
    if (r == 0)
        json_object_set_new(reply, "return", result);
    if (id)
        json_object_set(reply, "id", id);
    if (r < 0)
        json_object_set_new(reply, "error", qmp_error_to_json(error, r));
    return reply;
}
