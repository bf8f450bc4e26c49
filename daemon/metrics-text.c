// SPDX-License-Identifier: LGPL-2.1-or-later
#include "metrics-text.h"

#include <stdbool.h>
#include <stdint.h>

static void append_escaped(GString *text, const char *value, bool is_label)
{
    for (; *value; value++) {
        if (*value == '\\' || (is_label && *value == '"'))
            g_string_append_c(text, '\\');
        if (*value == '\n')
            g_string_append(text, "\\n");
        else
            g_string_append_c(text, *value);
    }
}

void metrics_text_family(GString *text, const char *name, const char *type, const char *help)
{
    g_string_append_printf(text, "# HELP %s ", name);
    append_escaped(text, help, false);
    g_string_append_printf(text, "\n# TYPE %s %s\n", name, type);
}

// Whole numbers without an exponent, whatever the locale.
static void append_number(GString *text, double value)
{
    char number[G_ASCII_DTOSTR_BUF_SIZE];
    bool is_whole = value > -1e15 && value < 1e15 && value == (double)(int64_t)value;
    g_ascii_formatd(number, sizeof number, is_whole ? "%.0f" : "%.12g", value);
    g_string_append(text, number);
}

void metrics_text_sample(GString *text, const char *name, double value, ...)
{
    va_list labels;
    const char *label, *separator = "{";
    g_string_append(text, name);
    va_start(labels, value);
    while ((label = va_arg(labels, const char *))) {
        const char *is = va_arg(labels, const char *);
        if (!is)
            continue;
        g_string_append_printf(text, "%s%s=\"", separator, label);
        append_escaped(text, is, true);
        g_string_append_c(text, '"');
        separator = ",";
    }
    va_end(labels);
    g_string_append(text, *separator == ',' ? "} " : " ");
    append_number(text, value);
    g_string_append_c(text, '\n');
}
