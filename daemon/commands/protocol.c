// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands about QMP itself: negotiation, what there is to ask for, and the end of the daemon.
// Control loop.
#include "protocol.h"

#include "daemon/daemon.h"
#include "daemon/qmp/schema.h"
#include "daemon/qmp/table.h"
#include "daemon/qmp/version.h"

static const QmpType capability = {
    .name = "QMPCapability",
    .kind = QMP_ENUM,
    .doc = "Capabilities that a client may ask for. None is offered: commands of one monitor run "
           "in their order.",
    .values = (const char *const[]){"oob", NULL},
};
static const QmpType capabilities = {.kind = QMP_ARRAY, .element = &capability};

static const QmpType qmp_capabilities_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"enable", &capabilities, true, "capabilities to enable"}, {0}},
};

static int qmp_capabilities(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    if (json_array_size(json_object_get(args, "enable")))
        return qmp_fail(error, "Capabilities not available: oob");
    call->is_negotiated = true;
    return 0;
}

static int quit(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply, GError **error)
{
    stop_request(call->daemon->stop, "a client sent quit");
    return 0;
}

static const QmpType version_triple = {
    .name = "VersionTriple",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"major", &qmp_int}, {"minor", &qmp_int}, {"micro", &qmp_int}, {0}},
};
static const QmpType version_info = {
    .name = "VersionInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"qemu", &version_triple,
                                    .doc = "the version of QEMU whose commands are spoken"},
                                   {"package", &qmp_str, .doc = "the version of chaind"},
                                   {0}},
};

static int query_version(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    *ret_reply = qmp_version_make();
    return 0;
}

static const QmpType command_info = {
    .name = "CommandInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "the command's name"}, {0}},
};
static const QmpType command_infos = {.kind = QMP_ARRAY, .element = &command_info};

static int query_commands(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    json_t *infos = json_array();
    for (const QmpFamily *const *family = qmp_table_families(call->table); *family; family++)
        for (const QmpCommand *c = (*family)->commands; c && c->name; c++)
            if (c->is_query || !call->is_read_only)
                json_array_append_new(infos, json_pack("{s:s}", "name", c->name));
    *ret_reply = infos;
    return 0;
}

// The members beyond the meta-type depend on it, which this schema cannot say; clients know them.
static const QmpType schema_infos = {.kind = QMP_ARRAY, .element = &qmp_any};

static int query_qmp_schema(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    *ret_reply = qmp_schema_make(qmp_table_families(call->table));
    return 0;
}

static const QmpCommand commands[] = {
    {"qmp_capabilities", &qmp_capabilities_args, NULL,
     "Ends the negotiation. The first command of every client; before it no other is taken.",
     qmp_capabilities, .is_query = true},
    {"query-version", NULL, &version_info, "Which commands are spoken, and by what.", query_version,
     .is_query = true},
    {"query-commands", NULL, &command_infos, "The names of all commands that this client may run.",
     query_commands, .is_query = true},
    {"query-qmp-schema", NULL, &schema_infos,
     "All commands and events with their types, in the format of QEMU's introspection.",
     query_qmp_schema, .is_query = true},
    {"quit", NULL, NULL,
     "Ends the daemon as SIGTERM does: exports end, disks are flushed and closed.", quit},
    {0},
};

static char *text(void)
{
    return g_strdup(
        "Errors have QEMU's classes. An extension beside `class` and `desc` is `reason`, where a "
        "program could act on it: `not-found`, `busy` (in use, or locked), `no-space` or "
        "`denied`.\n\n"
        "What is called a query changes nothing. Sockets for queries only (`--qmp-read-only`) take "
        "nothing else: other commands are refused with the reason `denied`. `qom-get` is none, "
        "since "
        "it tells secrets.\n");
}

const QmpFamily qmp_protocol_family = {
    .title = "The protocol",
    .text = text,
    .commands = commands,
};
