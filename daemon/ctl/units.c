// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units.h"

#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const size_names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};

bool units_parse_seconds(const char *text, double *ret_seconds)
{
    char *end;
    if (!g_ascii_isdigit(*text))
        return false;
    double seconds = g_ascii_strtod(text, &end);
    if (*end || !isfinite(seconds) || seconds > 1e9)
        return false;
    *ret_seconds = seconds;
    return true;
}

static bool find_unit(const char *text, unsigned *ret_shift)
{
    const char *units = "KMGTPE", *unit = *text ? strchr(units, g_ascii_toupper(*text)) : NULL;
    *ret_shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (unit)
        text++;
    if (unit && (text[0] == 'i' || text[0] == 'I') && (text[1] == 'B' || text[1] == 'b'))
        text += 2;
    return !*text;
}

bool units_parse_size(const char *text, uint64_t *ret_bytes)
{
    char *end;
    unsigned shift;
    if (!g_ascii_isdigit(*text) || (text[0] == '0' && g_ascii_tolower(text[1]) == 'x'))
        return false;
    errno = 0;
    uint64_t whole = g_ascii_strtoull(text, &end, 10);
    if (errno)
        return false;
    double fraction = *end == '.' ? g_ascii_strtod(end, &end) : 0;
    if (!find_unit(end, &shift) || whole > (uint64_t)INT64_MAX >> shift || (fraction > 0 && !shift))
        return false;
    *ret_bytes = (whole << shift) + (uint64_t)(fraction * (double)(UINT64_C(1) << shift));
    return true;
}

bool units_parse_count(const char *text, uint64_t *ret_n)
{
    static const char units[] = "KMG";
    char *end;
    if (!g_ascii_isdigit(*text) || (text[0] == '0' && g_ascii_tolower(text[1]) == 'x'))
        return false;
    double n = g_ascii_strtod(text, &end), times = 1;
    const char *unit = *end ? strchr(units, g_ascii_toupper(*end)) : NULL;
    for (const char *u = units; unit && u <= unit; u++)
        times *= 1000;
    n *= times;
    if (end[unit != NULL] || !(n <= 1e15) || (double)(uint64_t)n < n)
        return false;
    *ret_n = (uint64_t)n;
    return true;
}

static unsigned size_unit(uint64_t bytes)
{
    unsigned unit = 0;
    for (; bytes >> (10 * unit) >= 1000 && unit + 1 < G_N_ELEMENTS(size_names);)
        unit++;
    return unit;
}

static char *in_unit(uint64_t bytes, unsigned unit)
{
    double n = (double)bytes / (double)(UINT64_C(1) << (10 * unit));
    uint64_t mask = (UINT64_C(1) << (10 * unit)) - 1;
    return n < 99.95 && (bytes & mask) ? g_strdup_printf("%.1f", n) : g_strdup_printf("%.0f", n);
}

char *units_size(uint64_t bytes)
{
    unsigned unit = size_unit(bytes);
    g_autofree char *number = in_unit(bytes, unit);
    return g_strdup_printf("%s %s", number, size_names[unit]);
}

char *units_size_of(uint64_t done, uint64_t total)
{
    unsigned unit = size_unit(total);
    g_autofree char *a = in_unit(done, unit), *b = in_unit(total, unit);
    return g_strdup_printf("%s/%s %s", a, b, size_names[unit]);
}

char *units_rate(uint64_t bytes_per_second)
{
    g_autofree char *size = units_size(bytes_per_second);
    return g_strdup_printf("%s/s", size);
}

char *units_clock(uint64_t seconds)
{
    uint64_t minutes = seconds / 60, hours = minutes / 60;
    return hours ? g_strdup_printf("%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, hours, minutes % 60,
                                   seconds % 60)
                 : g_strdup_printf("%" PRIu64 ":%02" PRIu64, minutes, seconds % 60);
}

char *units_latency(double us)
{
    if (us < 1000)
        return g_strdup_printf("%.0f us", us);
    if (us < 1000000)
        return g_strdup_printf(us < 100000 ? "%.1f ms" : "%.0f ms", us / 1000);
    return g_strdup_printf("%.1f s", us / 1000000);
}

char *units_count(double n)
{
    static const char *const names[] = {"", "k", "M", "G"};
    unsigned unit = 0;
    for (; n >= 10000 && unit + 1 < G_N_ELEMENTS(names); n /= 1000)
        unit++;
    return g_strdup_printf(unit && n < 100 ? "%.1f%s" : "%.0f%s", n, names[unit]);
}
