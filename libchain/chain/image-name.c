// SPDX-License-Identifier: LGPL-2.1-or-later
// A name with a colon before its first slash may be a protocol. The ones QEMU knows are refused by
// name, and so is whatever looks like a URL; any other colon is part of a file's name. Names come
// from images that nobody vouches for: what is not understood is refused, never guessed. Pure.
#include "chain/image-name.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/driver.h"

void image_name_clear(ImageName *name)
{
    g_free(name->path);
    if (name->backing)
        image_name_clear(name->backing);
    g_free(name->backing);
    g_strfreev(name->options);
    *name = (ImageName){0};
}

int image_format_parse(const char *format, const char **ret_format, GError **error)
{
    static const char *const of_files[] = {"file", "host_device", NULL};
    const Driver *driver = driver_find(g_strv_contains(of_files, format) ? "raw" : format);
    if (!driver) {
        g_autofree char *names = drivers_names();
        return error_set(error, -ENOTSUP, "the format '%s' is not supported, only %s", format,
                         names);
    }
    *ret_format = driver->name;
    return 0;
}

char *image_name_beside(const char *beside, const char *name)
{
    const char *slash = strrchr(beside, '/');
    if (!slash || name[0] == '/')
        return g_strdup(name);
    return g_strdup_printf("%.*s%s", (int)(slash + 1 - beside), beside, name);
}

static bool is_foreign_protocol(const char *text, size_t len)
{
    static const char *const known[] = {
        "blkdebug", "blklogwrites", "blkreplay",    "blkverify",   "fat",          "ftp",
        "ftps",     "gluster",      "gluster+rdma", "gluster+tcp", "gluster+unix", "host_cdrom",
        "http",     "https",        "iscsi",        "iser",        "nbd",          "nbd+tcp",
        "nbd+unix", "nfs",          "null-aio",     "null-co",     "nvme",         "rbd",
        "sheepdog", "ssh",          "vitastor",     "vxhs",
    };
    if (g_str_has_prefix(text + len, "://"))
        return true;
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (strlen(known[i]) == len && strncmp(text, known[i], len) == 0)
            return true;
    }
    return false;
}

// -- json: ----------------------------------------------------------------------------------

// The object at `key`, with what is written flat beside it ("key.name": …) put in. A new reference;
// NULL when there is neither.
static json_t *json_child(json_t *object, const char *key)
{
    json_t *nested = json_object_get(object, key);
    json_t *child = json_is_object(nested) ? json_copy(nested) : NULL;
    size_t len = strlen(key);
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        if (strncmp(name, key, len) != 0 || name[len] != '.')
            continue;
        if (!child)
            child = json_object();
        json_object_set(child, name + len + 1, value);
    }
    return child;
}

// Options of QEMU that say how, not what, to read.
static bool is_harmless_option(const char *name)
{
    static const char *const harmless[] = {
        "aio",
        "aio-max-batch",
        "auto-read-only",
        "cache",
        "cache-clean-interval",
        "cache-size",
        "detect-zeroes",
        "discard",
        "discard-no-unref",
        "drop-cache",
        "force-share",
        "l2-cache-entry-size",
        "l2-cache-size",
        "lazy-refcounts",
        "locking",
        "node-name",
        "overlap-check",
        "pass-discard-other",
        "pass-discard-request",
        "pass-discard-snapshot",
        "refcount-cache-size",
        "x-check-cache-dropped",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(harmless); i++) {
        if (g_str_equal(name, harmless[i]))
            return true;
    }
    return g_str_has_prefix(name, "cache.") || g_str_has_prefix(name, "overlap-check.");
}

static int parse_read_only(json_t *value, ImageName *name, GError **error)
{
    const char *text = json_string_value(value);
    if (json_is_true(value) || g_strcmp0(text, "on") == 0)
        name->is_read_only = true;
    else if (!json_is_false(value) && g_strcmp0(text, "off") != 0)
        return error_set(error, -EINVAL, "\"read-only\" of a json: name must be true or false");
    return 0;
}

// Takes "read-only", passes what is harmless, in `understood` or in `own`, refuses the rest.
static bool is_among(const char *const *names, const char *name, size_t len)
{
    for (; names && *names; names++) {
        if (strlen(*names) == len && strncmp(*names, name, len) == 0)
            return true;
    }
    return false;
}

