// SPDX-License-Identifier: LGPL-2.1-or-later
// Lines of files become entries. Names that are not known are mistakes: one that was mistyped must
// not be passed over.
#include "config.h"

#include <fnmatch.h>
#include <string.h>

#include "daemon/ctl/near-word.h"
#include "key-file.h"

typedef struct Reading {
    Config *config;
    const char *path; // of config->paths
    GPtrArray *mistakes;
} Reading;

// -- life -----------------------------------------------------------------------------------------

static unsigned count_keys(const ConfigSection *section)
{
    unsigned n = 0;
    while (section->keys[n].name)
        n++;
    return n;
}

static guint hash_entry(gconstpointer p)
{
    const ConfigEntry *entry = p;
    return g_direct_hash(entry->section) ^ (entry->label ? g_str_hash(entry->label) : 0);
}

static gboolean equal_entries(gconstpointer p, gconstpointer q)
{
    const ConfigEntry *a = p, *b = q;
    return a->section == b->section && g_strcmp0(a->label, b->label) == 0;
}

static ConfigEntry *add_entry(Config *config, const ConfigSection *section, const char *label)
{
    unsigned n_keys = count_keys(section);
    ConfigEntry *entry = g_new(ConfigEntry, 1);
    *entry = (ConfigEntry){
        .section = section,
        .label = g_strdup(label),
        .values = g_malloc0(section->size),
        .texts = g_new0(char *, n_keys),
        .places = g_new0(ConfigPlace, n_keys),
    };
    settings_init(section, entry->values);
    g_ptr_array_add(config->entries, entry);
    g_hash_table_add(config->by_label, entry);
    if (label && strpbrk(label, "*?[\\"))
        g_ptr_array_add(config->patterns, entry);
    return entry;
}

static void entry_free(gpointer p)
{
    ConfigEntry *entry = p;
    settings_clear(entry->section, entry->values);
    for (unsigned i = 0; entry->section->keys[i].name; i++)
        g_free(entry->texts[i]);
    g_free(entry->label);
    g_free(entry->values);
    g_free(entry->texts);
    g_free(entry->places);
    g_free(entry);
}

static void remove_entry(Config *config, guint i)
{
    ConfigEntry *entry = config->entries->pdata[i];
    g_hash_table_remove(config->by_label, entry);
    g_ptr_array_remove(config->patterns, entry);
    g_ptr_array_remove_index(config->entries, i);
}

Config *config_new(void)
{
    Config *config = g_new(Config, 1);
    config->paths = g_ptr_array_new_with_free_func(g_free);
    config->entries = g_ptr_array_new_with_free_func(entry_free);
    config->by_label = g_hash_table_new(hash_entry, equal_entries);
    config->patterns = g_ptr_array_new();
    for (unsigned i = 0; settings_sections[i]; i++)
        if (!settings_sections[i]->label)
            add_entry(config, settings_sections[i], NULL);
    return config;
}

void config_free(Config *config)
{
    if (!config)
        return;
    g_hash_table_unref(config->by_label);
    g_ptr_array_unref(config->patterns);
    g_ptr_array_unref(config->entries);
    g_ptr_array_unref(config->paths);
    g_free(config);
}

const ConfigEntry *config_find(const Config *config, const ConfigSection *section,
                               const char *label)
{
    const ConfigEntry wanted = {.section = section, .label = (char *)label};
    return g_hash_table_lookup(config->by_label, &wanted);
}

static unsigned key_index(const ConfigSection *section, const char *name)
{
    return (unsigned)(settings_find_key(section, name) - section->keys);
}

const ConfigPlace *config_place(const ConfigEntry *entry, const char *key)
{
    const ConfigPlace *place = &entry->places[key_index(entry->section, key)];
    return place->path ? place : &entry->place;
}

bool config_has(const Config *config, const ConfigSection *section)
{
    for (guint i = 0; i < config->entries->len; i++)
        if (((const ConfigEntry *)config->entries->pdata[i])->section == section)
            return true;
    return false;
}

