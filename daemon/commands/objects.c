// SPDX-License-Identifier: LGPL-2.1-or-later
// Objects have paths, /objects/ID, and properties there. Control loop.
#include "objects.h"

#include <string.h>

#include "daemon/daemon.h"
#include "daemon/node-names.h"
#include "daemon/qmp/args.h"
#include "throttle-limits.h"

static const char *const kind_names[] = {
    [OBJECT_THROTTLE_GROUP] = "throttle-group", [OBJECT_IOTHREAD] = "iothread", NULL};

static bool find_kind(const char *name, ObjectKind *ret_kind)
{
    for (unsigned i = 0; i < OBJECT_N_KINDS; i++) {
        if (!g_str_equal(kind_names[i], name))
            continue;
        *ret_kind = i;
        return true;
    }
    return false;
}

// -- object-add, object-del -----------------------------------------------------------------------

static const QmpType object_type = {
    .name = "ObjectType",
    .kind = QMP_ENUM,
    .doc = "Kinds of objects.",
    .values = kind_names,
};
static const QmpType throttle_group_properties = {
    .name = "ThrottleGroupProperties",
    .kind = QMP_OBJECT,
    .members = throttle_group_members,
};
static const QmpType iothread_properties = {
    .name = "IothreadProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"poll-max-ns", &qmp_int, true, "accepted, does nothing"},
                                   {"poll-grow", &qmp_int, true, "accepted, does nothing"},
                                   {"poll-shrink", &qmp_int, true, "accepted, does nothing"},
                                   {"aio-max-batch", &qmp_int, true, "accepted, does nothing"},
                                   {"thread-pool-min", &qmp_int, true, "accepted, does nothing"},
                                   {"thread-pool-max", &qmp_int, true, "accepted, does nothing"},
                                   {0}},
};
static const QmpType object_options = {
    .name = "ObjectOptions",
    .kind = QMP_OBJECT,
    .doc = "What to make.",
    .members = (const QmpMember[]){{"qom-type", &object_type, .doc = "its kind"},
                                   {"id", &qmp_str, .doc = "its name, under /objects"},
                                   {0}},
    .tag = "qom-type",
    .variants = (const QmpVariant[]){{"throttle-group", &throttle_group_properties},
                                     {"iothread", &iothread_properties},
                                     {0}},
};

static int read_limits(const json_t *args, ThrottleLimits *ret_limits, GError **error)
{
    throttle_limits_init(ret_limits);
    int r = throttle_limits_from_members(args, ret_limits, error);
    const json_t *limits = json_object_get(args, "limits");
    return r == 0 && limits ? throttle_limits_from_json(limits, ret_limits, error) : r;
}

static int object_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    const char *id = qmp_args_str(args, "id");
    Object object = {.id = (char *)id};
    ThrottleLimits limits;
    if (!node_names_is_id(id))
        return qmp_fail(error, "Parameter 'id' expects an identifier");
    if (!find_kind(qmp_args_str(args, "qom-type"), &object.kind))
        return qmp_fail(error, "invalid object type: %s", qmp_args_str(args, "qom-type"));
    int r = object.kind == OBJECT_THROTTLE_GROUP ? read_limits(args, &limits, error) : 0;
    return r < 0 ? r : objects_add(call->daemon->objects, &object, &limits, error);
}

static const QmpType object_del_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the object's name"}, {0}},
};

static int object_del(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    return objects_delete(call->daemon->objects, qmp_args_str(args, "id"), error);
}

// -- paths and properties -------------------------------------------------------------------------

// What a path means: the root, the container of all objects, or one of them. A single word is the
// name of an object.
typedef enum PlaceKind { PLACE_ROOT, PLACE_OBJECTS, PLACE_OBJECT } PlaceKind;
typedef struct Place {
    PlaceKind kind;
    const Object *object;
} Place;

