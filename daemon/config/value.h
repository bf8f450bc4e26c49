// SPDX-License-Identifier: LGPL-2.1-or-later
// Values of settings: what their text may be, and what it becomes. One table of types for the
// command line and the configuration's files. Looking up users and groups may block.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum ConfigKind {
    CONFIG_YES_NO,   // bool
    CONFIG_NUMBER,   // unsigned, from `min` to `max`
    CONFIG_SIZE,     // uint64_t, bytes, from `min` to `max` (0: no bound); with K, M, G or T
    CONFIG_CHOICE,   // an enum: the number of one of `choices`
    CONFIG_TEXT,     // char *
    CONFIG_PATH,     // char *, absolute
    CONFIG_ADDRESS,  // char *, of a listener (nbd-address.h)
    CONFIG_MODE,     // mode_t, octal
    CONFIG_USER,     // uid_t, by name or number; cleared: -1
    CONFIG_GROUP,    // gid_t, likewise
    CONFIG_USERS,    // GArray *, uid_t
    CONFIG_GROUPS,   // GArray *, gid_t
    CONFIG_RANGES,   // GArray *, AddressRange
    CONFIG_PATTERNS, // GPtrArray *, char *: of text, separated by ';'
} ConfigKind;

typedef struct ConfigType {
    ConfigKind kind;
    uint64_t min, max;
    const char *const *choices; // ends with NULL
} ConfigType;

// Sets *`value`, of the type's kind, and frees what it was; untouched on failure. -EINVAL with what
// follows a name: "is a number from 1 to 9, not '12'". Empty text is a mistake.
int config_value_parse(const ConfigType *type, const char *text, void *value, GError **error);
// Frees it, and leaves what stands for nothing: zeros, but for CONFIG_USER and CONFIG_GROUP.
void config_value_clear(const ConfigType *type, void *value);
// Of a value of that kind.
size_t config_value_bytes(const ConfigType *type);
// What it may be, in words; owned.
char *config_value_describe(const ConfigType *type);
