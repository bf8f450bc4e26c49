// SPDX-License-Identifier: LGPL-2.1-or-later
// What an answer of the daemon says under a key. Keys may be missing: answers of older and newer
// daemons are read, too. Borrowed from `object`, which may be NULL. Pure.
#pragma once

#include <jansson.h>
#include <stdint.h>

static inline json_t *field(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

// "": none.
static inline const char *field_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(field(object, key));
    return text ? text : "";
}

// 0: none.
static inline json_int_t field_int(const json_t *object, const char *key)
{
    return json_integer_value(field(object, key));
}

// Likewise, of what is never below 0.
static inline uint64_t field_uint(const json_t *object, const char *key)
{
    return (uint64_t)field_int(object, key);
}
