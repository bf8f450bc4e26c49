// SPDX-License-Identifier: LGPL-2.1-or-later
// A throttle group: what it allows is in libchain's table, where throttle nodes find it.
#include "object-kind.h"
#include "throttle-limits.h"

static const QmpType properties = {
    .name = "ThrottleGroupProperties",
    .kind = QMP_OBJECT,
    .members = throttle_group_members,
};

static int make(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    const json_t *given = json_object_get(args, "limits");
    int r = given ? throttle_limits_from_json(given, &limits, error) : 0;
    if (r == 0)
        r = throttle_limits_from_members(args, &limits, error);
    if (r == 0 && !throttle_groups_add(daemon->throttle_groups, object->id, &limits))
        r = qmp_fail(error, "A group with this name already exists");
    return r;
}

static int unmake(Daemon *daemon, Object *object, GError **error)
{
    if (throttle_groups_remove(daemon->throttle_groups, object->id) == -EBUSY)
        return qmp_fail(error, "object '%s' is in use, can not be deleted", object->id);
    return 0;
}

static json_t *get(const Daemon *daemon, const Object *object, const char *property)
{
    g_autoptr(ThrottleGroup) group = throttle_groups_find(daemon->throttle_groups, object->id);
    ThrottleLimits limits;
    throttle_group_get_limits(group, &limits);
    json_auto_t *all = throttle_limits_to_json(&limits);
    bool is_one = g_str_has_prefix(property, "x-");
    return json_incref(is_one ? json_object_get(all, property + 2) : all);
}

// What is not given stays.
static int set(Daemon *daemon, Object *object, const char *property, json_t *value, GError **error)
{
    g_autoptr(ThrottleGroup) group = throttle_groups_find(daemon->throttle_groups, object->id);
    ThrottleLimits limits;
    throttle_group_get_limits(group, &limits);
    int r = throttle_limits_from_json(value, &limits, error);
    if (r == 0)
        throttle_group_set_limits(group, &limits);
    return r;
}

const ObjectKind object_throttle_group_kind = {
    .name = "throttle-group",
    .parent = "object",
    .properties = &properties,
    .make = make,
    .unmake = unmake,
    .get = get,
    .set = set,
};
