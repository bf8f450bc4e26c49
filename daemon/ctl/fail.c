// SPDX-License-Identifier: LGPL-2.1-or-later
// Pure.
#include "fail.h"

#include <string.h>

GQuark ctl_error_quark(void)
{
    return g_quark_from_static_string("ctl-error");
}

int ctl_fail(GError **error, CtlStatus status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_propagate_error(error, g_error_new_valist(CTL_ERROR, status, format, args));
    va_end(args);
    return -1;
}

typedef struct Meaning {
    const char *word;
    CtlStatus status;
} Meaning;

static CtlStatus find_meaning(const Meaning *meanings, const char *word)
{
    for (; word && meanings->word; meanings++)
        if (g_str_equal(meanings->word, word))
            return meanings->status;
    return CTL_FAILED;
}

CtlStatus ctl_status_of_qmp(const json_t *qmp_error)
{
    static const Meaning reasons[] = {{"not-found", CTL_NOT_FOUND},
                                      {"busy", CTL_BUSY},
                                      {"no-space", CTL_NO_SPACE},
                                      {"denied", CTL_DENIED},
                                      {0}};
    static const Meaning classes[] = {
        {"DeviceNotFound", CTL_NOT_FOUND}, {"DeviceNotActive", CTL_NOT_FOUND}, {0}};
    CtlStatus status =
        find_meaning(reasons, json_string_value(json_object_get(qmp_error, "reason")));
    return status != CTL_FAILED
               ? status
               : find_meaning(classes, json_string_value(json_object_get(qmp_error, "class")));
}
