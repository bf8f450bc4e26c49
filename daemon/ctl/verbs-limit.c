// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits that are not given stay as they are: what there is is asked, changed, and set as a whole.
#include "verbs-limit.h"

#include <string.h>

#include "ctl.h"
#include "export-limits.h"
#include "field.h"
#include "units.h"

static bool is_text(const json_t *object, const char *key, const char *text)
{
    return g_strcmp0(json_string_value(json_object_get(object, key)), text) == 0;
}

// -- which exports --------------------------------------------------------------------------------

// The exports of the disk of that name: ids. A new reference; empty: there is no such disk.
static json_t *exports_of_disk(const json_t *disks, const char *name)
{
    json_t *ids = json_array();
    size_t i, j;
    const json_t *disk, *export;
    json_array_foreach(disks, i, disk)
    {
        if (!is_text(disk, "name", name))
            continue;
        json_array_foreach(field(disk, "exports"), j, export)
            json_array_append(ids, field(export, "id"));
    }
    return ids;
}

static const json_t *find_export(const json_t *exports, const char *name)
{
    size_t i;
    const json_t *export;
    json_array_foreach(exports, i, export)
    {
        if (is_text(export, "id", name))
            return export;
    }
    json_array_foreach(exports, i, export)
    {
        if (is_text(export, "name", name))
            return export;
    }
    return NULL;
}

// What NAME means: ids, a new reference. NULL: `error`.
static json_t *resolve(const json_t *disks, const json_t *exports, const char *name, GError **error)
{
    json_t *ids = exports_of_disk(disks, name);
    const json_t *export = json_array_size(ids) ? NULL : find_export(exports, name);
    if (export)
        json_array_append(ids, field(export, "id"));
    if (json_array_size(ids))
        return ids;
    json_decref(ids);
    ctl_fail(error, CTL_NOT_FOUND,
             "there is no export '%s', and no disk with exports: 'chainctl limit' lists those that "
             "there are",
             name);
    return NULL;
}

// -- which limits ---------------------------------------------------------------------------------

static const json_t *throttle_of_group(const json_t *exports, const char *group)
{
    size_t i;
    const json_t *export;
    json_array_foreach(exports, i, export)
    {
        if (is_text(field(export, "throttle"), "group", group))
            return field(export, "throttle");
    }
    return NULL;
}

static void clear_rate(json_t *limits, const char *name)
{
    g_autofree char *max = g_strconcat(name, "-max", NULL);
    json_object_set_new(limits, name, json_integer(0));
    json_object_del(limits, max);
}

// Sets those that the options say; a total takes the place of both directions, and they of it.
static void change_limits(const Ctl *ctl, json_t *limits)
{
    for (unsigned i = 0; i < LIMIT_N_KINDS; i++) {
        const LimitKind *kind = &limit_kinds[i];
        if (!arguments_have(ctl->arguments, kind->option))
            continue;
        uint64_t value = i < LIMIT_N_KINDS / 2 ? arguments_size(ctl->arguments, kind->option, 0)
                                               : arguments_count(ctl->arguments, kind->option, 0);
        clear_rate(limits, kind->told);
        json_object_set_new(limits, kind->told, json_integer((json_int_t)value));
        for (unsigned other = kind->first; value && other < kind->first + kind->count; other++)
            clear_rate(limits, limit_kinds[other].told);
    }
}

static bool changes_limits(const Ctl *ctl)
{
    for (unsigned i = 0; i < LIMIT_N_KINDS; i++)
        if (arguments_have(ctl->arguments, limit_kinds[i].option))
            return true;
    return false;
}

// What is to hold for `id`; `group` is the one that was asked for, or NULL. A new reference, or
// NULL: `error`.
static json_t *throttle_for(const Ctl *ctl, const json_t *exports, const char *id,
                            const char *group, GError **error)
{
    const json_t *export = find_export(exports, id),
                 *now = export ? field(export, "throttle") : NULL;
    const json_t *of_group = group ? throttle_of_group(exports, group) : now;
    if (!changes_limits(ctl) && !of_group) {
        ctl_fail(error, CTL_USAGE,
                 "there is no group '%s' yet: say what its limits are to be, such as --bps 100M",
                 group);
        return NULL;
    }
    json_auto_t *limits = json_deep_copy(field(of_group, "limits"));
    json_t *name = group ? json_string(group) : json_incref(field(now, "group"));
    if (!limits)
        limits = json_object();
    change_limits(ctl, limits);
    return json_pack("{s:o*, s:O}", "group", name, "limits", limits);
}

// -- limit ----------------------------------------------------------------------------------------