static int check_options(json_t *object, const char *const *understood, const char *const *own,
                         ImageName *image_name, GError **error)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        size_t len = strcspn(name, ".");
        if (g_str_equal(name, "read-only")) {
            int r = parse_read_only(value, image_name, error);
            if (r < 0)
                return r;
            continue;
        }
        if (!is_harmless_option(name) && !is_among(understood, name, len) &&
            !is_among(own, name, len))
            return error_set(error, -ENOTSUP, "the option '%s' of a json: name is not supported",
                             name);
    }
    return 0;
}

static int parse_json_file(json_t *object, const char *driver, ImageName *name, GError **error)
{
    static const char *const understood[] = {"driver", "filename", NULL};
    if (driver && !g_str_equal(driver, "file") && !g_str_equal(driver, "host_device"))
        return error_set(error, -ENOTSUP,
                         "the driver '%s' of a json: name is not supported, only qcow2, raw, file "
                         "and host_device",
                         driver);
    int r = check_options(object, understood, NULL, name, error);
    if (r < 0)
        return r;
    const char *path = json_string_value(json_object_get(object, "filename"));
    if (!path || !*path)
        return error_set(error, -EINVAL, "the json: name has no \"filename\"");
    name->path = g_strdup(path);
    return 0;
}

// Where in a json: name: recursion is bounded in both directions, since flat names ("file.file.…")
// nest without a brace.
typedef struct Place {
    unsigned layer; // "backing" steps from the outermost object
    unsigned depth; // "file" steps from its layer's object
} Place;

enum { MAX_NESTING = 24 }; // a name of 1,023 bytes holds fewer layers
enum { MAX_DEPTH = 4 };    // formats over each other; one raw between format and file makes sense

static int parse_json_object(json_t *object, Place place, ImageName *name, GError **error);

// Keeps the driver's own options as text, for the driver to understand.
static int take_driver_options(json_t *object, const Driver *driver, ImageName *name,
                               GError **error)
{
    g_autoptr(GPtrArray) pairs = g_ptr_array_new_with_free_func(g_free);
    for (const char *const *option = driver->options; option && *option; option++) {
        json_t *value = json_object_get(object, *option);
        if (!value)
            continue;
        g_autofree char *number =
            json_is_integer(value)
                ? g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value))
                : NULL;
        const char *text = number ?: json_string_value(value);
        if (!text)
            return error_set(error, -EINVAL,
                             "\"%s\" of a json: name is neither a number nor a string", *option);
        g_ptr_array_add(pairs, g_strdup(*option));
        g_ptr_array_add(pairs, g_strdup(text));
    }
    if (!pairs->len)
        return 0;
    g_ptr_array_add(pairs, NULL);
    name->options = (char **)g_ptr_array_steal(pairs, NULL);
    return 0;
}

// "backing" replaces what the image's header says. Only the layer's own object can have one.
static int parse_json_backing(json_t *object, const Driver *driver, Place place, ImageName *name,
                              GError **error)
{
    json_t *value = json_object_get(object, "backing");
    if (json_is_string(value))
        return error_set(error, -ENOTSUP,
                         "\"backing\" of a json: name that names a node is not supported");
    if (json_is_null(value)) {
        name->is_backing_cut = true;
        return 0;
    }
    json_t *child = json_child(object, "backing");
    if (!child)
        return value ? error_set(error, -EINVAL, "\"backing\" of a json: name is no object") : 0;
    int r;
    if (place.depth > 0 || (driver && !driver->has_backing)) {
        r = error_set(error, -EINVAL, "a json: name gives a backing file to a %s image",
                      driver ? driver->name : "raw");
    } else if (place.layer == MAX_NESTING) {
        r = error_set(error, -EINVAL, "the json: name is nested too deeply");
    } else {
        name->backing = g_new0(ImageName, 1);
        r = parse_json_object(child, (Place){.layer = place.layer + 1}, name->backing, error);
    }
    json_decref(child);
    return r;
}

static int parse_json_format(json_t *object, const Driver *driver, Place place, ImageName *name,
                             GError **error)
{
    static const char *const of_all[] = {"driver", "file", "backing", NULL};
    bool is_layer = driver && place.depth == 0; // not one that a format lies in
    int r = check_options(object, of_all, is_layer ? driver->options : NULL, name, error);
    if (r == 0 && is_layer)
        r = take_driver_options(object, driver, name, error);
    if (r == 0)
        r = parse_json_backing(object, driver, place, name, error);
    if (r < 0)
        return r;
    if (is_layer)
        name->format = driver->name;
    else if (driver && driver->probe) // only what is nothing of itself may lie under a format
        return error_set(error, -ENOTSUP, "a %s image inside an image is not supported",
                         driver->name);
    json_t *file = place.depth < MAX_DEPTH ? json_child(object, "file") : NULL;
    if (!file)
        return error_set(error, -EINVAL, "the json: name has no \"file\"");
    place.depth++;
    r = parse_json_object(file, place, name, error);
    json_decref(file);
    return r;
}

