// SPDX-License-Identifier: LGPL-2.1-or-later
// How chainctl ends, and the errors that say so: the code of a GError of this domain is the exit
// status.
#pragma once

#include <glib.h>
#include <jansson.h>

typedef enum CtlStatus {
    CTL_OK = 0,
    CTL_FAILED = 1,
    CTL_USAGE = 2,
    CTL_PARTIAL = 3, // a part of it is done, or it is not done yet
    CTL_NO_DAEMON = 4,
    CTL_NOT_FOUND = 5,
    CTL_BUSY = 6, // in use, or locked
    CTL_NO_SPACE = 7,
    CTL_DENIED = 8,
    CTL_INTERRUPTED = 130, // by SIGINT
} CtlStatus;

#define CTL_ERROR (ctl_error_quark())
GQuark ctl_error_quark(void);

// Sets `error`; -1.
int ctl_fail(GError **error, CtlStatus status, const char *format, ...) G_GNUC_PRINTF(3, 4);

// What a daemon's {"class": …, "desc": …, "reason": …} means.
CtlStatus ctl_status_of_qmp(const json_t *qmp_error);
