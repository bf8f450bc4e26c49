// SPDX-License-Identifier: LGPL-2.1-or-later
// Checks a value against its type, member by member in the order of the table, so that of several
// faults the same one is told as by QEMU. A member is told by its path ("file.filename",
// "actions[0].data"), but the enum and the alternate, as there, by its last name alone. Pure.
#include "type.h"

#include <errno.h>
#include <string.h>

#include "error.h"
#include "scalar.h"

const QmpType qmp_str = {.name = "str", .kind = QMP_STR};
const QmpType qmp_int = {
    .name = "int", .kind = QMP_INT, .min = INT64_MIN, .max = INT64_MAX, .expected = "integer"};
const QmpType qmp_uint16 = {
    .name = "int", .kind = QMP_INT, .max = UINT16_MAX, .expected = "uint16_t"};
const QmpType qmp_int32 = {
    .name = "int", .kind = QMP_INT, .min = INT32_MIN, .max = INT32_MAX, .expected = "int32_t"};
const QmpType qmp_uint32 = {
    .name = "int", .kind = QMP_INT, .max = UINT32_MAX, .expected = "uint32_t"};
const QmpType qmp_uint64 = {
    .name = "int", .kind = QMP_INT, .min = INT64_MIN, .max = INT64_MAX, .expected = "uint64"};
const QmpType qmp_size = {.name = "int", .kind = QMP_SIZE, .max = INT64_MAX, .expected = "uint64"};
const QmpType qmp_number = {.name = "number", .kind = QMP_NUMBER};
const QmpType qmp_bool = {.name = "bool", .kind = QMP_BOOL};
const QmpType qmp_null = {.name = "null", .kind = QMP_NULL};
const QmpType qmp_any = {.name = "any", .kind = QMP_ANY};
const QmpType qmp_str_array = {.kind = QMP_ARRAY, .element = &qmp_str};

// Where a value stands.
typedef struct Place {
    const struct Place *parent; // NULL: the arguments themselves
    const char *name;           // NULL: an element
    size_t index;
} Place;

typedef struct Check {
    QmpInput input;
    GError **error;
} Check;

static void append_path(const Check *check, const Place *place, GString *path)
{
    if (!place->parent)
        return;
    append_path(check, place->parent, path);
    if (!place->name)
        g_string_append_printf(path, check->input == QMP_INPUT_KEYVAL ? ".%zu" : "[%zu]",
                               place->index);
    else if (path->len)
        g_string_append_printf(path, ".%s", place->name);
    else
        g_string_append(path, place->name);
}

static int fail_type(const Check *check, const Place *place, const char *expected)
{
    g_autoptr(GString) path = g_string_new(NULL);
    append_path(check, place, path);
    return qmp_fail(check->error, "Invalid parameter type for '%s', expected: %s", path->str,
                    expected);
}

// `fault`: "is missing", "expects integer", …
static int fail_place(const Check *check, const Place *place, const char *fault,
                      const char *expected)
{
    g_autoptr(GString) path = g_string_new(NULL);
    append_path(check, place, path);
    return qmp_fail(check->error, "Parameter '%s' %s%s", path->str, fault, expected);
}

static const char *last_name(const Place *place)
{
    return place->name ? place->name : "null";
}

static int check_value(const Check *check, const Place *place, const QmpType *type, json_t *value,
                       json_t **ret_typed);

// -- scalars --------------------------------------------------------------------------------------

static const char *json_name(QmpKind kind)
{
    switch (kind) {
    case QMP_STR:
    case QMP_ENUM:
        return "string";
    case QMP_INT:
    case QMP_SIZE:
        return "integer";
    case QMP_NUMBER:
        return "number";
    case QMP_BOOL:
        return "boolean";
    case QMP_NULL:
        return "null";
    case QMP_OBJECT:
        return "object";
    case QMP_ARRAY:
        return "array";
    case QMP_ANY:
    case QMP_ALTERNATE:
        break;
    }
    return "value";
}

// A string of a dotted key becomes what the type says. Others stay as they are.
static int type_scalar(const Check *check, const Place *place, const QmpType *type,
                       const json_t *value, json_t **ret_typed)
{
    const char *text = json_string_value(value);
    int64_t n;
    bool flag;
    double number;
    switch (type->kind) {
    case QMP_INT:
        if (!qmp_scalar_parse_int(text, &n))
            return fail_place(check, place, "expects ", "integer");
        *ret_typed = json_integer(n);
        return 0;
    case QMP_SIZE:
        if (!qmp_scalar_parse_size(text, &n))
            return fail_place(check, place, "expects ", "size");
        *ret_typed = json_integer(n);
        return 0;
    case QMP_NUMBER:
        if (!qmp_scalar_parse_number(text, &number))
            return fail_place(check, place, "expects ", "number");
        *ret_typed = json_real(number);
        return 0;
    case QMP_BOOL:
        if (!qmp_scalar_parse_bool(text, &flag))
            return fail_place(check, place, "expects ", "'on' or 'off'");
        *ret_typed = json_boolean(flag);
        return 0;
    default:
        return 0;
    }
}

// An integer of 64 bits without a sign, which came as a fraction (framing.c). A double this large
// has no digits behind the point.
static bool is_large_integer(const json_t *value)
{
    double n = json_real_value(value);
    return n >= 0x1p63 && n < 0x1p64;
}

