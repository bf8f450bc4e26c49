// SPDX-License-Identifier: LGPL-2.1-or-later
// One function for each kind.
#include "value.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/types.h>

#include "address-range.h"
#include "daemon/nbd-address.h"

G_STATIC_ASSERT(sizeof(uid_t) == sizeof(uint32_t) && sizeof(gid_t) == sizeof(uint32_t));

typedef bool ParseFn(const ConfigType *type, const char *text, void *value);

static bool parse_yes_no(const ConfigType *type, const char *text, void *value)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on"};
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        if (g_str_equal(text, words[i])) {
            *(bool *)value = i % 2;
            return true;
        }
    }
    return false;
}

static bool parse_number(const ConfigType *type, const char *text, void *value)
{
    guint64 n;
    if (!g_ascii_string_to_unsigned(text, 10, type->min, type->max, &n, NULL))
        return false;
    *(unsigned *)value = (unsigned)n;
    return true;
}

static bool parse_size(const ConfigType *type, const char *text, void *value)
{
    if (!g_ascii_isdigit(*text))
        return false;
    char *end = NULL;
    errno = 0;
    uint64_t n = g_ascii_strtoull(text, &end, 10);
    if (errno)
        return false;
    unsigned shift = 0;
    if (*end) {
        const char *units = "KMGT", *unit = strchr(units, g_ascii_toupper(*end));
        if (!unit || end[1])
            return false;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (n > UINT64_MAX >> shift || n << shift < type->min || (type->max && n << shift > type->max))
        return false;
    *(uint64_t *)value = n << shift;
    return true;
}

static bool parse_choice(const ConfigType *type, const char *text, void *value)
{
    for (unsigned i = 0; type->choices[i]; i++) {
        if (g_str_equal(text, type->choices[i])) {
            *(unsigned *)value = i;
            return true;
        }
    }
    return false;
}

static bool parse_text(const ConfigType *type, const char *text, void *value)
{
    char **string = value;
    g_free(*string);
    *string = g_strdup(text);
    return true;
}

static bool parse_path(const ConfigType *type, const char *text, void *value)
{
    return g_path_is_absolute(text) && parse_text(type, text, value);
}

static bool parse_address(const ConfigType *type, const char *text, void *value)
{
    g_auto(NbdAddress) address = {0};
    bool is_relative = !g_path_is_absolute(text) && (strchr(text, '/') || !strchr(text, ':'));
    return !is_relative && nbd_address_parse(text, &address, NULL) == 0 &&
           parse_text(type, text, value);
}

static bool parse_mode(const ConfigType *type, const char *text, void *value)
{
    guint64 mode;
    if (!g_ascii_string_to_unsigned(text, 8, 0, 0777, &mode, NULL))
        return false;
    *(mode_t *)value = (mode_t)mode;
    return true;
}

enum { ENTRY_BYTES = 1 << 20 }; // of a group, whose members are in it

// -1 as a number stands for nobody.
static bool parse_id(const char *text, uint32_t *ret_id)
{
    guint64 id;
    if (!g_ascii_string_to_unsigned(text, 10, 0, UINT32_MAX - 1, &id, NULL))
        return false;
    *ret_id = (uint32_t)id;
    return true;
}

static bool parse_user(const ConfigType *type, const char *text, void *value)
{
    g_autofree char *buffer = g_malloc(ENTRY_BYTES);
    struct passwd user, *found = NULL;
    if (parse_id(text, value))
        return true;
    if (getpwnam_r(text, &user, buffer, ENTRY_BYTES, &found) != 0 || !found)
        return false;
    *(uid_t *)value = user.pw_uid;
    return true;
}

static bool parse_group(const ConfigType *type, const char *text, void *value)
{
    g_autofree char *buffer = g_malloc(ENTRY_BYTES);
    struct group group, *found = NULL;
    if (parse_id(text, value))
        return true;
    if (getgrnam_r(text, &group, buffer, ENTRY_BYTES, &found) != 0 || !found)
        return false;
    *(gid_t *)value = group.gr_gid;
    return true;
}

static bool parse_range(const ConfigType *type, const char *text, void *value)
{
    return address_range_parse(text, value);
}

// Items of `size` bytes, between any of ';', ',' and spaces.
static bool parse_items(const ConfigType *type, const char *text, void *value, ParseFn *parse,
                        guint size)
{
    g_auto(GStrv) words = g_strsplit_set(text, ";, \t", -1);
    g_autoptr(GArray) items = g_array_new(false, true, size);
    for (char **word = words; *word; word++) {
        if (!**word)
            continue;
        g_array_set_size(items, items->len + 1);
        if (!parse(type, *word, items->data + (items->len - 1) * size))
            return false;
    }
    g_clear_pointer((GArray **)value, g_array_unref);
    *(GArray **)value = g_steal_pointer(&items);
    return true;
}

static bool parse_users(const ConfigType *type, const char *text, void *value)
{
    return parse_items(type, text, value, parse_user, sizeof(uid_t));
}

static bool parse_groups(const ConfigType *type, const char *text, void *value)
{
    return parse_items(type, text, value, parse_group, sizeof(gid_t));
}

static bool parse_ranges(const ConfigType *type, const char *text, void *value)
{
    return parse_items(type, text, value, parse_range, sizeof(AddressRange));
}

static bool parse_patterns(const ConfigType *type, const char *text, void *value)
{
    g_auto(GStrv) words = g_strsplit(text, ";", -1);
    GPtrArray *patterns = g_ptr_array_new_with_free_func(g_free);
    for (char **word = words; *word; word++)
        if (*g_strstrip(*word))
            g_ptr_array_add(patterns, g_strdup(*word));
    g_clear_pointer((GPtrArray **)value, g_ptr_array_unref);
    *(GPtrArray **)value = patterns;
    return true;
}

static ParseFn *const parsers[] = {
    [CONFIG_YES_NO] = parse_yes_no,   [CONFIG_NUMBER] = parse_number,
    [CONFIG_SIZE] = parse_size,       [CONFIG_CHOICE] = parse_choice,
    [CONFIG_TEXT] = parse_text,       [CONFIG_PATH] = parse_path,
    [CONFIG_ADDRESS] = parse_address, [CONFIG_MODE] = parse_mode,
    [CONFIG_USER] = parse_user,       [CONFIG_GROUP] = parse_group,
    [CONFIG_USERS] = parse_users,     [CONFIG_GROUPS] = parse_groups,
    [CONFIG_RANGES] = parse_ranges,   [CONFIG_PATTERNS] = parse_patterns,
};

static char *format_size(uint64_t bytes)
{
    static const char units[] = "KMGT";
    unsigned i = 0;
    while (bytes && bytes % 1024 == 0 && units[i]) {
        bytes /= 1024;
        i++;
    }
    return g_strdup_printf("%" G_GUINT64_FORMAT "%.1s", bytes, i ? &units[i - 1] : "");
}

static char *describe_choice(const ConfigType *type)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; type->choices[i]; i++)
        g_string_append_printf(text, "%s%s", i == 0 ? "" : (type->choices[i + 1] ? ", " : " or "),
                               type->choices[i]);
    return g_string_free(text, false);
}

