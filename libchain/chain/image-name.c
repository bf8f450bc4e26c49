// SPDX-License-Identifier: LGPL-2.1-or-later
// A name with a colon before its first slash may be a protocol. The ones QEMU knows are refused by
// name, and so is whatever looks like a URL; any other colon is part of a file's name. Names come
// from images that nobody vouches for: what is not understood is refused, never guessed. Pure.
#include "chain/image-name.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/error.h"

void image_name_clear(ImageName *name)
{
    g_free(name->path);
    if (name->backing)
        image_name_clear(name->backing);
    g_free(name->backing);
    *name = (ImageName){0};
}

int image_format_parse(const char *format, const char **ret_format, GError **error)
{
    if (g_str_equal(format, "qcow2"))
        *ret_format = "qcow2";
    else if (g_str_equal(format, "raw") || g_str_equal(format, "file") ||
             g_str_equal(format, "host_device"))
        *ret_format = "raw";
    else
        return error_set(error, -ENOTSUP, "the format '%s' is not supported, only qcow2 and raw",
                         format);
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

// Takes "read-only", passes what is harmless or in `understood`, refuses the rest.
static int check_options(json_t *object, const char *const *understood, ImageName *image_name,
                         GError **error)
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
        bool is_known = is_harmless_option(name);
        for (const char *const *u = understood; *u && !is_known; u++)
            is_known = strlen(*u) == len && strncmp(*u, name, len) == 0;
        if (!is_known)
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
    int r = check_options(object, understood, name, error);
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

// Bytes as QEMU takes them: a number, or text with a unit.
static int parse_bytes(json_t *object, const char *key, uint64_t *ret_bytes, GError **error)
{
    json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    if (!value)
        return 0;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *ret_bytes = (uint64_t)json_integer_value(value);
        return 0;
    }
    if (text && g_ascii_isdigit(*text)) {
        static const char units[] = "BKMGTPE";
        char *end;
        errno = 0;
        uint64_t n = g_ascii_strtoull(text, &end, 10);
        const char *unit = strchr(units, *end ? g_ascii_toupper(*end) : 'B');
        unsigned shift = unit ? 10 * (unsigned)(unit - units) : 0;
        if (errno == 0 && unit && (!*end || !end[1]) && n <= (uint64_t)INT64_MAX >> shift) {
            *ret_bytes = n << shift;
            return 0;
        }
    }
    return error_set(error, -EINVAL, "\"%s\" of a json: name is not a number of bytes", key);
}

static int parse_part(json_t *object, ImageName *name, GError **error)
{
    name->part_bytes = UINT64_MAX;
    name->is_part = json_object_get(object, "offset") || json_object_get(object, "size");
    int r = parse_bytes(object, "offset", &name->part_offset, error);
    if (r == 0)
        r = parse_bytes(object, "size", &name->part_bytes, error);
    if (r == 0 && name->part_bytes != UINT64_MAX && name->part_bytes % 512)
        r = error_set(error, -EINVAL, "\"size\" of a json: name is not a multiple of 512");
    return r;
}

// "backing" replaces what the image's header says. Only the layer's own object can have one.
static int parse_json_backing(json_t *object, const char *driver, Place place, ImageName *name,
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
    if (place.depth > 0 || g_strcmp0(driver, "raw") == 0) {
        r = error_set(error, -EINVAL, "a json: name gives a backing file to a raw image");
    } else if (place.layer == MAX_NESTING) {
        r = error_set(error, -EINVAL, "the json: name is nested too deeply");
    } else {
        name->backing = g_new0(ImageName, 1);
        r = parse_json_object(child, (Place){.layer = place.layer + 1}, name->backing, error);
    }
    json_decref(child);
    return r;
}

static int parse_json_format(json_t *object, const char *driver, Place place, ImageName *name,
                             GError **error)
{
    static const char *const of_qcow2[] = {"driver", "file", "backing", NULL};
    static const char *const of_raw[] = {"driver", "file", "backing", "offset", "size", NULL};
    bool is_raw = place.depth == 0 && g_strcmp0(driver, "raw") == 0;
    int r = check_options(object, is_raw ? of_raw : of_qcow2, name, error);
    if (r == 0 && is_raw)
        r = parse_part(object, name, error);
    if (r == 0)
        r = parse_json_backing(object, driver, place, name, error);
    if (r < 0)
        return r;
    if (driver && place.depth == 0)
        name->format = is_raw ? "raw" : "qcow2";
    else if (driver && g_str_equal(driver, "qcow2"))
        return error_set(error, -ENOTSUP, "a qcow2 image inside an image is not supported");
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
    bool is_format = driver ? g_str_equal(driver, "qcow2") || g_str_equal(driver, "raw")
                            : json_object_get(object, "filename") == NULL;
    return is_format ? parse_json_format(object, driver, place, name, error)
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
