// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads one key after the other into nested objects, and then makes arrays of those whose members
// are numbers. Pure.
#include "keyval.h"

#include <errno.h>
#include <string.h>

#include "error.h"
#include "framing.h"

enum { MAX_KEY = 127 };

// Like "driver", "l2-cache-size", "x_1"; or a number.
static bool is_fragment(const char *text, size_t len)
{
    if (len == 0 || (!g_ascii_isalpha(*text) && strspn(text, G_CSET_DIGITS) < len))
        return false;
    return strspn(text, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-_") >= len;
}

static bool is_index(const char *text)
{
    return g_ascii_isdigit(*text);
}

static int fail_key(const char *key, size_t len, GError **error)
{
    g_autofree char *shown = g_strndup(key, len);
    return qmp_fail(error, "Invalid parameter '%s'", shown);
}

static int fail_mixed(const char *key, size_t len, GError **error)
{
    g_autofree char *shown = g_strndup(key, len);
    return qmp_fail(error, "Parameters '%s.*' used inconsistently", shown);
}

// Puts `value` where the dots of `key` lead to.
static int put(json_t *root, const char *key, const char *value, GError **error)
{
    size_t key_len = strlen(key);
    if (key_len > MAX_KEY)
        return fail_key(key, key_len, error);
    json_t *object = root;
    for (const char *at = key;;) {
        size_t len = strcspn(at, ".");
        if (!is_fragment(at, len) || (at == key && is_index(at)))
            return fail_key(key, key_len, error);
        g_autofree char *name = g_strndup(at, len);
        json_t *there = json_object_get(object, name);
        bool is_last = !at[len];
        if (there && json_is_object(there) == is_last)
            return fail_mixed(key, (size_t)(at - key) + len, error);
        if (is_last)
            return json_object_set_new(object, name, json_string(value)) < 0
                       ? qmp_fail(error, "Parameter '%s' is not valid UTF-8", key)
                       : 0;
        if (!there) {
            there = json_object();
            json_object_set_new(object, name, there);
        }
        object = there;
        at += len + 1;
    }
}

// Takes "key=value" off `*text`, with the comma behind it.
static int take_pair(json_t *root, const char **text, const char *implied_key, GError **error)
{
    const char *at = *text;
    size_t key_len = strcspn(at, "=,");
    g_autofree char *key = NULL;
    if (at[key_len] == '=') {
        key = g_strndup(at, key_len);
        at += key_len + 1;
    } else if (implied_key && key_len) {
        key = g_strdup(implied_key);
    } else {
        key = g_strndup(at, key_len);
        return key_len ? qmp_fail(error, "Expected '=' after parameter '%s'", key)
                       : fail_key(at, 0, error);
    }
    g_autoptr(GString) value = g_string_new(NULL);
    for (; *at && (*at != ',' || at[1] == ','); at++) {
        at += *at == ',';
        g_string_append_c(value, *at);
    }
    *text = at + (*at == ',');
    return put(root, key, value->str, error);
}

static int compare_indices(const void *a, const void *b)
{
    guint64 x = g_ascii_strtoull(*(char *const *)a, NULL, 10);
    guint64 y = g_ascii_strtoull(*(char *const *)b, NULL, 10);
    return x < y ? -1 : x > y;
}

// The array that `object` means, or NULL with the reason. `path`: of the object.
static json_t *make_array(json_t *object, const char *path, GError **error)
{
    g_autoptr(GPtrArray) indices = g_ptr_array_new();
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) g_ptr_array_add(indices, (gpointer)name);
    g_ptr_array_sort(indices, compare_indices);
    json_t *array = json_array();
    for (guint i = 0; i < indices->len; i++) {
        if (g_ascii_strtoull(indices->pdata[i], NULL, 10) != i) {
            json_decref(array);
            qmp_fail(error, "Parameter '%s.%u' missing", path, i);
            return NULL;
        }
        json_array_append(array, json_object_get(object, indices->pdata[i]));
    }
    return array;
}

// Makes arrays of the objects below `object`, innermost first.
static int make_arrays(json_t *object, const char *path, GError **error)
{
    const char *name;
    void *next;
    json_t *value;
    json_object_foreach_safe(object, next, name, value)
    {
        if (!json_is_object(value))
            continue;
        g_autofree char *inner = g_strdup_printf("%s%s%s", path, *path ? "." : "", name);
        int r = make_arrays(value, inner, error);
        if (r < 0)
            return r;
        size_t n_indices = 0;
        const char *member;
        json_t *unused;
        json_object_foreach(value, member, unused) n_indices += is_index(member);
        if (n_indices == 0)
            continue;
        if (n_indices < json_object_size(value))
            return fail_mixed(inner, strlen(inner), error);
        json_t *array = make_array(value, inner, error);
        if (!array)
            return -EINVAL;
        json_object_set_new(object, name, array);
    }
    return 0;
}

static json_t *parse_json(const char *text, GError **error)
{
    QmpFraming framing;
    json_t *value = NULL;
    size_t len = strlen(text);
    qmp_framing_init(&framing);
    QmpFrame frame = qmp_framing_take(&framing, &text, &len, &value, error);
    qmp_framing_done(&framing);
    if (frame == QMP_FRAME_BAD || (frame == QMP_FRAME_VALUE && !text[strspn(text, " \t\r\n")]))
        return value;
    json_decref(value);
    qmp_fail(error, "JSON parse error, expecting value");
    return NULL;
}

json_t *qmp_keyval_parse(const char *text, const char *implied_key, QmpInput *ret_input,
                         GError **error)
{
    *ret_input = *text == '{' ? QMP_INPUT_JSON : QMP_INPUT_KEYVAL;
    if (*text == '{')
        return parse_json(text, error);
    json_t *root = json_object();
    int r = 0;
    for (; r == 0 && *text; implied_key = NULL)
        r = take_pair(root, &text, implied_key, error);
    if (r == 0)
        r = make_arrays(root, "", error);
    if (r == 0)
        return root;
    json_decref(root);
    return NULL;
}

char *qmp_keyval_expand(const char *text)
{
    GString *all = g_string_new(NULL);
    while (*text) {
        // Up to the next comma that is not doubled.
        size_t len = 0;
        while (text[len] && (text[len] != ',' || text[len + 1] == ','))
            len += text[len] == ',' ? 2 : 1;
        bool is_flag = all->len && !memchr(text, '=', len);
        bool is_off = is_flag && len > 2 && g_str_has_prefix(text, "no");
        if (all->len)
            g_string_append_c(all, ',');
        g_string_append_len(all, text + (is_off ? 2 : 0), (gssize)len - (is_off ? 2 : 0));
        if (is_flag)
            g_string_append(all, is_off ? "=off" : "=on");
        text += len + (text[len] == ',');
    }
    return g_string_free(all, false);
}
