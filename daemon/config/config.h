// SPDX-License-Identifier: LGPL-2.1-or-later
// The configuration, as its files say it: FILE, then FILE.d/*.conf in the order of their names, of
// which a later one wins, key by key. Reading blocks. It does not change once it is read.
#pragma once

#include "settings.h"

// Where something was said. Borrowed from the configuration.
typedef struct ConfigPlace {
    const char *path; // NULL: nowhere
    unsigned line;
} ConfigPlace;

// One section, put together from all files.
typedef struct ConfigEntry {
    const ConfigSection *section;
    char *label; // NULL: it has none
    ConfigPlace place;
    void *values;        // of the section's struct
    char **texts;        // of each key of its table, as it was said; NULL: it was not
    ConfigPlace *places; // likewise
} ConfigEntry;

typedef struct Config {
    GPtrArray *paths;   // char *: the files that were read, in their order
    GPtrArray *entries; // ConfigEntry, in the order in which they came
    // Of these: all, by section and label; and those whose labels are patterns.
    GHashTable *by_label;
    GPtrArray *patterns;
} Config;

// Nothing is said.
Config *config_new(void);
// `path` may be absent if `is_optional`; its drop-ins are read all the same. Mistakes (char *) are
// sentences that name file and line; with any, what was understood is returned all the same.
Config *config_read(const char *path, bool is_optional, GPtrArray *mistakes);
void config_free(Config *config); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Config, config_free)

// NULL: nobody said anything in such a section; `label` NULL for a section without one, which is
// always there.
const ConfigEntry *config_find(const Config *config, const ConfigSection *section,
                               const char *label);
// What holds for `name` in a kind of section whose labels are patterns, key by key: of the section
// that is the name itself, else of the last one that matches and says the key, else zeros. Into the
// section's struct, whose values are borrowed.
void config_resolve(const Config *config, const ConfigSection *section, const char *name,
                    void *ret_values);
// Where the key was said, or else where the section begins; nowhere for one that no file has.
const ConfigPlace *config_place(const ConfigEntry *entry, const char *key);
bool config_has(const Config *config, const ConfigSection *section);
// One more section, which no file has, with a value that is right.
void config_add(Config *config, const ConfigSection *section, const char *label, const char *key,
                const char *text);
// A key that two configurations do not say alike.
typedef struct ConfigChange {
    const ConfigSection *section;
    const char *label;
    const ConfigKey *key;
    const ConfigPlace *place; // of what holds now; NULL: no file says it
} ConfigChange;
// Owned, of ConfigChange; borrows from both.
GArray *config_compare(const Config *before, const Config *now);
static inline const DaemonSettings *config_daemon(const Config *config)
{
    return config_find(config, &settings_daemon, NULL)->values;
}
