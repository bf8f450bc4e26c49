// SPDX-License-Identifier: LGPL-2.1-or-later
// GLib says what a value is, but neither on which line it stands nor that there are two. So the
// lines are found here, by GLib's rules: a comment begins with '#', a section's header with '[',
// all else is KEY=VALUE, and what is neither is a mistake.
#include "key-file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_BYTES = 4 << 20 };

void key_file_mistake(GPtrArray *mistakes, const char *path, unsigned number, const char *format,
                      ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    g_ptr_array_add(mistakes, number ? g_strdup_printf("%s:%u: %s", path, number, sentence)
                                     : g_strdup_printf("%s: %s", path, sentence));
}

static void line_free(gpointer p)
{
    KeyFileLine *line = p;
    g_free(line->group);
    g_free(line->key);
    g_free(line->value);
    g_free(line);
}

typedef struct Scan {
    const char *path;
    GPtrArray *mistakes;
    GPtrArray *lines; // KeyFileLine
    GHashTable *seen; // of these, by group and key
    char *group;      // that keys belong to now; NULL: none yet
    GString *right;   // the text of `lines`
} Scan;

static KeyFileLine *add(Scan *scan, const char *text, unsigned number)
{
    KeyFileLine *line = g_new0(KeyFileLine, 1);
    line->group = g_strdup(scan->group);
    line->number = number;
    g_ptr_array_add(scan->lines, line);
    g_string_append_printf(scan->right, "%s\n", text);
    return line;
}

static void scan_header(Scan *scan, const char *text, unsigned number)
{
    const char *end = strchr(text, ']');
    g_clear_pointer(&scan->group, g_free);
    scan->group = g_strndup(text + 1, end ? (gsize)(end - text - 1) : 0);
    if (!end || end[1] || !*scan->group || strchr(scan->group, '['))
        key_file_mistake(scan->mistakes, scan->path, number,
                         "'%s' is no section: write [NAME], alone on its line", text);
    else
        add(scan, text, number);
}

static guint hash_line(gconstpointer p)
{
    const KeyFileLine *line = p;
    return g_str_hash(line->group) * 31 + g_str_hash(line->key);
}

static gboolean equal_lines(gconstpointer p, gconstpointer q)
{
    const KeyFileLine *a = p, *b = q;
    return g_str_equal(a->group, b->group) && g_str_equal(a->key, b->key);
}

static void scan_key(Scan *scan, const char *text, unsigned number)
{
    const char *sign = strchr(text, '=');
    g_autofree char *key = g_strchomp(g_strndup(text, sign ? (gsize)(sign - text) : 0));
    if (!*key || strpbrk(key, "[] \t"))
        return key_file_mistake(scan->mistakes, scan->path, number,
                                "'%s' is no setting: write KEY = VALUE; comments begin with '#'",
                                text);
    if (!scan->group)
        return key_file_mistake(scan->mistakes, scan->path, number,
                                "'%s' belongs to no section: write a [NAME] above it", key);
    const KeyFileLine wanted = {.group = scan->group, .key = key};
    const KeyFileLine *same = g_hash_table_lookup(scan->seen, &wanted);
    if (same)
        return key_file_mistake(scan->mistakes, scan->path, number,
                                "'%s' is already set in line %u: remove one of the two", key,
                                same->number);
    KeyFileLine *line = add(scan, text, number);
    line->key = g_steal_pointer(&key);
    g_hash_table_add(scan->seen, line);
}

static void scan_lines(Scan *scan, const char *data)
{
    g_auto(GStrv) lines = g_strsplit(data, "\n", -1);
    for (unsigned i = 0; lines[i]; i++) {
        char *text = g_strstrip(lines[i]);
        if (*text == '[')
            scan_header(scan, text, i + 1);
        else if (*text && *text != '#')
            scan_key(scan, text, i + 1);
    }
}

static void read_values(Scan *scan)
{
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autoptr(GError) error = NULL;
    const GString *text = scan->right;
    if (text->len &&
        !g_key_file_load_from_data(file, text->str, text->len, G_KEY_FILE_NONE, &error))
        return key_file_mistake(scan->mistakes, scan->path, 0, "%s", error->message);
    for (guint i = 0; i < scan->lines->len; i++) {
        KeyFileLine *line = scan->lines->pdata[i];
        g_autoptr(GError) fault = NULL;
        if (!line->key)
            continue;
        g_autofree char *value = g_key_file_get_string(file, line->group, line->key, &fault);
        if (!fault)
            line->value = g_steal_pointer(&value);
        else
            key_file_mistake(scan->mistakes, scan->path, line->number,
                             "'%s' has a single backslash: write \\\\ for one", line->key);
    }
}

// Owned; NULL with a mistake. Who writes a pipe may never do so, and a device may have no end.
static char *read_text(const char *path, GPtrArray *mistakes, gsize *ret_len)
{
    g_autofree char *data = NULL;
    g_autoptr(GError) error = NULL;
    struct stat st;
    if (stat(path, &st) < 0 || access(path, R_OK) < 0)
        key_file_mistake(mistakes, path, 0, "cannot be read: %s", g_strerror(errno));
    else if (!S_ISREG(st.st_mode))
        key_file_mistake(mistakes, path, 0, "cannot be read: it is no regular file");
    else if (st.st_size > MAX_BYTES)
        key_file_mistake(mistakes, path, 0, "is larger than the %d MiB that chaind reads",
                         MAX_BYTES >> 20);
    else if (!g_file_get_contents(path, &data, ret_len, &error))
        key_file_mistake(mistakes, path, 0, "cannot be read: %s", error->message);
    return g_steal_pointer(&data);
}

GPtrArray *key_file_read(const char *path, GPtrArray *mistakes)
{
    gsize len = 0;
    g_autofree char *data = read_text(path, mistakes, &len);
    if (!data)
        return NULL;
    Scan scan = {
        .path = path,
        .mistakes = mistakes,
        .lines = g_ptr_array_new_with_free_func(line_free),
        .seen = g_hash_table_new(hash_line, equal_lines),
        .right = g_string_new(NULL),
    };
    if (!g_utf8_validate(data, (gssize)len, NULL))
        key_file_mistake(mistakes, path, 0, "this is not a text in UTF-8");
    else
        scan_lines(&scan, data);
    read_values(&scan);
    g_hash_table_unref(scan.seen);
    g_string_free(scan.right, true);
    g_free(scan.group);
    return scan.lines;
}
