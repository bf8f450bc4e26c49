// SPDX-License-Identifier: LGPL-2.1-or-later
#include "latency.h"

static bool waits_for_data(const char *operation)
{
    return g_strcmp0(operation, "read") == 0 || g_strcmp0(operation, "write") == 0;
}

void latency_add(Latency *latency, const json_t *export, const char *operation)
{
    size_t i, l;
    const json_t *stats, *count;
    json_array_foreach(json_object_get(export, "operations"), i, stats)
    {
        const char *name = json_string_value(json_object_get(stats, "operation"));
        if (operation ? g_strcmp0(name, operation) != 0 : !waits_for_data(name))
            continue;
        json_array_foreach(json_object_get(stats, "latencies"), l, count)
        {
            latency->n[MIN(l, LATENCY_CLASSES - 1)] += (uint64_t)json_integer_value(count);
        }
    }
}

uint64_t latency_count(const Latency *latency)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < LATENCY_CLASSES; i++)
        n += latency->n[i];
    return n;
}

// An export that was added anew counts from 0.
Latency latency_since(const Latency *now, const Latency *before)
{
    Latency since = *now;
    for (unsigned i = 0; i < LATENCY_CLASSES; i++)
        if (now->n[i] >= before->n[i])
            since.n[i] -= before->n[i];
    return since;
}

double latency_percentile(const Latency *latency, double fraction)
{
    double wanted = fraction * (double)latency_count(latency), seen = 0;
    if (wanted <= 0)
        return -1;
    unsigned i = 0;
    while (i + 1 < LATENCY_CLASSES && seen + (double)latency->n[i] < wanted)
        seen += (double)latency->n[i++];
    double low = i ? (double)(UINT64_C(1) << (i - 1)) : 0, high = (double)(UINT64_C(1) << i);
    double within = latency->n[i] ? (wanted - seen) / (double)latency->n[i] : 1;
    return low + (high - low) * MIN(within, 1);
}

int latency_load(Ctl *ctl, const char *disk, Latency *ret_latency, GError **error)
{
    json_auto_t *exports = ctl_run(ctl, "query-export-stats", NULL, error);
    Latency latency = {0};
    size_t i;
    const json_t *export;
    if (!exports)
        return -1;
    json_array_foreach(exports, i, export)
    {
        const char *name = json_string_value(json_object_get(export, "name"));
        const char *id = json_string_value(json_object_get(export, "id"));
        if (g_strcmp0(name, disk) == 0 || g_strcmp0(id, disk) == 0)
            latency_add(&latency, export, NULL);
    }
    *ret_latency = latency;
    return 0;
}