static int resolve(const QmpCall *call, const char *path, Place *ret_place, GError **error)
{
    const char *id = g_str_has_prefix(path, "/objects/") ? path + strlen("/objects/") : path;
    *ret_place = (Place){PLACE_OBJECT, objects_find(call->daemon->objects, id)};
    if (g_str_equal(path, "/"))
        ret_place->kind = PLACE_ROOT;
    else if (g_str_equal(path, "/objects") || g_str_equal(path, "/objects/"))
        ret_place->kind = PLACE_OBJECTS;
    else if (!ret_place->object) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", path);
        return -1;
    }
    return 0;
}

static const char *type_of_place(const Place *place)
{
    return place->object ? kind_names[place->object->kind] : "container";
}

static int no_property(const Place *place, const char *name, GError **error)
{
    return qmp_fail(error, "Property '%s.%s' not found", type_of_place(place), name);
}

static const QmpType object_property = {
    .name = "ObjectPropertyInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "the property's name"},
                                   {"type", &qmp_str, .doc = "the name of its type"},
                                   {0}},
};
static const QmpType object_properties = {.kind = QMP_ARRAY, .element = &object_property};
static const QmpType path_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, .doc = "such as /objects/ID"}, {0}},
};

static void add_property(json_t *list, const char *name, const char *type)
{
    json_array_append_new(list, json_pack("{s:s, s:s}", "name", name, "type", type));
}

static void add_properties_of_kind(json_t *list, ObjectKind kind)
{
    const QmpMember *m =
        kind == OBJECT_THROTTLE_GROUP ? throttle_group_members : iothread_properties.members;
    for (; m->name; m++)
        add_property(list, m->name, m->type->kind == QMP_OBJECT ? m->type->name : "int");
}

static int qom_list(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Place place;
    if (resolve(call, qmp_args_str(args, "path"), &place, error) < 0)
        return -1;
    json_t *list = json_array();
    add_property(list, "type", "string");
    const GPtrArray *all = objects_all(call->daemon->objects);
    if (place.kind == PLACE_ROOT)
        add_property(list, "objects", "child<container>");
    for (guint i = 0; place.kind == PLACE_OBJECTS && i < all->len; i++) {
        const Object *object = all->pdata[i];
        g_autofree char *type = g_strdup_printf("child<%s>", kind_names[object->kind]);
        add_property(list, object->id, type);
    }
    if (place.object)
        add_properties_of_kind(list, place.object->kind);
    *ret_reply = list;
    return 0;
}

static const QmpType qom_get_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, .doc = "such as /objects/ID"},
                                   {"property", &qmp_str, .doc = "the property's name"},
                                   {0}},
};

static int qom_get(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    const char *name = qmp_args_str(args, "property");
    Place place;
    if (resolve(call, qmp_args_str(args, "path"), &place, error) < 0)
        return -1;
    if (g_str_equal(name, "type")) {
        *ret_reply = json_string(type_of_place(&place));
        return 0;
    }
    if (!place.object || place.object->kind != OBJECT_THROTTLE_GROUP)
        return no_property(&place, name, error);
    g_autoptr(ThrottleGroup) group =
        throttle_groups_find(objects_throttle_groups(call->daemon->objects), place.object->id);
    ThrottleLimits limits;
    throttle_group_get_limits(group, &limits);
    json_t *all = throttle_limits_to_json(&limits);
    const char *member = g_str_has_prefix(name, "x-") ? name + 2 : "";
    json_t *one = g_str_equal(name, "limits") ? all : json_object_get(all, member);
    if (one)
        *ret_reply = json_incref(one);
    json_decref(all);
    return one ? 0 : no_property(&place, name, error);
}

static const QmpType qom_set_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, .doc = "such as /objects/ID"},
                                   {"property", &qmp_str, .doc = "the property's name"},
                                   {"value", &qmp_any, .doc = "its new value"},
                                   {0}},
};

// Checked under its name, which sentences of faults begin with.
static const QmpType limits_property = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"limits", &throttle_limits_type}, {0}},
};

