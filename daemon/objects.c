// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of objects. Control loop.
#include "objects.h"

struct Objects {
    GPtrArray *all; // Object, owned
};

Object *object_new(const char *id, const ObjectKind *kind)
{
    Object *object = g_new0(Object, 1);
    object->id = g_strdup(id);
    object->kind = kind;
    return object;
}

void object_free(Object *object)
{
    json_decref(object->values);
    tls_authz_unref(object->authz);
    g_free(object->id);
    g_free(object);
}

Objects *objects_new(void)
{
    Objects *objects = g_new0(Objects, 1);
    objects->all = g_ptr_array_new_with_free_func((GDestroyNotify)object_free);
    return objects;
}

void objects_free(Objects *objects)
{
    if (!objects)
        return;
    g_ptr_array_unref(objects->all);
    g_free(objects);
}

Object *objects_find(const Objects *objects, const char *id)
{
    for (guint i = 0; i < objects->all->len; i++) {
        Object *object = objects->all->pdata[i];
        if (g_str_equal(object->id, id))
            return object;
    }
    return NULL;
}

void objects_add(Objects *objects, Object *object)
{
    g_assert(!objects_find(objects, object->id));
    g_ptr_array_add(objects->all, object);
}

void objects_delete(Objects *objects, Object *object)
{
    g_ptr_array_remove(objects->all, object);
}

const GPtrArray *objects_all(const Objects *objects)
{
    return objects->all;
}
