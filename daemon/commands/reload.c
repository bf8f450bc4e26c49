// SPDX-License-Identifier: LGPL-2.1-or-later
// Control loop.
#include "reload.h"

#include "daemon/daemon.h"
#include "daemon/reload.h"

static const QmpType sentences = {.kind = QMP_ARRAY, .element = &qmp_str};
static const QmpType reload_info = {
    .name = "ConfigReloadInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"done", &sentences, .doc = "what has changed, in sentences"},
                            {"waiting", &sentences,
                             .doc = "which settings take effect when the daemon starts again, in "
                                    "sentences that begin with file and line"},
                            {"failed", &sentences,
                             .doc = "what could not be done, though all was tried before: an "
                                    "address that was taken meanwhile"},
                            {0}},
};

static json_t *to_json(const GPtrArray *lines)
{
    json_t *array = json_array();
    for (guint i = 0; i < lines->len; i++)
        json_array_append_new(array, json_string(lines->pdata[i]));
    return array;
}

static int reload_config(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    g_auto(ReloadReport) report = reload_report_new();
    g_autoptr(GError) fault = NULL;
    if (reload_run(self, call->daemon->reload, &report, &fault) < 0)
        return qmp_fail(error, "%s", fault->message);
    *ret_reply = json_pack("{s:o, s:o, s:o}", "done", to_json(report.done), "waiting",
                           to_json(report.waiting), "failed", to_json(report.failed));
    return 0;
}

static const QmpCommand commands[] = {
    {"reload-config", NULL, &reload_info,
     "Reads the configuration again, as SIGHUP does: what changed takes effect, and no client is "
     "dropped. With a mistake in its files nothing changes: the error names file and line, and the "
     "log has every mistake.",
     reload_config},
    {0},
};

const QmpFamily qmp_reload_family = {.title = "The configuration", .commands = commands};
