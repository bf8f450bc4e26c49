// SPDX-License-Identifier: LGPL-2.1-or-later
// The types of QMP: what arguments, replies and events are made of, as constant tables. One table
// serves the check of arguments, query-qmp-schema and docs/qmp.md. Pure.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum QmpKind {
    QMP_STR,
    QMP_INT,
    QMP_SIZE, // bytes; from dotted keys also with a suffix, such as 64M
    QMP_NUMBER,
    QMP_BOOL,
    QMP_NULL,
    QMP_ANY,
    QMP_ENUM,
    QMP_OBJECT,
    QMP_ARRAY,
    QMP_ALTERNATE, // one of several types that JSON tells apart
} QmpKind;

typedef struct QmpType QmpType;

typedef struct QmpMember {
    const char *name;
    const QmpType *type;
    bool is_optional;
    const char *doc;     // what it means, and what holds without it; without a full stop
    const char *feature; // of the schema, for clients that look for it; NULL: none
} QmpMember;

// The further members of an object whose tag has this value.
typedef struct QmpVariant {
    const char *value;
    const QmpType *type;
} QmpVariant;

struct QmpType {
    const char *name; // of the schema; arrays, and the arguments of one command, need none
    QmpKind kind;
    const char *doc;
    // QMP_INT: its bounds, and what a value outside is told to be. Negative numbers of the widest
    // unsigned type are large ones, as in QEMU.
    int64_t min, max;
    const char *expected;
    const char *const *values; // QMP_ENUM; ends with NULL
    // QMP_OBJECT, and those a QMP_ALTERNATE is one of (without names); ends with a type of NULL.
    const QmpMember *members;
    // QMP_OBJECT, optional: the member (an enum) that decides which variant adds its members. A
    // value without a variant adds none. Ends with a value of NULL.
    const char *tag;
    const QmpVariant *variants;
    const QmpType *element; // QMP_ARRAY
};

extern const QmpType qmp_str, qmp_int, qmp_uint16, qmp_int32, qmp_uint32, qmp_uint64, qmp_size,
    qmp_number, qmp_bool, qmp_null, qmp_any, qmp_str_array;

typedef enum QmpInput {
    QMP_INPUT_JSON,
    // From dotted keys: scalars are strings, and become what their type says, in place.
    QMP_INPUT_KEYVAL,
} QmpInput;

// Is `value` of this type? 0, or -EINVAL with QEMU's words for the first thing that is not.
int qmp_type_check(const QmpType *type, json_t *value, QmpInput input, GError **error);