// What is no number of an unsigned type is told as QEMU's widest; the bounds of narrower ones are
// looked at after that.
static int check_int(const Check *check, const Place *place, const QmpType *type,
                     const json_t *value)
{
    bool is_unsigned = g_str_has_prefix(type->expected, "uint");
    bool is_narrow = is_unsigned && type->max < INT64_MAX;
    if (!json_is_integer(value) && !(is_narrow && is_large_integer(value)))
        return is_unsigned ? fail_place(check, place, "expects ", "uint64")
                           : fail_type(check, place, "integer");
    json_int_t n = json_integer_value(value);
    if (json_is_integer(value) && n >= type->min && n <= type->max)
        return 0;
    return qmp_fail(check->error, "Parameter '%s' expects %s", last_name(place), type->expected);
}

static int check_enum(const Check *check, const Place *place, const QmpType *type,
                      const json_t *value)
{
    const char *text = json_string_value(value);
    if (!text)
        return fail_type(check, place, "string");
    for (const char *const *known = type->values; *known; known++)
        if (g_str_equal(*known, text))
            return 0;
    return qmp_fail(check->error, "Parameter '%s' does not accept value '%s'", last_name(place),
                    text);
}

static bool is_of_kind(const json_t *value, QmpKind kind)
{
    switch (kind) {
    case QMP_STR:
    case QMP_ENUM:
        return json_is_string(value);
    case QMP_INT:
    case QMP_SIZE:
        return json_is_integer(value);
    case QMP_NUMBER:
        return json_is_number(value);
    case QMP_BOOL:
        return json_is_boolean(value);
    case QMP_NULL:
        return json_is_null(value);
    case QMP_OBJECT:
        return json_is_object(value);
    case QMP_ARRAY:
        return json_is_array(value);
    case QMP_ANY:
        return true;
    case QMP_ALTERNATE:
        break;
    }
    return false;
}

// -- objects, arrays, alternates ------------------------------------------------------------------

static int check_members(const Check *check, const Place *place, const QmpType *type,
                         json_t *object)
{
    for (const QmpMember *member = type->members; member && member->type; member++) {
        Place at = {place, member->name, 0};
        json_t *value = json_object_get(object, member->name);
        if (!value && member->is_optional)
            continue;
        if (!value)
            return fail_place(check, &at, "is missing", "");
        json_auto_t *typed = NULL;
        int r = check_value(check, &at, member->type, value, &typed);
        if (r < 0)
            return r;
        if (typed)
            json_object_set(object, member->name, typed);
    }
    return 0;
}

static const QmpType *find_variant(const QmpType *type, const json_t *object)
{
    const char *value = type->tag ? json_string_value(json_object_get(object, type->tag)) : NULL;
    for (const QmpVariant *variant = type->variants; value && variant->value; variant++)
        if (g_str_equal(variant->value, value))
            return variant->type;
    return NULL;
}

static bool has_member(const QmpType *type, const json_t *object, const char *name)
{
    for (const QmpMember *member = type->members; member && member->type; member++)
        if (g_str_equal(member->name, name))
            return true;
    const QmpType *variant = find_variant(type, object);
    return variant && has_member(variant, object, name);
}

static int check_object(const Check *check, const Place *place, const QmpType *type, json_t *object)
{
    if (!json_is_object(object))
        return fail_type(check, place, "object");
    // A variant may have variants of its own.
    for (const QmpType *part = type; part; part = find_variant(part, object)) {
        int r = check_members(check, place, part, object);
        if (r < 0)
            return r;
    }
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        Place at = {place, name, 0};
        if (!has_member(type, object, name))
            return fail_place(check, &at, "is unexpected", "");
    }
    return 0;
}

static int check_array(const Check *check, const Place *place, const QmpType *type, json_t *array)
{
    if (!json_is_array(array))
        return fail_type(check, place, "array");
    size_t i;
    json_t *value;
    json_array_foreach(array, i, value)
    {
        Place at = {place, NULL, i};
        json_auto_t *typed = NULL;
        int r = check_value(check, &at, type->element, value, &typed);
        if (r < 0)
            return r;
        if (typed)
            json_array_set(array, i, typed);
    }
    return 0;
}

static int check_alternate(const Check *check, const Place *place, const QmpType *type,
                           json_t *value, json_t **ret_typed)
{
    for (const QmpMember *member = type->members; member->type; member++)
        if (is_of_kind(value, member->type->kind))
            return check_value(check, place, member->type, value, ret_typed);
    return qmp_fail(check->error, "Invalid parameter type for '%s', expected: %s", last_name(place),
                    type->name);
}

// `ret_typed` stays NULL when the value is already what it shall be.
static int check_value(const Check *check, const Place *place, const QmpType *type, json_t *value,
                       json_t **ret_typed)
{
    switch (type->kind) {
    case QMP_OBJECT:
        return check_object(check, place, type, value);
    case QMP_ARRAY:
        return check_array(check, place, type, value);
    case QMP_ALTERNATE:
        return check_alternate(check, place, type, value, ret_typed);
    case QMP_ENUM:
        return check_enum(check, place, type, value);
    default:
        break;
    }
    if (check->input == QMP_INPUT_KEYVAL && json_is_string(value)) {
        int r = type_scalar(check, place, type, value, ret_typed);
        if (r < 0)
            return r;
        value = *ret_typed ? *ret_typed : value;
    }
    if (type->kind == QMP_INT || type->kind == QMP_SIZE)
        return check_int(check, place, type, value);
    return is_of_kind(value, type->kind) ? 0 : fail_type(check, place, json_name(type->kind));
}

int qmp_type_check(const QmpType *type, json_t *value, QmpInput input, GError **error)
{
    Check check = {.input = input, .error = error};
    Place root = {0};
    json_auto_t *typed = NULL;
    return check_value(&check, &root, type, value, &typed);
}
