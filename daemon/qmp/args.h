// SPDX-License-Identifier: LGPL-2.1-or-later
// Members of arguments that were checked (qmp_type_check()). Pure.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

static inline bool qmp_args_have(const json_t *args, const char *name)
{
    return json_object_get(args, name) != NULL;
}

// NULL: it is not there. Borrowed.
static inline const char *qmp_args_str(const json_t *args, const char *name)
{
    return json_string_value(json_object_get(args, name));
}

static inline int64_t qmp_args_int(const json_t *args, const char *name, int64_t otherwise)
{
    const json_t *value = json_object_get(args, name);
    return value ? json_integer_value(value) : otherwise;
}

static inline bool qmp_args_bool(const json_t *args, const char *name, bool otherwise)
{
    const json_t *value = json_object_get(args, name);
    return value ? json_is_true(value) : otherwise;
}