static int set_limits(const QmpCall *call, const char *id, json_t *value, GError **error)
{
    json_auto_t *property = json_pack("{s:O}", "limits", value);
    int r = qmp_type_check(&limits_property, property, QMP_INPUT_JSON, error);
    if (r < 0)
        return r;
    g_autoptr(ThrottleGroup) group =
        throttle_groups_find(objects_throttle_groups(call->daemon->objects), id);
    ThrottleLimits limits;
    throttle_group_get_limits(group, &limits);
    r = throttle_limits_from_json(value, &limits, error);
    if (r == 0)
        throttle_group_set_limits(group, &limits);
    return r;
}

static bool has_member(const char *name)
{
    for (const QmpMember *m = throttle_group_members; m->name; m++)
        if (g_str_equal(m->name, name))
            return true;
    return false;
}

static int qom_set(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    const char *name = qmp_args_str(args, "property");
    Place place;
    if (resolve(call, qmp_args_str(args, "path"), &place, error) < 0)
        return -1;
    bool is_group = place.object && place.object->kind == OBJECT_THROTTLE_GROUP;
    if (is_group && g_str_equal(name, "limits"))
        return set_limits(call, place.object->id, json_object_get(args, "value"), error);
    if (is_group && has_member(name))
        return qmp_fail(error, "Property cannot be set after initialization");
    if (g_str_equal(name, "type"))
        return qmp_fail(error, "Property '%s.type' is not writable", type_of_place(&place));
    return no_property(&place, name, error);
}

// -- types ----------------------------------------------------------------------------------------

static const QmpType object_type_info = {
    .name = "ObjectTypeInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "the type's name"},
                                   {"abstract", &qmp_bool, true, "nothing can be made of it"},
                                   {"parent", &qmp_str, true, "what it is a kind of"},
                                   {0}},
};
static const QmpType object_type_infos = {.kind = QMP_ARRAY, .element = &object_type_info};
static const QmpType qom_list_types_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"implements", &qmp_str, true, "only what is of this type"},
                                   {"abstract", &qmp_bool, true, "abstract ones, too"},
                                   {0}},
};

static bool is_of_type(const char *kind, const char *wanted)
{
    return !wanted || g_str_equal(wanted, kind) || g_str_equal(wanted, "object") ||
           g_str_equal(wanted, "user-creatable");
}

static int qom_list_types(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < OBJECT_N_KINDS; i++)
        if (is_of_type(kind_names[i], qmp_args_str(args, "implements")))
            json_array_append_new(
                list, json_pack("{s:s, s:s}", "name", kind_names[i], "parent", "object"));
    *ret_reply = list;
    return 0;
}

static const QmpType qom_list_properties_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"typename", &qmp_str, .doc = "the type's name"}, {0}},
};

static int qom_list_properties(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                               GError **error)
{
    const char *name = qmp_args_str(args, "typename");
    ObjectKind kind;
    if (!find_kind(name, &kind)) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Class '%s' not found", name);
        return -1;
    }
    json_t *list = json_array();
    add_property(list, "type", "string");
    add_properties_of_kind(list, kind);
    *ret_reply = list;
    return 0;
}

static const QmpCommand commands[] = {
    {"object-add", &object_options, NULL, "Makes an object.", object_add},
    {"object-del", &object_del_args, NULL, "Deletes an object that nobody uses.", object_del},
    {"qom-list", &path_args, &object_properties, "The properties at a path.", qom_list},
    {"qom-get", &qom_get_args, &qmp_any, "The value of a property.", qom_get},
    {"qom-set", &qom_set_args, NULL,
     "Changes a property: \"limits\" of a throttle group, of which what is not given stays. Holds "
     "for requests that wait already.",
     qom_set},
    {"qom-list-types", &qom_list_types_args, &object_type_infos, "The kinds of objects.",
     qom_list_types},
    {"qom-list-properties", &qom_list_properties_args, &object_properties,
     "The properties of a kind of objects.", qom_list_properties},
    {0},
};

const QmpFamily qmp_objects_family = {.title = "Objects", .commands = commands};
