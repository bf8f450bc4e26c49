// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of objects. Control loop.
#include "objects.h"

#include <errno.h>

#include "daemon/qmp/error.h"

struct Objects {
    GPtrArray *all; // Object, owned
    ThrottleGroups *throttle_groups;
};

static void object_free(gpointer p)
{
    Object *object = p;
    g_free(object->id);
    g_free(object);
}

Objects *objects_new(void)
{
    Objects *objects = g_new0(Objects, 1);
    objects->all = g_ptr_array_new_with_free_func(object_free);
    objects->throttle_groups = throttle_groups_new();
    return objects;
}

void objects_free(Objects *objects)
{
    if (!objects)
        return;
    g_ptr_array_unref(objects->all);
    throttle_groups_free(objects->throttle_groups);
    g_free(objects);
}

const Object *objects_find(const Objects *objects, const char *id)
{
    for (guint i = 0; i < objects->all->len; i++) {
        const Object *object = objects->all->pdata[i];
        if (g_str_equal(object->id, id))
            return object;
    }
    return NULL;
}

int objects_add(Objects *objects, const Object *object, const ThrottleLimits *limits,
                GError **error)
{
    if (objects_find(objects, object->id))
        return qmp_fail(error,
                        "attempt to add duplicate property '%s' to object (type 'container')",
                        object->id);
    if (object->kind == OBJECT_THROTTLE_GROUP)
        throttle_groups_add(objects->throttle_groups, object->id, limits);
    Object *own = g_new(Object, 1);
    *own = (Object){g_strdup(object->id), object->kind};
    g_ptr_array_add(objects->all, own);
    return 0;
}

int objects_delete(Objects *objects, const char *id, GError **error)
{
    const Object *object = objects_find(objects, id);
    if (!object)
        return qmp_fail(error, "object '%s' not found", id);
    if (object->kind == OBJECT_THROTTLE_GROUP &&
        throttle_groups_remove(objects->throttle_groups, id) == -EBUSY)
        return qmp_fail(error, "object '%s' is in use, can not be deleted", id);
    g_ptr_array_remove(objects->all, (gpointer)object);
    return 0;
}

const GPtrArray *objects_all(const Objects *objects)
{
    return objects->all;
}

ThrottleGroups *objects_throttle_groups(const Objects *objects)
{
    return objects->throttle_groups;
}
