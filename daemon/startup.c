// SPDX-License-Identifier: LGPL-2.1-or-later
// Options are commands: --blockdev is blockdev-add, and so on. Where qemu-storage-daemon has
// another form on its command line, that is brought into the command's here. Monitors are made
// elsewhere (monitors.h), after all others. Control loop.
#include "startup.h"

#include <errno.h>
#include <string.h>

#include "daemon/qmp/table.h"

// The address is flat on the command line: {type, path} for {type, data: {path}}.
static void nest_address(json_t *args)
{
    json_t *address = json_object_get(args, "addr");
    if (!json_is_object(address))
        return;
    json_t *data = json_copy(address), *nested = json_object();
    json_t *type = json_object_get(address, "type");
    if (type)
        json_object_set(nested, "type", type);
    json_object_del(data, "type");
    json_object_set_new(nested, "data", data);
    json_object_set_new(args, "addr", nested);
}

// The member's path as the user wrote it.
static char *flatten_path(const char *sentence)
{
    g_auto(GStrv) parts = g_strsplit(sentence, "'addr.data.", -1);
    return g_strjoinv("'addr.", parts);
}

static const char *command_name(StartupKind kind)
{
    switch (kind) {
    case STARTUP_BLOCKDEV:
        return "blockdev-add";
    case STARTUP_EXPORT:
        return "block-export-add";
    case STARTUP_NBD_SERVER:
        return "nbd-server-start";
    case STARTUP_OBJECT:
        return "object-add";
    case STARTUP_CHARDEV:
    case STARTUP_MONITOR:
        break;
    }
    return NULL;
}

int startup_run(Fiber *self, QmpCall *call, const Options *options, GError **error)
{
    for (guint i = 0; i < options->startups->len; i++) {
        const StartupOption *option = options->startups->pdata[i];
        const char *name = command_name(option->kind);
        if (!name)
            continue;
        g_autoptr(GError) fault = NULL;
        json_auto_t *reply = NULL, *args = json_deep_copy(option->args);
        if (option->kind == STARTUP_NBD_SERVER)
            nest_address(args);
        const QmpCommand *command = qmp_table_find_command(call->table, name);
        int r = command ? qmp_table_run(self, call, command, args, option->input, &reply, &fault)
                        : qmp_fail(&fault, "The command %s has not been found", name);
        if (r < 0) {
            g_autofree char *sentence = flatten_path(fault->message);
            g_set_error(error, fault->domain, fault->code, "%s: %s", option->text, sentence);
            return r;
        }
    }
    return 0;
}
