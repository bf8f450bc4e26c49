// SPDX-License-Identifier: LGPL-2.1-or-later
// The options of drivers, as tables: what json: names, blockdev-add and --blockdev may say, what
// the schema and the reference page list. Values come as JSON; driver_option_take() makes each the
// type that its table says, so that drivers read them without a check. Pure; any thread.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum DriverOptionType {
    DRIVER_OPTION_STR,
    DRIVER_OPTION_BOOL,
    DRIVER_OPTION_INT,            // not negative; text may have a unit: "64k"
    DRIVER_OPTION_ENUM,           // one of `values`
    DRIVER_OPTION_OBJECT,         // of `members`
    DRIVER_OPTION_ENUM_OR_OBJECT, // one of `values`, or `members`
    DRIVER_OPTION_ARRAY,          // of objects of `members`
    DRIVER_OPTION_ANY,            // as it comes: the driver checks it
    DRIVER_OPTION_CHILD,          // a node's name, or what to make one of
} DriverOptionType;

// What becomes of an option while a node is in use: blockdev-reopen.
typedef enum DriverOptionChange {
    DRIVER_OPTION_STAYS,
    DRIVER_OPTION_KEPT,    // it may change, but not be left out; nothing follows from it
    DRIVER_OPTION_IDLE,    // it may change, and nothing follows from it
    DRIVER_OPTION_CHANGES, // Driver.reopen sees to it
} DriverOptionChange;

typedef struct DriverOption DriverOption;
struct DriverOption {
    const char *name; // QEMU's; NULL ends a table
    DriverOptionType type;
    bool is_required;
    bool may_be_null;          // CHILD: null says that there is none
    DriverOptionChange change; // while the node is in use
    const char *const *values; // ENUM…: ended by NULL
    const DriverOption *members;
    const char *doc; // a sentence; says so where the option is accepted and does nothing
};

// The option of that name, `len` bytes long; NULL: there is none. `options` may be NULL.
const DriverOption *driver_option_find(const DriverOption *options, const char *name, size_t len);

// `value` as `option` wants it: numbers and booleans may come as text ("64k", "on"). Not for
// CHILD. A new reference; NULL with a sentence.
json_t *driver_option_take(const DriverOption *option, json_t *value, GError **error);

// The value at `path` ("cache.direct": the member of an object), or `fallback` where there is none.
// `values` holds taken values, and may be NULL. Strings are borrowed.
bool driver_value_bool(const json_t *values, const char *path, bool fallback);
uint64_t driver_value_int(const json_t *values, const char *path, uint64_t fallback);
const char *driver_value_str(const json_t *values, const char *path, const char *fallback);
