// SPDX-License-Identifier: LGPL-2.1-or-later
// Walks from the commands and events to all types that they use, and describes each once. Types go
// by their names (QEMU numbers them; clients must follow the references either way). Pure.
#include "schema.h"

#include <string.h>

typedef struct Schema {
    json_t *entries;
    GHashTable *named; // char *, of the types that are there already
} Schema;

// Owned. Of arguments and data without a name of their own it is made from the owner's.
static char *type_name(const QmpType *type, const char *owner, const char *suffix)
{
    if (!type)
        return g_strdup("q_empty");
    if (type->kind == QMP_ARRAY) {
        g_autofree char *element = type_name(type->element, owner, suffix);
        return g_strdup_printf("[%s]", element);
    }
    return type->name ? g_strdup(type->name) : g_strdup_printf("q_obj_%s-%s", owner, suffix);
}

static json_t *add_entry(Schema *schema, const char *name, const char *meta_type)
{
    json_t *entry = json_pack("{s:s, s:s}", "name", name, "meta-type", meta_type);
    json_array_append_new(schema->entries, entry);
    return entry;
}

static void add_type(Schema *schema, const QmpType *type, const char *name);

static void add_inner(Schema *schema, const QmpType *type, const char *owner, const char *suffix)
{
    g_autofree char *name = type_name(type, owner, suffix);
    add_type(schema, type, name);
}

// Names the type of `key` in `entry`.
static void refer(json_t *entry, const char *key, const QmpType *type, const char *owner,
                  const char *suffix)
{
    g_autofree char *name = type_name(type, owner, suffix);
    json_object_set_new(entry, key, json_string(name));
}

static void set_feature(json_t *entry, const char *feature)
{
    if (feature)
        json_object_set_new(entry, "features", json_pack("[s]", feature));
}

static const char *builtin_json_type(QmpKind kind)
{
    switch (kind) {
    case QMP_STR:
        return "string";
    case QMP_INT:
    case QMP_SIZE:
        return "int";
    case QMP_NUMBER:
        return "number";
    case QMP_BOOL:
        return "boolean";
    case QMP_NULL:
        return "null";
    default:
        return "value";
    }
}

static json_t *describe_members(const QmpType *type, const char *name)
{
    json_t *members = json_array();
    for (const QmpMember *member = type->members; member && member->type; member++) {
        json_t *entry = json_object();
        if (type->kind == QMP_OBJECT)
            json_object_set_new(entry, "name", json_string(member->name));
        refer(entry, "type", member->type, name, member->name);
        if (member->is_optional)
            json_object_set_new(entry, "default", json_null());
        set_feature(entry, member->feature);
        json_array_append_new(members, entry);
    }
    return members;
}

static void describe_enum(json_t *entry, const QmpType *type)
{
    json_t *values = json_array(), *members = json_array();
    for (const char *const *value = type->values; *value; value++) {
        json_array_append_new(values, json_string(*value));
        json_array_append_new(members, json_pack("{s:s}", "name", *value));
    }
    json_object_set_new(entry, "values", values);
    json_object_set_new(entry, "members", members);
}

// Each value of the tag has a case, also one that adds nothing.
static json_t *describe_variants(const QmpType *type, const char *name)
{
    json_t *variants = json_array();
    const QmpType *tag = NULL;
    for (const QmpMember *member = type->members; member->type; member++)
        if (g_str_equal(member->name, type->tag))
            tag = member->type;
    for (const char *const *value = tag ? tag->values : NULL; value && *value; value++) {
        const QmpType *of_value = NULL;
        for (const QmpVariant *variant = type->variants; variant->value; variant++)
            if (g_str_equal(variant->value, *value))
                of_value = variant->type;
        json_t *entry = json_pack("{s:s}", "case", *value);
        refer(entry, "type", of_value, name, *value);
        json_array_append_new(variants, entry);
    }
    return variants;
}

static void add_used_types(Schema *schema, const QmpType *type, const char *name)
{
    if (type->element)
        add_inner(schema, type->element, name, "element");
    for (const QmpMember *member = type->members; member && member->type; member++)
        add_inner(schema, member->type, name, member->name);
    if (type->tag)
        add_type(schema, NULL, "q_empty");
    for (const QmpVariant *variant = type->variants; variant && variant->value; variant++)
        add_inner(schema, variant->type, name, variant->value);
}

// NULL: an object without members.
static void add_type(Schema *schema, const QmpType *type, const char *name)
{
    static const QmpType empty = {.kind = QMP_OBJECT};
    if (!g_hash_table_add(schema->named, g_strdup(name)))
        return;
    if (!type)
        type = &empty;
    json_t *entry;
    switch (type->kind) {
    case QMP_OBJECT:
        entry = add_entry(schema, name, "object");
        json_object_set_new(entry, "members", describe_members(type, name));
        if (type->tag) {
            json_object_set_new(entry, "tag", json_string(type->tag));
            json_object_set_new(entry, "variants", describe_variants(type, name));
        }
        break;
    case QMP_ALTERNATE:
        entry = add_entry(schema, name, "alternate");
        json_object_set_new(entry, "members", describe_members(type, name));
        break;
    case QMP_ARRAY:
        entry = add_entry(schema, name, "array");
        refer(entry, "element-type", type->element, name, "element");
        break;
    case QMP_ENUM:
        describe_enum(add_entry(schema, name, "enum"), type);
        break;
    default:
        entry = add_entry(schema, name, "builtin");
        json_object_set_new(entry, "json-type", json_string(builtin_json_type(type->kind)));
        break;
    }
    add_used_types(schema, type, name);
}

static void add_family(Schema *schema, const QmpFamily *family)
{
    for (const QmpCommand *command = family->commands; command && command->name; command++) {
        json_t *entry = add_entry(schema, command->name, "command");
        refer(entry, "arg-type", command->args, command->name, "arg");
        refer(entry, "ret-type", command->reply, command->name, "ret");
        set_feature(entry, command->feature);
        add_inner(schema, command->args, command->name, "arg");
        add_inner(schema, command->reply, command->name, "ret");
    }
    for (const QmpEvent *event = family->events; event && event->name; event++) {
        json_t *entry = add_entry(schema, event->name, "event");
        refer(entry, "arg-type", event->data, event->name, "arg");
        add_inner(schema, event->data, event->name, "arg");
    }
}

json_t *qmp_schema_make(const QmpFamily *const *families)
{
    Schema schema = {
        .entries = json_array(),
        .named = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
    };
    for (; *families; families++)
        add_family(&schema, *families);
    g_hash_table_unref(schema.named);
    return schema.entries;
}
