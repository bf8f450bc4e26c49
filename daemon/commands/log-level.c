// SPDX-License-Identifier: LGPL-2.1-or-later
// Control loop.
#include "log-level.h"

#include "daemon/log.h"
#include "daemon/qmp/args.h"

static const QmpType level_type = {
    .name = "LogLevel",
    .kind = QMP_ENUM,
    .doc = "The least that is said; each includes those before it.",
    .values = log_level_names,
};
static const QmpType info_type = {
    .name = "LogLevelInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"level", &level_type, .doc = "the one there is"}, {0}},
};
static const QmpType set_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"level", &level_type, .doc = "from now on"}, {0}},
};

static int query_log_level(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    *ret_reply = json_pack("{s:s}", "level", log_level_names[log_level()]);
    return 0;
}

static int set_log_level(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    LogLevel level;
    if (log_level_parse(qmp_args_str(args, "level"), &level))
        log_set_level(level);
    return 0;
}

static const QmpCommand commands[] = {
    {"query-log-level", NULL, &info_type, "How much goes to the log.", query_log_level,
     .is_query = true},
    {"set-log-level", &set_args, NULL,
     "Changes how much goes to the log, until the daemon ends; as the option --log.",
     set_log_level},
    {0},
};

const QmpFamily qmp_log_level_family = {.title = "The log", .commands = commands};
