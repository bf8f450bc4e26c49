// SPDX-License-Identifier: LGPL-2.1-or-later
// g_shell_quote() puts even plain names in quotes; a command reads better without. Pure.
#include "base/shell-word.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>

char *shell_word(const char *text)
{
    static const char safe[] = G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._/+,:@%-";
    bool is_safe = *text && *text != '-' && text[strspn(text, safe)] == '\0';
    return is_safe ? g_strdup(text) : g_shell_quote(text);
}
