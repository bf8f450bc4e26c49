// SPDX-License-Identifier: LGPL-2.1-or-later
// Sentences and errno values go together (see error.h). The GError's domain is GLib's file error
// one, whose codes say little: callers look at the returned errno, people at the message.

#include "base/error.h"

int error_set(GError **error, int negative_errno, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        g_autofree char *message = g_strdup_vprintf(format, args);
        va_end(args);
        g_set_error_literal(error, G_FILE_ERROR, (gint)g_file_error_from_errno(-negative_errno),
                            message);
    }
    return negative_errno;
}
