// SPDX-License-Identifier: LGPL-2.1-or-later
// From GError to the error classes of QMP. Pure.
#include "error.h"

#include <errno.h>

GQuark qmp_error_quark(void)
{
    return g_quark_from_static_string("qmp-error");
}

// NULL: nothing that a program could act on. Other classes say it themselves.
static const char *reason_of(int result)
{
    switch (-result) {
    case ENOENT:
    case ENODEV:
        return "not-found";
    case EAGAIN:
    case EBUSY:
        return "busy";
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return "no-space";
    case EACCES:
    case EROFS:
        return "denied";
    default:
        return NULL;
    }
}

json_t *qmp_error_to_json(const GError *error, int result)
{
    static const char *const names[] = {
        [QMP_ERROR_GENERIC] = "GenericError",
        [QMP_ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [QMP_ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [QMP_ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
    };
    int class = error->domain == QMP_ERROR ? error->code : QMP_ERROR_GENERIC;
    g_autofree char *text = g_utf8_make_valid(error->message, -1); // names of files may be anything
    return json_pack("{s:s, s:s, s:s*}", "class", names[class], "desc", text, "reason",
                     class == QMP_ERROR_GENERIC ? reason_of(result) : NULL);
}

int qmp_fail(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_propagate_error(error, g_error_new_valist(QMP_ERROR, QMP_ERROR_GENERIC, format, args));
    va_end(args);
    return -EINVAL;
}
