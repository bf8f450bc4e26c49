// SPDX-License-Identifier: LGPL-2.1-or-later
// Sentences and errno values go together (see error.h). The GError's domain is GLib's file error
// one, whose codes say little: callers look at the returned errno, people at the message.

#include "base/error.h"

#include <stdbool.h>

// Names from images and other outsiders end up in messages: whatever they contain, the message
// stays one line of valid UTF-8. Takes `message`.
static char *make_printable(char *message)
{
    bool is_clean = g_utf8_validate(message, -1, NULL);
    for (const char *p = message; is_clean && *p; p++)
        is_clean = !g_ascii_iscntrl(*p);
    if (is_clean)
        return message;
    g_autofree char *valid = g_utf8_make_valid(message, -1);
    g_free(message);
    GString *s = g_string_new(NULL);
    for (const char *p = valid; *p; p++) {
        if (g_ascii_iscntrl(*p))
            g_string_append_printf(s, "\\%03o", *p);
        else
            g_string_append_c(s, *p);
    }
    return g_string_free(s, FALSE);
}

int error_set(GError **error, int negative_errno, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        g_autofree char *message = make_printable(g_strdup_vprintf(format, args));
        va_end(args);
        g_set_error_literal(error, G_FILE_ERROR, (gint)g_file_error_from_errno(-negative_errno),
                            message);
    }
    return negative_errno;
}
