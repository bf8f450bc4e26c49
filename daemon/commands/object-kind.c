// SPDX-License-Identifier: LGPL-2.1-or-later
// What kinds of objects share. Pure, but for errors.
#include "object-kind.h"

const QmpMember *object_kind_find_property(const ObjectKind *kind, const char *name)
{
    for (const QmpMember *member = kind->properties->members; member->type; member++)
        if (g_str_equal(member->name, name))
            return member;
    return NULL;
}

// Under its name, which sentences of faults begin with.
int object_kind_check_value(const QmpMember *property, json_t *value, GError **error)
{
    const QmpType wrapper = {.kind = QMP_OBJECT, .members = (const QmpMember[]){*property, {0}}};
    json_auto_t *wrapped = json_pack("{s:O}", property->name, value);
    return qmp_type_check(&wrapper, wrapped, QMP_INPUT_JSON, error);
}

json_t *object_kind_get_value(const Daemon *daemon, const Object *object, const char *property)
{
    return json_incref(json_object_get(object->values, property));
}