void config_add(Config *config, const ConfigSection *section, const char *label, const char *key,
                const char *text)
{
    ConfigEntry *entry = (ConfigEntry *)config_find(config, section, label);
    unsigned i = key_index(section, key);
    if (!entry)
        entry = add_entry(config, section, label);
    entry->texts[i] = g_strdup(text);
    config_value_parse(section->keys[i].type, text,
                       settings_value(&section->keys[i], entry->values), NULL);
}

static void borrow_values(const ConfigEntry *entry, void *values)
{
    const ConfigKey *keys = entry->section->keys;
    for (unsigned i = 0; keys[i].name; i++)
        if (entry->texts[i])
            memcpy(settings_value(&keys[i], values), settings_value(&keys[i], entry->values),
                   config_value_bytes(keys[i].type));
}

// The values are the entries': every kind of value can be borrowed by copying its bytes.
void config_resolve(const Config *config, const ConfigSection *section, const char *name,
                    void *ret_values)
{
    const ConfigEntry *exact = config_find(config, section, name);
    memset(ret_values, 0, section->size);
    for (guint i = 0; i < config->patterns->len; i++) {
        const ConfigEntry *entry = config->patterns->pdata[i];
        if (entry->section == section && entry != exact && fnmatch(entry->label, name, 0) == 0)
            borrow_values(entry, ret_values);
    }
    if (exact)
        borrow_values(exact, ret_values);
}

// -- comparing ------------------------------------------------------------------------------------

// `other`: the section of the same name in the other configuration, or NULL.
static void compare_entry(const ConfigEntry *entry, const ConfigEntry *other, bool is_now,
                          GArray *changes)
{
    const ConfigKey *keys = entry->section->keys;
    for (unsigned i = 0; keys[i].name; i++) {
        if (g_strcmp0(entry->texts[i], other ? other->texts[i] : NULL) == 0)
            continue;
        ConfigChange change = {entry->section, entry->label, &keys[i],
                               is_now && entry->texts[i] ? config_place(entry, keys[i].name)
                                                         : NULL};
        g_array_append_val(changes, change);
    }
}

GArray *config_compare(const Config *before, const Config *now)
{
    GArray *changes = g_array_new(false, false, sizeof(ConfigChange));
    for (guint i = 0; i < now->entries->len; i++) {
        const ConfigEntry *entry = now->entries->pdata[i];
        compare_entry(entry, config_find(before, entry->section, entry->label), true, changes);
    }
    for (guint i = 0; i < before->entries->len; i++) {
        const ConfigEntry *entry = before->entries->pdata[i];
        if (!config_find(now, entry->section, entry->label))
            compare_entry(entry, NULL, false, changes);
    }
    return changes;
}

// -- names ----------------------------------------------------------------------------------------

static void consider(const char *typed, const char *candidate, const char **near, unsigned *least)
{
    unsigned slips = near_word(typed, candidate);
    if (slips < *least) {
        *least = slips;
        *near = candidate;
    }
}

static void refuse_section(const Reading *reading, const KeyFileLine *line, const char *name)
{
    const char *near = NULL;
    unsigned least = NEAR_WORD_FAR;
    g_autoptr(GString) all = g_string_new(NULL);
    for (unsigned i = 0; settings_sections[i]; i++) {
        consider(name, settings_sections[i]->name, &near, &least);
        g_string_append_printf(all, "%s%s", i ? ", " : "", settings_sections[i]->name);
    }
    if (near)
        key_file_mistake(reading->mistakes, reading->path, line->number,
                         "there is no section '%s': did you mean '%s'?", name, near);
    else
        key_file_mistake(reading->mistakes, reading->path, line->number,
                         "there is no section '%s': there are %s", name, all->str);
}

