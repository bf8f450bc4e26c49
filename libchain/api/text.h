// SPDX-License-Identifier: LGPL-2.1-or-later
// Sentences on their way out of the library: plain malloc() strings instead of GErrors. Any thread.
#pragma once

#include <glib.h>
#include <stdlib.h>
#include <string.h>

// Frees `error` (may be NULL); its message goes to `ret_text`, if that is not NULL.
static inline void text_take_error(GError *error, char **ret_text)
{
    if (ret_text)
        *ret_text = strdup(error ? error->message : "out of memory");
    g_clear_error(&error);
}
