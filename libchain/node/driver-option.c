// SPDX-License-Identifier: LGPL-2.1-or-later
// Values of drivers' options: checked against their tables, and read. Pure; any thread.
#include "chain-core/driver-option.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

const DriverOption *driver_option_find(const DriverOption *options, const char *name, size_t len)
{
    for (; options && options->name; options++) {
        if (strlen(options->name) == len && strncmp(options->name, name, len) == 0)
            return options;
    }
    return NULL;
}

// -- taking ---------------------------------------------------------------------------------------

// A number, perhaps with a unit (powers of 1024).
static bool parse_number(const char *text, uint64_t *ret_n)
{
    static const char units[] = "BKMGTPE";
    if (!g_ascii_isdigit(*text))
        return false;
    char *end;
    errno = 0;
    uint64_t n = g_ascii_strtoull(text, &end, 10);
    const char *unit = strchr(units, *end ? g_ascii_toupper(*end) : 'B');
    unsigned shift = unit ? 10 * (unsigned)(unit - units) : 0;
    if (errno || !unit || (*end && end[1]) || n > (uint64_t)INT64_MAX >> shift)
        return false;
    *ret_n = n << shift;
    return true;
}

static json_t *take_int(json_t *value)
{
    uint64_t n;
    if (json_is_integer(value))
        return json_integer_value(value) >= 0 ? json_incref(value) : NULL;
    const char *text = json_string_value(value);
    return text && parse_number(text, &n) ? json_integer((json_int_t)n) : NULL;
}

static json_t *take_bool(json_t *value)
{
    const char *text = json_string_value(value);
    if (json_is_boolean(value))
        return json_incref(value);
    if (g_strcmp0(text, "on") == 0)
        return json_true();
    return g_strcmp0(text, "off") == 0 ? json_false() : NULL;
}

static bool is_among(const char *const *values, const char *text)
{
    for (; text && *values; values++) {
        if (g_str_equal(*values, text))
            return true;
    }
    return false;
}

static int check_required(const DriverOption *option, const json_t *taken, GError **error)
{
    for (const DriverOption *m = option->members; m->name; m++)
        if (m->is_required && !json_object_get(taken, m->name))
            return error_set(error, -EINVAL, "\"%s\" has no \"%s\"", option->name, m->name);
    return 0;
}

static json_t *take_object(const DriverOption *option, json_t *object, GError **error)
{
    json_t *taken = json_object();
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        const DriverOption *member = driver_option_find(option->members, name, strlen(name));
        json_t *made = NULL;
        if (member)
            made = driver_option_take(member, value, error);
        else
            error_set(error, -ENOTSUP, "the option '%s.%s' is not supported", option->name, name);
        if (!made) {
            json_decref(taken);
            return NULL;
        }
        json_object_set_new(taken, name, made);
    }
    if (check_required(option, taken, error) == 0)
        return taken;
    json_decref(taken);
    return NULL;
}

static json_t *take_array(const DriverOption *option, json_t *array, GError **error)
{
    json_t *taken = json_array();
    size_t i;
    json_t *value;
    json_array_foreach(array, i, value)
    {
        json_t *made = NULL;
        if (json_is_object(value))
            made = take_object(option, value, error);
        else
            error_set(error, -EINVAL, "\"%s\" is no array of objects", option->name);
        if (!made) {
            json_decref(taken);
            return NULL;
        }
        json_array_append_new(taken, made);
    }
    return taken;
}

static const char *expected(const DriverOption *option)
{
    switch (option->type) {
    case DRIVER_OPTION_STR:
        return "a string";
    case DRIVER_OPTION_BOOL:
        return "true or false";
    case DRIVER_OPTION_INT:
        return "a number";
    case DRIVER_OPTION_ENUM:
    case DRIVER_OPTION_ENUM_OR_OBJECT:
        return "a value that it can have";
    case DRIVER_OPTION_OBJECT:
        return "an object";
    case DRIVER_OPTION_ARRAY:
        return "an array";
    case DRIVER_OPTION_ANY:
    case DRIVER_OPTION_CHILD:
        break;
    }
    g_assert_not_reached();
}

json_t *driver_option_take(const DriverOption *option, json_t *value, GError **error)
{
    DriverOptionType type = option->type;
    g_assert(type != DRIVER_OPTION_CHILD);
    bool takes_object = type == DRIVER_OPTION_OBJECT || type == DRIVER_OPTION_ENUM_OR_OBJECT;
    bool takes_enum = type == DRIVER_OPTION_ENUM || type == DRIVER_OPTION_ENUM_OR_OBJECT;
    if (takes_object && json_is_object(value))
        return take_object(option, value, error);
    if (type == DRIVER_OPTION_ARRAY && json_is_array(value))
        return take_array(option, value, error);
    json_t *taken = NULL;
    if (type == DRIVER_OPTION_ANY || (type == DRIVER_OPTION_STR && json_is_string(value)))
        taken = json_incref(value);
    else if (type == DRIVER_OPTION_BOOL)
        taken = take_bool(value);
    else if (type == DRIVER_OPTION_INT)
        taken = take_int(value);
    else if (takes_enum && is_among(option->values, json_string_value(value)))
        taken = json_incref(value);
    if (!taken && type == DRIVER_OPTION_INT && json_is_integer(value))
        error_set(error, -EINVAL,
                  "Value '%" JSON_INTEGER_FORMAT "' is out of range for parameter '%s'",
                  json_integer_value(value), option->name);
    else if (!taken)
        error_set(error, -EINVAL, "\"%s\" is not %s", option->name, expected(option));
    return taken;
}

// -- reading --------------------------------------------------------------------------------------

static const json_t *value_at(const json_t *values, const char *path)
{
    const char *dot;
    for (; values && (dot = strchr(path, '.')); path = dot + 1) {
        g_autofree char *name = g_strndup(path, (gsize)(dot - path));
        values = json_object_get(values, name);
    }
    return values ? json_object_get(values, path) : NULL;
}

bool driver_value_bool(const json_t *values, const char *path, bool fallback)
{
    const json_t *value = value_at(values, path);
    return value ? json_is_true(value) : fallback;
}

uint64_t driver_value_int(const json_t *values, const char *path, uint64_t fallback)
{
    const json_t *value = value_at(values, path);
    return value ? (uint64_t)json_integer_value(value) : fallback;
}

const char *driver_value_str(const json_t *values, const char *path, const char *fallback)
{
    const json_t *value = value_at(values, path);
    return value ? json_string_value(value) : fallback;
}