static void refuse_key(const Reading *reading, const KeyFileLine *line,
                       const ConfigSection *section)
{
    const char *near = NULL;
    unsigned least = NEAR_WORD_FAR;
    for (const ConfigKey *key = section->keys; key->name; key++)
        consider(line->key, key->name, &near, &least);
    if (near)
        key_file_mistake(reading->mistakes, reading->path, line->number,
                         "[%s] has no '%s': did you mean '%s'?", section->name, line->key, near);
    else
        key_file_mistake(reading->mistakes, reading->path, line->number,
                         "[%s] has no '%s': chaind.conf(5) lists what there is", section->name,
                         line->key);
}

// -- lines ----------------------------------------------------------------------------------------

static const ConfigSection *find_section(const char *name)
{
    for (unsigned i = 0; settings_sections[i]; i++)
        if (g_str_equal(settings_sections[i]->name, name))
            return settings_sections[i];
    return NULL;
}

// NULL: a mistake.
static ConfigEntry *take_header(const Reading *reading, const KeyFileLine *line)
{
    g_autofree char *group = g_strstrip(g_strdup(line->group));
    size_t len = strcspn(group, " \t");
    g_autofree char *name = g_strndup(group, len);
    g_autofree char *label = g_strstrip(g_strdup(group + len));
    const ConfigSection *section = find_section(name);
    if (!section) {
        refuse_section(reading, line, name);
        return NULL;
    }
    if (!section->label != !*label) {
        key_file_mistake(reading->mistakes, reading->path, line->number,
                         section->label ? "'%s' needs a name: write [%s %s]"
                                        : "there is one section '%s': write [%s]",
                         name, name, section->label);
        return NULL;
    }
    const char *wanted = *label ? label : NULL;
    ConfigEntry *entry = (ConfigEntry *)config_find(reading->config, section, wanted);
    if (!entry)
        entry = add_entry(reading->config, section, wanted);
    if (!entry->place.path)
        entry->place = (ConfigPlace){reading->path, line->number};
    return entry;
}

// An empty value takes back what was said before.
static void take_key(const Reading *reading, const KeyFileLine *line, ConfigEntry *entry)
{
    const ConfigSection *section = entry->section;
    const ConfigKey *key = settings_find_key(section, line->key);
    if (!key)
        return refuse_key(reading, line, section);
    if (!line->value)
        return; // a mistake
    void *value = settings_value(key, entry->values);
    const char *text = *line->value ? line->value : key->fallback;
    g_autoptr(GError) error = NULL;
    if (!text)
        config_value_clear(key->type, value);
    else if (config_value_parse(key->type, text, value, &error) < 0)
        return key_file_mistake(reading->mistakes, reading->path, line->number, "'%s' %s%s",
                                key->name, error->message,
                                strchr(text, '#') ? "; a comment has a line of its own" : "");
    unsigned i = (unsigned)(key - section->keys);
    g_free(entry->texts[i]);
    entry->texts[i] = *line->value ? g_strdup(line->value) : NULL;
    entry->places[i] = (ConfigPlace){reading->path, line->number};
}

static void read_file(Config *config, const char *path, GPtrArray *mistakes)
{
    g_ptr_array_add(config->paths, g_strdup(path));
    Reading reading = {config, config->paths->pdata[config->paths->len - 1], mistakes};
    g_autoptr(GPtrArray) lines = key_file_read(path, mistakes);
    ConfigEntry *entry = NULL;
    for (guint i = 0; lines && i < lines->len; i++) {
        const KeyFileLine *line = lines->pdata[i];
        if (!line->key)
            entry = take_header(&reading, line);
        else if (entry)
            take_key(&reading, line, entry);
    }
}

// -- what holds between keys ----------------------------------------------------------------------

// NULL: none of those before entry `n` has the same value of what it needs.
static const ConfigEntry *find_double(const Config *config, guint n, unsigned key)
{
    const ConfigEntry *entry = config->entries->pdata[n];
    for (guint i = 0; i < n; i++) {
        const ConfigEntry *other = config->entries->pdata[i];
        if (other->section == entry->section &&
            g_strcmp0(other->texts[key], entry->texts[key]) == 0)
            return other;
    }
    return NULL;
}

