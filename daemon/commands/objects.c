// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of objects. They have paths, /objects/ID, and properties there. Control loop.
#include "objects.h"

#include <string.h>

#include "daemon/daemon.h"
#include "daemon/node-names.h"
#include "daemon/qmp/args.h"
#include "object-kind.h"

static const ObjectKind *const kinds[] = {
    &object_throttle_group_kind, &object_iothread_kind,      &object_secret_kind,
    &object_authz_simple_kind,   &object_authz_list_kind,    &object_authz_list_file_kind,
    &object_tls_creds_anon_kind, &object_tls_creds_psk_kind, &object_tls_creds_x509_kind,
};

static const ObjectKind *find_kind(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_equal(kinds[i]->name, name))
            return kinds[i];
    return NULL;
}

// -- object-add, object-del -----------------------------------------------------------------------

// Filled in by make_types().
static const char *kind_names[G_N_ELEMENTS(kinds) + 1];
static QmpVariant variants[G_N_ELEMENTS(kinds) + 1];

static const QmpType object_type = {
    .name = "ObjectType",
    .kind = QMP_ENUM,
    .doc = "Kinds of objects.",
    .values = kind_names,
};
static const QmpType object_options = {
    .name = "ObjectOptions",
    .kind = QMP_OBJECT,
    .doc = "What to make.",
    .members = (const QmpMember[]){{"qom-type", &object_type, .doc = "its kind"},
                                   {"id", &qmp_str, .doc = "its name, under /objects"},
                                   {0}},
    .tag = "qom-type",
    .variants = variants,
};

static void make_types(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        kind_names[i] = kinds[i]->name;
        variants[i] = (QmpVariant){kinds[i]->name, kinds[i]->properties};
    }
}

static int check_unused(const Daemon *daemon, const char *id, GError **error)
{
    if (!objects_find(daemon->objects, id))
        return 0;
    return qmp_fail(error, "attempt to add duplicate property '%s' to object (type 'container')",
                    id);
}

static int object_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    Daemon *daemon = call->daemon;
    const char *id = qmp_args_str(args, "id");
    if (!node_names_is_id(id))
        return qmp_fail(error, "Parameter 'id' expects an identifier");
    const ObjectKind *kind = find_kind(qmp_args_str(args, "qom-type"));
    int r = check_unused(daemon, id, error);
    if (r < 0)
        return r;
    g_autoptr(Object) object = object_new(id, kind);
    r = kind->make(self, daemon, object, args, error);
    if (r < 0)
        return r;
    r = check_unused(daemon, id, error); // it may have suspended
    if (r < 0 && kind->unmake)
        kind->unmake(daemon, object, NULL);
    if (r == 0)
        objects_add(daemon->objects, g_steal_pointer(&object));
    return r;
}

static const QmpType object_del_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the object's name"}, {0}},
};

static int object_del(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    Daemon *daemon = call->daemon;
    const char *id = qmp_args_str(args, "id");
    Object *object = objects_find(daemon->objects, id);
    if (!object)
        return qmp_fail(error, "object '%s' not found", id);
    int r = object->kind->unmake ? object->kind->unmake(daemon, object, error) : 0;
    if (r == 0)
        objects_delete(daemon->objects, object);
    return r;
}

// -- paths ----------------------------------------------------------------------------------------

// The root, the container of all objects, or one of them.
typedef enum PlaceKind { PLACE_ROOT, PLACE_OBJECTS, PLACE_OBJECT } PlaceKind;
typedef struct Place {
    PlaceKind kind;
    Object *object;
} Place;

// The names of a path, without empty ones. Owned.
static char **split_path(const char *path)
{
    g_autoptr(GStrvBuilder) names = g_strv_builder_new();
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    for (char **part = parts; *part; part++)
        if (**part)
            g_strv_builder_add(names, *part);
    return g_strv_builder_end(names);
}

// A path that does not begin at the root may begin at the container.
static int resolve(const QmpCall *call, const char *path, Place *ret_place, GError **error)
{
    g_auto(GStrv) names = split_path(path);
    char **name = names;
    bool is_absolute = *path == '/';
    *ret_place = (Place){PLACE_ROOT};
    if (*name && g_str_equal(*name, "objects")) {
        ret_place->kind = PLACE_OBJECTS;
        name++;
    }
    if (*name && (ret_place->kind == PLACE_OBJECTS || !is_absolute)) {
        *ret_place = (Place){PLACE_OBJECT, objects_find(call->daemon->objects, *name)};
        name++;
    }
    if (*name || !*path || (ret_place->kind == PLACE_OBJECT && !ret_place->object)) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", path);
        return -ENOENT;
    }
    return 0;
}

static const char *type_of_place(const Place *place)
{
    return place->object ? place->object->kind->name : "container";
}

// The path of what a container has under that name; owned. NULL: nothing.
static char *child_path(const QmpCall *call, const Place *place, const char *name)
{
    if (place->kind == PLACE_ROOT && g_str_equal(name, "objects"))
        return g_strdup("/objects");
    if (place->kind == PLACE_OBJECTS && objects_find(call->daemon->objects, name))
        return g_strdup_printf("/objects/%s", name);
    return NULL;
}