static int parse_json_object(json_t *object, Place place, ImageName *name, GError **error)
{
    json_t *driver_value = json_object_get(object, "driver");
    const char *driver = json_string_value(driver_value);
    if (driver_value && !driver)
        return error_set(error, -EINVAL, "the \"driver\" of a json: name is not a string");
    const Driver *format = driver ? driver_find(driver) : NULL;
    bool is_format = format || (!driver && !json_object_get(object, "filename"));
    return is_format ? parse_json_format(object, format, place, name, error)
                     : parse_json_file(object, driver, name, error);
}

// The parser recurses, and so does what reads its result: deep nesting must not reach them.
static bool is_nested_deeply(const char *text)
{
    int depth = 0;
    for (bool in_string = false; *text; text++) {
        if (in_string && *text == '\\' && text[1])
            text++;
        else if (*text == '"')
            in_string = !in_string;
        else if (!in_string && (*text == '{' || *text == '['))
            depth++;
        else if (!in_string && (*text == '}' || *text == ']'))
            depth--;
        if (depth > MAX_NESTING)
            return true;
    }
    return false;
}

// QEMU's parser takes strings in single quotes as well, and \' in both kinds
// (qobject/json-lexer.c). The same text with double quotes only; owned.
static char *with_double_quotes(const char *text)
{
    GString *out = g_string_new(NULL);
    char quote = 0; // of the string around `text`; 0: outside of any
    for (; *text; text++) {
        if (quote && *text == '\\' && text[1]) {
            text++;
            if (*text != '\'') // strict JSON has no such escape, and needs none
                g_string_append_c(out, '\\');
            g_string_append_c(out, *text);
        } else if (quote ? *text == quote : *text == '"' || *text == '\'') {
            quote = quote ? 0 : *text;
            g_string_append_c(out, '"');
        } else {
            if (*text == '"') // plain inside single quotes
                g_string_append_c(out, '\\');
            g_string_append_c(out, *text);
        }
    }
    return g_string_free(out, FALSE);
}

static int parse_json(const char *text, ImageName *name, GError **error)
{
    g_autofree char *strict = with_double_quotes(text);
    if (is_nested_deeply(strict))
        return error_set(error, -EINVAL, "the json: name is nested too deeply");
    json_error_t where;
    json_t *object = json_loads(strict, JSON_REJECT_DUPLICATES, &where);
    if (!object)
        return error_set(error, -EINVAL, "the json: name is not valid JSON: %s", where.text);
    int r = json_is_object(object)
                ? parse_json_object(object, (Place){0}, name, error)
                : error_set(error, -EINVAL, "the json: name is not a JSON object");
    json_decref(object);
    return r;
}

// -- all names --------------------------------------------------------------------------------

static int parse_plain(const char *text, const char *overlay, ImageName *name, GError **error)
{
    static const char *const of_files[] = {"file:", "host_device:"};
    size_t len = strcspn(text, ":/");
    bool is_bare = true;
    for (size_t i = 0; i < G_N_ELEMENTS(of_files) && is_bare; i++) {
        is_bare = !g_str_has_prefix(text, of_files[i]);
        if (!is_bare)
            text += strlen(of_files[i]); // all of the rest is the path: file:///x is ///x
    }
    if (is_bare && text[len] == ':' && is_foreign_protocol(text, len))
        return error_set(error, -ENOTSUP, "the protocol '%.*s' is not supported, only files",
                         (int)len, text);
    if (!*text)
        return error_set(error, -EINVAL, "the image's name is empty");
    name->path = is_bare && overlay ? image_name_beside(overlay, text) : g_strdup(text);
    return 0;
}

int image_name_parse(const char *text, const char *overlay, ImageName *ret_name, GError **error)
{
    ImageName name = {0};
    int r = g_str_has_prefix(text, "json:") ? parse_json(text + strlen("json:"), &name, error)
                                            : parse_plain(text, overlay, &name, error);
    if (r < 0) {
        image_name_clear(&name);
        return r;
    }
    *ret_name = name;
    return 0;
}