// False: it was taken back.
static bool check_need(const Config *config, guint n, GPtrArray *mistakes)
{
    const ConfigEntry *entry = config->entries->pdata[n];
    const char *needs = entry->section->needs;
    unsigned key = key_index(entry->section, needs);
    const ConfigPlace *place = entry->places[key].path ? &entry->places[key] : &entry->place;
    if (!entry->texts[key]) {
        if (!entry->places[key].path)
            key_file_mistake(mistakes, place->path, place->line, "[%s %s] needs '%s'",
                             entry->section->name, entry->label, needs);
        return !entry->places[key].path;
    }
    const ConfigEntry *other = find_double(config, n, key);
    if (other)
        key_file_mistake(mistakes, place->path, place->line,
                         "[%s %s] has the '%s' of [%s %s]: remove one of the two",
                         entry->section->name, entry->label, needs, entry->section->name,
                         other->label);
    return true;
}

static void check_keys(const ConfigEntry *entry, GPtrArray *mistakes)
{
    const char *name = NULL;
    g_autoptr(GError) error = NULL;
    if (!entry->section->check || entry->section->check(entry->values, &name, &error) == 0)
        return;
    const ConfigPlace *place = &entry->places[key_index(entry->section, name)];
    key_file_mistake(mistakes, place->path, place->line, "%s", error->message);
}

// What a key names must be there.
static void check_names(const Config *config, const ConfigEntry *entry, GPtrArray *mistakes)
{
    const ConfigKey *keys = entry->section->keys;
    for (unsigned i = 0; keys[i].name; i++) {
        const ConfigSection *wanted = entry->texts[i] ? keys[i].names : NULL;
        if (wanted && !config_find(config, wanted, entry->texts[i]))
            key_file_mistake(mistakes, entry->places[i].path, entry->places[i].line,
                             "'%s': there is no [%s %s]", keys[i].name, wanted->name,
                             entry->texts[i]);
    }
}

static void check_entries(Config *config, GPtrArray *mistakes)
{
    for (guint i = 0; i < config->entries->len;) {
        ConfigEntry *entry = config->entries->pdata[i];
        if (entry->section->needs && !check_need(config, i, mistakes)) {
            remove_entry(config, i);
            continue;
        }
        check_keys(entry, mistakes);
        check_names(config, entry, mistakes);
        i++;
    }
}

// -- files ----------------------------------------------------------------------------------------

static int compare_paths(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void find_drop_ins(const char *dir_path, GPtrArray *paths, GPtrArray *mistakes)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GDir) dir = g_dir_open(dir_path, 0, &error);
    if (!dir && !g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOENT))
        g_ptr_array_add(mistakes, g_strdup(error->message));
    for (const char *name; dir && (name = g_dir_read_name(dir));)
        if (g_str_has_suffix(name, ".conf") && *name != '.')
            g_ptr_array_add(paths, g_build_filename(dir_path, name, NULL));
    g_ptr_array_sort(paths, compare_paths);
}

Config *config_read(const char *path, bool is_optional, GPtrArray *mistakes)
{
    Config *config = config_new();
    g_autofree char *dir_path = g_strconcat(path, ".d", NULL);
    g_autoptr(GPtrArray) drop_ins = g_ptr_array_new_with_free_func(g_free);
    find_drop_ins(dir_path, drop_ins, mistakes);
    if (!is_optional || g_file_test(path, G_FILE_TEST_EXISTS))
        read_file(config, path, mistakes);
    for (guint i = 0; i < drop_ins->len; i++)
        read_file(config, drop_ins->pdata[i], mistakes);
    if (!mistakes->len) // else what they say is not known
        check_entries(config, mistakes);
    return config;
}
