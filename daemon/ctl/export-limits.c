// SPDX-License-Identifier: LGPL-2.1-or-later
#include "export-limits.h"

#include "units.h"

const LimitKind limit_kinds[LIMIT_N_KINDS] = {
    {"bps", "bps-total", "bps", 1, 2},           {"read-bps", "bps-read", "bps_rd", 0, 1},
    {"write-bps", "bps-write", "bps_wr", 0, 1},  {"iops", "iops-total", "iops", 4, 2},
    {"read-iops", "iops-read", "iops_rd", 3, 1}, {"write-iops", "iops-write", "iops_wr", 3, 1},
};
static const char *const words[LIMIT_N_KINDS] = {"", "read ", "write ", "", "read ", "write "};

static json_int_t limit_of(const json_t *throttle, const char *name, const char *suffix)
{
    g_autofree char *key = g_strconcat(name, suffix, NULL);
    return json_integer_value(json_object_get(json_object_get(throttle, "limits"), key));
}

static void append(GString *text, const char *separator, const char *word, const char *number,
                   const char *unit)
{
    g_string_append_printf(text, "%s%s%s%s", text->len ? separator : "", word, number, unit);
}

static char *text_of(const json_t *throttle, bool is_short)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < LIMIT_N_KINDS; i++) {
        json_int_t limit = limit_of(throttle, limit_kinds[i].told, "");
        bool is_bytes = i < LIMIT_N_KINDS / 2;
        g_autofree char *number =
            is_bytes ? units_rate((uint64_t)limit) : units_count((double)limit);
        if (limit)
            append(text, is_short ? " " : ", ", is_short ? "" : words[i], number,
                   is_bytes   ? ""
                   : is_short ? "/s"
                              : " requests/s");
    }
    return g_string_free(text, FALSE);
}

char *limits_text(const json_t *throttle)
{
    return throttle ? text_of(throttle, false) : g_strdup("none");
}

char *limits_short_text(const json_t *throttle)
{
    return throttle ? text_of(throttle, true) : NULL;
}

json_t *limits_arguments(const char *id, const json_t *throttle)
{
    json_t *args = json_pack("{s:s, s:O*}", "id", id, "group", json_object_get(throttle, "group"));
    for (unsigned i = 0; i < LIMIT_N_KINDS; i++) {
        const LimitKind *kind = &limit_kinds[i];
        json_int_t burst = limit_of(throttle, kind->told, "-max");
        json_object_set_new(args, kind->taken, json_integer(limit_of(throttle, kind->told, "")));
        if (!burst)
            continue;
        g_autofree char *max = g_strconcat(kind->taken, "_max", NULL);
        g_autofree char *length = g_strconcat(kind->taken, "_max_length", NULL);
        json_object_set_new(args, max, json_integer(burst));
        json_object_set_new(args, length,
                            json_integer(limit_of(throttle, kind->told, "-max-length")));
    }
    if (limit_of(throttle, "iops-size", ""))
        json_object_set_new(args, "iops_size", json_integer(limit_of(throttle, "iops-size", "")));
    return args;
}
