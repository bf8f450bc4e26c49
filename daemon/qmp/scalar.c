// SPDX-License-Identifier: LGPL-2.1-or-later
// Scalars as text. Pure.
#include "scalar.h"

#include <errno.h>
#include <glib.h>
#include <math.h>
#include <string.h>

bool qmp_scalar_parse_int(const char *text, int64_t *ret_value)
{
    char *end = NULL;
    errno = 0;
    int64_t value = g_ascii_strtoll(text, &end, 0);
    if (errno || end == text || *end)
        return false;
    *ret_value = value;
    return true;
}

// The power of two that a unit stands for; -1: it is none.
static int unit_shift(char unit)
{
    static const char units[] = "BKMGTPE";
    const char *at = strchr(units, g_ascii_toupper(unit));
    return at ? 10 * (int)(at - units) : -1;
}

bool qmp_scalar_parse_size(const char *text, int64_t *ret_bytes)
{
    char *end = NULL;
    int64_t bytes;
    if (qmp_scalar_parse_int(text, &bytes)) {
        *ret_bytes = bytes;
        return bytes >= 0;
    }
    if (!g_ascii_isdigit(*text))
        return false;
    errno = 0;
    double value = g_ascii_strtod(text, &end);
    int shift = *end && !end[1] ? unit_shift(*end) : -1;
    if (errno || shift < 0)
        return false;
    value = ldexp(value, shift);
    if (value >= 0x1p63 || value != (double)(int64_t)value)
        return false;
    *ret_bytes = (int64_t)value;
    return true;
}

bool qmp_scalar_parse_number(const char *text, double *ret_value)
{
    char *end = NULL;
    errno = 0;
    double value = g_ascii_strtod(text, &end);
    if (errno || end == text || *end || !isfinite(value))
        return false;
    *ret_value = value;
    return true;
}

bool qmp_scalar_parse_bool(const char *text, bool *ret_value)
{
    static const char *const on[] = {"on", "yes", "true", "y", NULL};
    static const char *const off[] = {"off", "no", "false", "n", NULL};
    bool is_on = g_strv_contains(on, text);
    if (!is_on && !g_strv_contains(off, text))
        return false;
    *ret_value = is_on;
    return true;
}
