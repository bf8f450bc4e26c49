// SPDX-License-Identifier: LGPL-2.1-or-later
// The errors that a client tells apart by their class. A GError of any other domain is a
// GenericError, too. Pure.
#pragma once

#include <glib.h>
#include <jansson.h>

typedef enum QmpErrorClass {
    QMP_ERROR_GENERIC,
    QMP_ERROR_COMMAND_NOT_FOUND,
    QMP_ERROR_DEVICE_NOT_ACTIVE,
    QMP_ERROR_DEVICE_NOT_FOUND,
} QmpErrorClass;

#define QMP_ERROR (qmp_error_quark())
GQuark qmp_error_quark(void);

// As it stands on the wire: {"class": "GenericError", "desc": …}. `result` is the negative errno
// that came with it; where it says more than "this cannot be", "reason" is there, an extension:
// "not-found", "busy", "no-space" or "denied". A new reference.
json_t *qmp_error_to_json(const GError *error, int result);

// A GenericError with this sentence; -EINVAL.
int qmp_fail(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
