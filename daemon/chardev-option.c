// SPDX-License-Identifier: LGPL-2.1-or-later
// From flat to nested.
#include "chardev-option.h"

#include <string.h>

#include "daemon/qmp/args.h"
#include "daemon/qmp/error.h"

static const QmpType backend = {
    .name = "ChardevBackendKind",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"socket", "stdio", "null", NULL},
};

// Of the socket, and of its address.
#define SOCKET_FLAGS                                                                               \
    {"server", &qmp_bool, true}, {"wait", &qmp_bool, true}, {"delay", &qmp_bool, true},            \
        {"nodelay", &qmp_bool, true}, {"telnet", &qmp_bool, true}, {"tn3270", &qmp_bool, true},    \
        {"websocket", &qmp_bool, true}, {"reconnect", &qmp_int, true},                             \
        {"reconnect-ms", &qmp_int, true}, {"tls-creds", &qmp_str, true},                           \
    {                                                                                              \
        "tls-authz", &qmp_str, true                                                                \
    }
#define COMMON                                                                                     \
    {"logfile", &qmp_str, true}, {"logappend", &qmp_bool, true},                                   \
    {                                                                                              \
        0                                                                                          \
    }

static const QmpType socket_options = {
    .name = "ChardevSocket",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, true},
                                   {"abstract", &qmp_bool, true},
                                   {"tight", &qmp_bool, true},
                                   {"fd", &qmp_str, true},
                                   {"host", &qmp_str, true},
                                   {"port", &qmp_str, true},
                                   {"to", &qmp_uint16, true},
                                   {"ipv4", &qmp_bool, true},
                                   {"ipv6", &qmp_bool, true},
                                   SOCKET_FLAGS,
                                   COMMON},
};
static const QmpType stdio_options = {
    .name = "ChardevStdio",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"signal", &qmp_bool, true}, COMMON},
};
static const QmpType null_options = {
    .name = "ChardevCommon",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON},
};
static const QmpType chardev_type = {
    .name = "Chardev",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"backend", &backend}, {"id", &qmp_str}, {0}},
    .tag = "backend",
    .variants =
        (const QmpVariant[]){
            {"socket", &socket_options}, {"stdio", &stdio_options}, {"null", &null_options}, {0}},
};

// Moves the members of those names.
static void move(json_t *from, json_t *to, const char *const *names)
{
    for (; *names; names++) {
        json_t *value = json_object_get(from, *names);
        if (value)
            json_object_set(to, *names, value);
        json_object_del(from, *names);
    }
}

static int check_address(const json_t *flat, GError **error)
{
    bool has_path = qmp_args_have(flat, "path"), has_fd = qmp_args_have(flat, "fd");
    bool has_host = qmp_args_have(flat, "host"), has_port = qmp_args_have(flat, "port");
    if (has_path + has_fd + has_host > 1)
        return qmp_fail(error, "None or one of 'path', 'fd' or 'host' option required.");
    if (has_host && !has_port)
        return qmp_fail(error, "chardev: socket: no port given");
    if (!has_path && !has_fd && !has_port)
        return qmp_fail(error, "a socket needs path=, fd=, or host= and port=");
    if (qmp_args_have(flat, "delay") && qmp_args_have(flat, "nodelay"))
        return qmp_fail(error, "'delay' and 'nodelay' are mutually exclusive");
    return 0;
}

// Takes the address out of `flat`.
static json_t *make_address(json_t *flat)
{
    const char *const of_path[] = {"path", "abstract", "tight", NULL};
    const char *const of_host[] = {"host", "port", "to", "ipv4", "ipv6", NULL};
    json_t *data = json_object();
    const char *fd = qmp_args_str(flat, "fd");
    if (fd) {
        json_object_set_new(data, "str", json_string(fd));
        json_object_del(flat, "fd");
        return json_pack("{s:s, s:o}", "type", "fd", "data", data);
    }
    if (qmp_args_have(flat, "path")) {
        move(flat, data, of_path);
        return json_pack("{s:s, s:o}", "type", "unix", "data", data);
    }
    json_object_set_new(data, "host", json_string(""));
    move(flat, data, of_host);
    return json_pack("{s:s, s:o}", "type", "inet", "data", data);
}

json_t *chardev_option_parse(const StartupOption *option, GError **error)
{
    json_auto_t *flat = json_deep_copy(option->args);
    if (!qmp_args_have(flat, "id")) {
        qmp_fail(error, "chardev: no id specified");
        return NULL;
    }
    if (qmp_type_check(&chardev_type, flat, option->input, error) < 0)
        return NULL;
    json_auto_t *id = json_incref(json_object_get(flat, "id"));
    json_auto_t *type = json_incref(json_object_get(flat, "backend"));
    json_object_del(flat, "id");
    json_object_del(flat, "backend");
    if (g_str_equal(json_string_value(type), "socket")) {
        if (check_address(flat, error) < 0)
            return NULL;
        json_object_set_new(flat, "addr", make_address(flat));
        if (!qmp_args_have(flat, "server")) // unlike chardev-add's
            json_object_set_new(flat, "server", json_false());
    }
    return json_pack("{s:O, s:{s:O, s:O}}", "id", id, "backend", "type", type, "data", flat);
}
