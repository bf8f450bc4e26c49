// SPDX-License-Identifier: LGPL-2.1-or-later
// Groups come before the exports that are in them, and go after those have left.
#include "throttle-policy.h"

#include <errno.h>

#include "daemon/qmp/error.h"

static const char *group_of(void *arg, const char *name)
{
    const Daemon *daemon = arg;
    ExportSettings settings;
    config_resolve(daemon->config, &settings_export, name, &settings);
    return settings.throttle_group;
}

static bool is_object(const Daemon *daemon, const char *group)
{
    return objects_find(daemon->objects, group);
}

static void tell_object(const ConfigEntry *entry, GPtrArray *failed)
{
    g_ptr_array_add(failed, g_strdup_printf("%s:%u: there is an object '%s', whose limits hold: "
                                            "object-del removes it, then reload again",
                                            entry->place.path, entry->place.line, entry->label));
}

static void keep_groups(const Daemon *daemon, GPtrArray *failed)
{
    const GPtrArray *entries = daemon->config->entries;
    for (guint i = 0; i < entries->len; i++) {
        const ConfigEntry *entry = entries->pdata[i];
        ThrottleLimits limits;
        if (entry->section != &settings_throttle_group)
            continue;
        if (is_object(daemon, entry->label)) {
            tell_object(entry, failed);
            continue;
        }
        settings_throttle_limits(entry->values, &limits);
        throttle_groups_keep(daemon->throttle_groups, entry->label, &limits);
    }
}

void throttle_policy_begin(Daemon *daemon)
{
    keep_groups(daemon, NULL);
    exports_set_groups(daemon->exports, group_of, daemon);
}

static void let_groups_go(const Daemon *daemon, const Config *before)
{
    for (guint i = 0; i < before->entries->len; i++) {
        const ConfigEntry *entry = before->entries->pdata[i];
        if (entry->section == &settings_throttle_group && !is_object(daemon, entry->label) &&
            !config_find(daemon->config, &settings_throttle_group, entry->label))
            throttle_groups_let_go(daemon->throttle_groups, entry->label);
    }
}

void throttle_policy_change(Fiber *self, Daemon *daemon, const Config *before, GPtrArray *failed)
{
    keep_groups(daemon, failed);
    exports_refresh_groups(self, daemon->exports);
    let_groups_go(daemon, before);
}

int throttle_policy_check_not_its_group(const Daemon *daemon, const char *group, GError **error)
{
    const ConfigEntry *entry = config_find(daemon->config, &settings_throttle_group, group);
    if (!entry || is_object(daemon, group))
        return 0;
    qmp_fail(error,
             "the limits of throttle group '%s' are those of %s:%u: change them there, or give the "
             "export another group",
             group, entry->place.path, entry->place.line);
    return -EPERM;
}