static int limit_all(Ctl *ctl, const json_t *exports, const json_t *ids, const char *group,
                     GError **error)
{
    bool is_none = arguments_flag(ctl->arguments, "none");
    size_t i;
    const json_t *id;
    json_array_foreach(ids, i, id)
    {
        const char *text = json_string_value(id);
        json_auto_t *throttle = is_none ? NULL : throttle_for(ctl, exports, text, group, error);
        if (!is_none && !throttle)
            return -1;
        if (ctl_do(ctl, "block_set_io_throttle", limits_arguments(text, throttle), error) < 0)
            return -1;
    }
    return 0;
}

static int limit_one(Ctl *ctl, const json_t *disks, const char *name, GError **error)
{
    const char *group = arguments_text(ctl->arguments, "group");
    json_auto_t *exports = ctl_run(ctl, "query-export-stats", NULL, error);
    json_auto_t *ids = exports ? resolve(disks, exports, name, error) : NULL;
    if (!ids)
        return -1;
    // Of a disk with several exports all together are limited.
    return limit_all(ctl, exports, ids, group || json_array_size(ids) == 1 ? group : name, error);
}

static json_t *rows_of(const json_t *exports, char **only)
{
    json_t *rows = json_array();
    size_t i;
    const json_t *export;
    json_array_foreach(exports, i, export)
    {
        const char *id = json_string_value(field(export, "id"));
        const json_t *throttle = field(export, "throttle");
        g_autofree char *text = limits_text(throttle);
        if (!*only || g_strv_contains((const char *const *)only, id))
            json_array_append_new(rows, json_pack("{s:s, s:s, s:O?, s:O?}", "id", id, "text", text,
                                                  "group", field(throttle, "group"), "limits",
                                                  field(throttle, "limits")));
    }
    return rows;
}

static int show(Ctl *ctl, GError **error)
{
    static const Column columns[] = {
        {"id", "EXPORT", CELL_NAME},
        {"text", "LIMITS", CELL_TEXT},
        {"group", "GROUP", CELL_TEXT},
        {0},
    };
    json_auto_t *exports = ctl_run(ctl, "query-export-stats", NULL, error);
    if (!exports)
        return -1;
    json_auto_t *rows = rows_of(exports, arguments_words(ctl->arguments));
    output_rows(&ctl->output, rows, columns, "no exports");
    return CTL_OK;
}

static int run_limit(Ctl *ctl, GError **error)
{
    char **names = arguments_words(ctl->arguments);
    bool is_none = arguments_flag(ctl->arguments, "none");
    bool has_group = arguments_have(ctl->arguments, "group"), has_limits = changes_limits(ctl);
    if (is_none && (has_limits || has_group))
        return ctl_fail(error, CTL_USAGE, "--none takes all limits away: give nothing beside it");
    if (!is_none && !has_limits && !has_group)
        return show(ctl, error);
    if (!*names)
        return ctl_fail(error, CTL_USAGE, "EXPORT is missing: whose limits?");
    json_auto_t *disks = ctl_run(ctl, "query-disks", NULL, error);
    int r = disks ? 0 : -1;
    for (; r == 0 && *names; names++)
        r = limit_one(ctl, disks, *names, error);
    return r;
}

// -- the family -----------------------------------------------------------------------------------

static const VerbOption options[] = {
    {"bps", 0, WORD_SIZE, "SIZE", "bytes a second, read and written"},
    {"read-bps", 0, WORD_SIZE, "SIZE", "bytes a second, read"},
    {"write-bps", 0, WORD_SIZE, "SIZE", "bytes a second, written"},
    {"iops", 0, WORD_COUNT, "N", "requests a second"},
    {"read-iops", 0, WORD_COUNT, "N", "reads a second"},
    {"write-iops", 0, WORD_COUNT, "N", "writes a second, zeroes and discards too"},
    {"group", 0, WORD_TEXT, "NAME", "share the limits with all others of this group"},
    {"none", 0, WORD_NONE, NULL, "take all limits away"},
    {0},
};
static const VerbWord words[] = {
    {"EXPORT", WORD_DISK_OR_POINT, .is_optional = true, .is_repeated = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "limit",
        .summary = "Show or change how much clients of exports may do",
        .text = "From now on, also for clients that are connected. 0 is no limit; limits that are\n"
                "not given stay. Those of a group hold for all of its members together. The name\n"
                "of a disk means all exports that it has now, as a group. Limits of disks are\n"
                "remembered.",
        .examples = "chainctl limit web --read-bps 100M --iops 2k\n"
                    "chainctl limit web db --group tenant-7 --bps 200M\n"
                    "chainctl limit web --none",
        .words = words,
        .options = options,
        .run = run_limit,
    },
    {0},
};

const VerbFamily verbs_limit_family = {.verbs = verbs};