static int no_property(const Place *place, const char *name, GError **error)
{
    return qmp_fail(error, "Property '%s.%s' not found", type_of_place(place), name);
}

// -- properties -----------------------------------------------------------------------------------

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

static void add_properties_of_kind(json_t *list, const ObjectKind *kind)
{
    for (const QmpMember *m = kind->properties->members; m->type; m++)
        add_property(list, m->name, m->type->kind == QMP_STR ? "string" : m->type->name);
}

static int qom_list(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Place place;
    const char *path = qmp_args_str(args, "path");
    int r = *path ? resolve(call, path, &place, error)
                  : qmp_fail(error, "Path '%s' is ambiguous", path);
    if (r < 0)
        return r;
    json_t *list = json_array();
    add_property(list, "type", "string");
    const GPtrArray *all = objects_all(call->daemon->objects);
    if (place.kind == PLACE_ROOT)
        add_property(list, "objects", "child<container>");
    for (guint i = 0; place.kind == PLACE_OBJECTS && i < all->len; i++) {
        const Object *object = all->pdata[i];
        g_autofree char *type = g_strdup_printf("child<%s>", object->kind->name);
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
    int r = resolve(call, qmp_args_str(args, "path"), &place, error);
    if (r < 0)
        return r;
    g_autofree char *child = child_path(call, &place, name);
    if (g_str_equal(name, "type"))
        *ret_reply = json_string(type_of_place(&place));
    else if (child)
        *ret_reply = json_string(child);
    else if (place.object && object_kind_find_property(place.object->kind, name))
        *ret_reply = place.object->kind->get(call->daemon, place.object, name);
    return *ret_reply ? 0 : no_property(&place, name, error);
}

static const QmpType qom_set_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, .doc = "such as /objects/ID"},
                                   {"property", &qmp_str, .doc = "the property's name"},
                                   {"value", &qmp_any, .doc = "its new value"},
                                   {0}},
};

// Limits are changed together.
static bool is_fixed(const Object *object, const char *property)
{
    return !object->kind->set ||
           (object->kind == &object_throttle_group_kind && !g_str_equal(property, "limits"));
}

static int set_property(Daemon *daemon, Object *object, const QmpMember *property, json_t *value,
                        GError **error)
{
    if (is_fixed(object, property->name))
        return qmp_fail(error, "Property cannot be set after initialization");
    int r = object_kind_check_value(property, value, error);
    return r < 0 ? r : object->kind->set(daemon, object, property->name, value, error);
}

static int qom_set(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    const char *name = qmp_args_str(args, "property");
    Place place;
    int r = resolve(call, qmp_args_str(args, "path"), &place, error);
    if (r < 0)
        return r;
    g_autofree char *child = child_path(call, &place, name);
    if (child || g_str_equal(name, "type"))
        return qmp_fail(error, "Property '%s.%s' is not writable", type_of_place(&place), name);
    const QmpMember *property =
        place.object ? object_kind_find_property(place.object->kind, name) : NULL;
    return property ? set_property(call->daemon, place.object, property,
                                   json_object_get(args, "value"), error)
                    : no_property(&place, name, error);
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

static bool is_of_type(const ObjectKind *kind, const char *wanted)
{
    return !wanted || g_str_equal(wanted, kind->name) || g_str_equal(wanted, kind->parent) ||
           g_str_equal(wanted, "object") || g_str_equal(wanted, "user-creatable");
}

static int qom_list_types(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (!kinds[i]->is_refused && is_of_type(kinds[i], qmp_args_str(args, "implements")))
            json_array_append_new(
                list, json_pack("{s:s, s:s}", "name", kinds[i]->name, "parent", kinds[i]->parent));
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
    const ObjectKind *kind = find_kind(name);
    if (!kind && !g_str_equal(name, "object") && !g_str_equal(name, "container")) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Class '%s' not found", name);
        return -ENOENT;
    }
    json_t *list = json_array();
    add_property(list, "type", "string");
    if (kind)
        add_properties_of_kind(list, kind);
    *ret_reply = list;
    return 0;
}

static const QmpCommand commands[] = {
    {"object-add", &object_options, NULL, "Makes an object.", object_add},
    {"object-del", &object_del_args, NULL,
     "Deletes an object that nobody uses. Nodes stay on the loop of an iothread.", object_del},
    {"qom-list", &path_args, &object_properties, "The properties at a path.", qom_list,
     .is_query = true},
    {"qom-get", &qom_get_args, &qmp_any, "The value of a property.", qom_get},
    {"qom-set", &qom_set_args, NULL,
     "Changes a property. \"limits\" of a throttle group: what is not given stays, and it holds "
     "for requests that wait already.",
     qom_set},
    {"qom-list-types", &qom_list_types_args, &object_type_infos, "The kinds of objects.",
     qom_list_types, .is_query = true},
    {"qom-list-properties", &qom_list_properties_args, &object_properties,
     "The properties of a kind of objects.", qom_list_properties, .is_query = true},
    {0},
};

const QmpFamily qmp_objects_family = {.title = "Objects", .commands = commands, .init = make_types};