char *config_value_describe(const ConfigType *type)
{
    switch (type->kind) {
    case CONFIG_YES_NO:
        return g_strdup("yes or no");
    case CONFIG_NUMBER:
        return g_strdup_printf("a number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                               type->min, type->max);
    case CONFIG_SIZE: {
        g_autofree char *min = format_size(type->min), *max = format_size(type->max);
        return type->max ? g_strdup_printf("a size from %s to %s, such as 64M", min, max)
                         : g_strdup_printf("a size of at least %s, such as 64M", min);
    }
    case CONFIG_CHOICE:
        return describe_choice(type);
    case CONFIG_TEXT:
        return g_strdup("a text");
    case CONFIG_PATH:
        return g_strdup("an absolute path");
    case CONFIG_ADDRESS:
        return g_strdup("an absolute path, HOST:PORT, [IPV6]:PORT or :PORT");
    case CONFIG_MODE:
        return g_strdup("a mode in octal, such as 0660");
    case CONFIG_USER:
        return g_strdup("a user of this machine, by name or number");
    case CONFIG_GROUP:
        return g_strdup("a group of this machine, by name or number");
    case CONFIG_USERS:
        return g_strdup("users of this machine, by name or number, such as 'alice; 1001'");
    case CONFIG_GROUPS:
        return g_strdup("groups of this machine, by name or number, such as 'kvm; 1001'");
    case CONFIG_RANGES:
        return g_strdup("ranges of addresses, such as '10.1.0.0/16; 2001:db8::1'");
    case CONFIG_PATTERNS:
        return g_strdup("patterns, separated by ';'");
    }
    g_assert_not_reached();
}

int config_value_parse(const ConfigType *type, const char *text, void *value, GError **error)
{
    if (*text && parsers[type->kind](type, text, value))
        return 0;
    g_autofree char *wanted = config_value_describe(type);
    g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, "is %s, not '%s'", wanted, text);
    return -EINVAL;
}

size_t config_value_bytes(const ConfigType *type)
{
    switch (type->kind) {
    case CONFIG_YES_NO:
        return sizeof(bool);
    case CONFIG_NUMBER:
    case CONFIG_CHOICE:
        return sizeof(unsigned);
    case CONFIG_SIZE:
        return sizeof(uint64_t);
    case CONFIG_MODE:
        return sizeof(mode_t);
    case CONFIG_USER:
    case CONFIG_GROUP:
        return sizeof(uid_t);
    case CONFIG_TEXT:
    case CONFIG_PATH:
    case CONFIG_ADDRESS:
    case CONFIG_USERS:
    case CONFIG_GROUPS:
    case CONFIG_RANGES:
    case CONFIG_PATTERNS:
        return sizeof(void *);
    }
    g_assert_not_reached();
}

void config_value_clear(const ConfigType *type, void *value)
{
    switch (type->kind) {
    case CONFIG_YES_NO:
        *(bool *)value = false;
        break;
    case CONFIG_NUMBER:
    case CONFIG_CHOICE:
        *(unsigned *)value = 0;
        break;
    case CONFIG_SIZE:
        *(uint64_t *)value = 0;
        break;
    case CONFIG_TEXT:
    case CONFIG_PATH:
    case CONFIG_ADDRESS:
        g_clear_pointer((char **)value, g_free);
        break;
    case CONFIG_MODE:
        *(mode_t *)value = 0;
        break;
    case CONFIG_USER:
    case CONFIG_GROUP:
        *(uint32_t *)value = UINT32_MAX;
        break;
    case CONFIG_USERS:
    case CONFIG_GROUPS:
    case CONFIG_RANGES:
        g_clear_pointer((GArray **)value, g_array_unref);
        break;
    case CONFIG_PATTERNS:
        g_clear_pointer((GPtrArray **)value, g_ptr_array_unref);
        break;
    }
}
