// SPDX-License-Identifier: LGPL-2.1-or-later
// Pure, but for the working directory.
#include "paths.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>

// A scheme of letters, before any slash.
static bool has_scheme(const char *name)
{
    size_t len = strspn(name, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "+-.");
    return len > 1 && name[len] == ':';
}

char *paths_absolute(const char *name)
{
    return has_scheme(name) ? g_strdup(name) : g_canonicalize_filename(name, NULL);
}

json_t *paths_json(const char *name)
{
    g_autofree char *path = paths_absolute(name);
    return json_string_nocheck(path);
}
