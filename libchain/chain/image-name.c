// SPDX-License-Identifier: LGPL-2.1-or-later
// A name with a colon before its first slash may be a protocol. The ones QEMU knows are refused by
// name, and so is whatever looks like a URL; any other colon is part of a file's name. Names come
// from images that nobody vouches for: what is not understood is refused, never guessed. Pure.
#include "chain/image-name.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/nbd-client.h"

int image_format_parse(const char *format, const Driver **ret_format, GError **error)
{
    const Driver *driver = driver_find(format);
    if (driver && driver->is_file)
        driver = driver_find("raw");
    if (!driver || !driver->open) {
        g_autofree char *names = drivers_names();
        return error_set(error, -ENOTSUP, "the format '%s' is not supported, only %s", format,
                         names);
    }
    *ret_format = driver;
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

// The parser recurses, and so does what reads its result: deep nesting must not reach them.
static bool is_nested_deeply(const char *text, int max)
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
        if (depth > max)
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

static int parse_json(const char *text, NodeConfig **ret_config, GError **error)
{
    enum { MAX_NESTING = 24 };
    g_autofree char *strict = with_double_quotes(text);
    if (is_nested_deeply(strict, MAX_NESTING))
        return error_set(error, -EINVAL, "the json: name is nested too deeply");
    json_error_t where;
    json_t *object = json_loads(strict, JSON_REJECT_DUPLICATES, &where);
    if (!object)
        return error_set(error, -EINVAL, "the json: name is not valid JSON: %s", where.text);
    NodeConfig *config = NULL;
    int r = json_is_object(object)
                ? node_config_new(object, false, &config, error)
                : error_set(error, -EINVAL, "the json: name is not a JSON object");
    json_decref(object);
    if (r < 0)
        return r;
    bool is_image = !config->driver || config->driver->open;
    *ret_config = is_image ? config : node_config_new_over(config);
    return 0;
}

// -- nbd: -----------------------------------------------------------------------------------

static bool is_nbd_uri(const char *text)
{
    return g_str_has_prefix(text, "nbd://") || g_str_has_prefix(text, "nbd+tcp://") ||
           g_str_has_prefix(text, "nbd+unix://");
}

static int parse_nbd_uri(const char *text, NodeConfig **ret_config, GError **error)
{
    json_t *object = nbd_client_values_of_uri(text, error);
    if (!object)
        return -EINVAL;
    json_object_set_new(object, "driver", json_string("nbd"));
    NodeConfig *config = NULL;
    int r = node_config_new(object, false, &config, error);
    json_decref(object);
    if (r == 0)
        *ret_config = node_config_new_over(config);
    return r;
}

// -- all names --------------------------------------------------------------------------------

static int parse_plain(const char *text, const char *overlay, NodeConfig **ret_config,
                       GError **error)
{
    static const char *const of_files[] = {"file:", "host_device:"};
    size_t len = strcspn(text, ":/");
    bool is_bare = true;
    for (size_t i = 0; i < G_N_ELEMENTS(of_files) && is_bare; i++) {
        is_bare = !g_str_has_prefix(text, of_files[i]);
        if (!is_bare)
            text += strlen(of_files[i]); // all of the rest is the path: file:///x is ///x
    }
    if (is_bare && is_nbd_uri(text))
        return parse_nbd_uri(text, ret_config, error);
    if (is_bare && text[len] == ':' && is_foreign_protocol(text, len))
        return error_set(error, -ENOTSUP, "the protocol '%.*s' is not supported, only files",
                         (int)len, text);
    if (!*text)
        return error_set(error, -EINVAL, "the image's name is empty");
    g_autofree char *path = is_bare && overlay ? image_name_beside(overlay, text) : g_strdup(text);
    *ret_config = node_config_new_path(path, NULL);
    return 0;
}

int image_name_parse(const char *text, const char *overlay, NodeConfig **ret_config, GError **error)
{
    return g_str_has_prefix(text, "json:") ? parse_json(text + strlen("json:"), ret_config, error)
                                           : parse_plain(text, overlay, ret_config, error);
}

int node_config_new_name(const char *name, const char *format, NodeConfig **ret_config,
                         GError **error)
{
    g_autoptr(NodeConfig) config = NULL;
    const Driver *wanted = NULL;
    int r = image_name_parse(name, NULL, &config, error);
    if (r == 0 && format)
        r = image_format_parse(format, &wanted, error);
    if (r == 0 && wanted && config->driver && config->driver != wanted)
        r = error_set(error, -EINVAL, "the format asked for is %s, and the name says %s",
                      wanted->name, config->driver->name);
    if (r < 0) {
        g_prefix_error(error, "%s: ", name);
        return r;
    }
    if (wanted)
        config->driver = wanted;
    // Whoever says so of the file means what is in it.
    const NodeConfig *file = node_config_file(config);
    if (file && driver_value_bool(file->values, "read-only", false))
        json_object_set_new(config->values, "read-only", json_true());
    *ret_config = g_steal_pointer(&config);
    return 0;
}
