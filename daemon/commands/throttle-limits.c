// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits between JSON and values. A name is that of a rate, with what of it is meant behind it.
#include "throttle-limits.h"

#include "daemon/qmp/error.h"

#define RATE_MEMBERS(prefix, rate, what)                                                           \
    {prefix rate, &qmp_int, true, "limit of " what " a second; 0: none"},                          \
        {prefix rate "-max", &qmp_int, true, "the same in bursts"},                                \
    {                                                                                              \
        prefix rate "-max-length", &qmp_int, true, "how many seconds a burst may last; 1"          \
    }
#define LIMIT_MEMBERS(prefix)                                                                      \
    RATE_MEMBERS(prefix, "bps-total", "bytes"), RATE_MEMBERS(prefix, "bps-read", "bytes read"),    \
        RATE_MEMBERS(prefix, "bps-write", "bytes written"),                                        \
        RATE_MEMBERS(prefix, "iops-total", "requests"),                                            \
        RATE_MEMBERS(prefix, "iops-read", "reads"), RATE_MEMBERS(prefix, "iops-write", "writes"),  \
    {                                                                                              \
        prefix "iops-size", &qmp_int, true,                                                        \
            "a longer request counts as several of so many bytes; 0: as one"                       \
    }

const QmpType throttle_limits_type = {
    .name = "ThrottleLimits",
    .kind = QMP_OBJECT,
    .doc = "How many bytes and requests a second may go on.",
    .members = (const QmpMember[]){LIMIT_MEMBERS(""), {0}},
};

const QmpMember throttle_group_members[] = {
    {"limits", &throttle_limits_type, true, "its limits"}, LIMIT_MEMBERS("x-"), {0}};

static const char *const rate_names[THROTTLE_N_KINDS] = {
    [THROTTLE_BPS_TOTAL] = "bps-total", [THROTTLE_BPS_READ] = "bps-read",
    [THROTTLE_BPS_WRITE] = "bps-write", [THROTTLE_IOPS_TOTAL] = "iops-total",
    [THROTTLE_IOPS_READ] = "iops-read", [THROTTLE_IOPS_WRITE] = "iops-write",
};

// Negative numbers become too large ones, which the check refuses.
static void take(const json_t *json, const char *prefix, const char *name, const char *suffix,
                 uint64_t *value)
{
    g_autofree char *key = g_strconcat(prefix, name, suffix, NULL);
    const json_t *given = json_object_get(json, key);
    if (given)
        *value = (uint64_t)json_integer_value(given);
}

static int check_length(const ThrottleRate *rate, const char *name, GError **error)
{
    if (rate->burst_s <= UINT32_MAX)
        return 0;
    return qmp_fail(error, "%s-max-length value must be in the range [0, %u]", name, UINT32_MAX);
}

static int take_all(const json_t *json, const char *prefix, ThrottleLimits *limits, GError **error)
{
    ThrottleLimits changed = *limits;
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++) {
        ThrottleRate *rate = &changed.rates[i];
        take(json, prefix, rate_names[i], "", &rate->average);
        take(json, prefix, rate_names[i], "-max", &rate->burst);
        take(json, prefix, rate_names[i], "-max-length", &rate->burst_s);
        int r = check_length(rate, rate_names[i], error);
        if (r < 0)
            return r;
    }
    take(json, prefix, "iops-size", "", &changed.request_bytes);
    int r = throttle_limits_check(&changed, error);
    if (r == 0)
        *limits = changed;
    return r;
}

int throttle_limits_from_json(const json_t *json, ThrottleLimits *limits, GError **error)
{
    return take_all(json, "", limits, error);
}

int throttle_limits_from_members(const json_t *json, ThrottleLimits *limits, GError **error)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name,
                        value) if (g_str_has_prefix(name, "x-") &&
                                   json_integer_value(value) <
                                       0) return qmp_fail(error,
                                                          "Property values cannot be negative");
    return take_all(json, "x-", limits, error);
}

static void put(json_t *json, const char *name, const char *suffix, uint64_t value)
{
    g_autofree char *key = g_strconcat(name, suffix, NULL);
    json_object_set_new(json, key, json_integer((json_int_t)value));
}

json_t *throttle_limits_to_json(const ThrottleLimits *limits)
{
    json_t *json = json_object();
    for (unsigned i = 0; i < THROTTLE_N_KINDS; i++) {
        put(json, rate_names[i], "", limits->rates[i].average);
        put(json, rate_names[i], "-max", limits->rates[i].burst);
        put(json, rate_names[i], "-max-length", limits->rates[i].burst_s);
    }
    put(json, "iops-size", "", limits->request_bytes);
    return json;
}

// -- of an export ---------------------------------------------------------------------------------

const QmpType export_throttle_type = {
    .name = "ExportThrottle",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"group", &qmp_str, .doc = "whose members share the limits"},
                                   {"limits", &throttle_limits_type, .doc = "of the group"},
                                   {0}},
};

json_t *export_throttle_to_json(const ExportThrottle *throttle)
{
    return json_pack("{s:s, s:o}", "group", throttle->group, "limits",
                     throttle_limits_to_json(&throttle->limits));
}

const char *export_throttle_group(const json_t *json)
{
    return json_string_value(json_object_get(json, "group"));
}

bool export_throttle_from_json(const json_t *json, ExportThrottle *ret_throttle)
{
    const char *group = export_throttle_group(json);
    ExportThrottle throttle = {.group = group};
    throttle_limits_init(&throttle.limits);
    if (!group ||
        throttle_limits_from_json(json_object_get(json, "limits"), &throttle.limits, NULL) < 0)
        return false;
    *ret_throttle = throttle;
    return true;
}
