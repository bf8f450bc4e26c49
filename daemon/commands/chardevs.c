// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of character devices. Monitors are made on the command line only, so one that is added
// later has no user. Control loop.
#include "chardevs.h"

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "socket-address.h"

// -- types ----------------------------------------------------------------------------------------

#define REFUSED "refused"
#define COMMON_MEMBERS                                                                             \
    {"logfile", &qmp_str, true, REFUSED},                                                          \
    {                                                                                              \
        "logappend", &qmp_bool, true, "does nothing without a log"                                 \
    }

static const QmpType common = {
    .name = "ChardevCommon",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS, {0}},
};
static const QmpType stdio = {
    .name = "ChardevStdio",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS,
                                   {"signal", &qmp_bool, true, "accepted, does nothing"},
                                   {0}},
};
static const QmpType socket_options = {
    .name = "ChardevSocket",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            COMMON_MEMBERS,
            {"addr", &socket_address_legacy,
             .doc = "where; only this user may connect to a unix socket, and TCP is for loopback "
                    "addresses only"},
            {"tls-creds", &qmp_str, true, REFUSED ": TLS is not there yet"},
            {"tls-authz", &qmp_str, true, REFUSED},
            {"server", &qmp_bool, true, "whether it listens; true without it"},
            {"wait", &qmp_bool, true, "accepted: nothing waits"},
            {"nodelay", &qmp_bool, true, "accepted, does nothing"},
            {"telnet", &qmp_bool, true, REFUSED " if true"},
            {"tn3270", &qmp_bool, true, REFUSED " if true"},
            {"websocket", &qmp_bool, true, REFUSED " if true"},
            {"reconnect", &qmp_int, true, REFUSED " unless it is 0"},
            {"reconnect-ms", &qmp_int, true, REFUSED " unless it is 0"},
            {0}},
};

static const QmpType socket_wrapper = {
    .name = "ChardevSocketWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &socket_options, .doc = "its options"}, {0}},
};
static const QmpType stdio_wrapper = {
    .name = "ChardevStdioWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &stdio, .doc = "its options"}, {0}},
};
static const QmpType common_wrapper = {
    .name = "ChardevCommonWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &common, .doc = "its options"}, {0}},
};

static const char *const kinds[] = {"socket", "stdio", "null", NULL};
static const QmpType backend_kind = {
    .name = "ChardevBackendKind", .kind = QMP_ENUM, .values = kinds};
static const QmpType backend = {
    .name = "ChardevBackend",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &backend_kind, .doc = "its kind"}, {0}},
    .tag = "type",
    .variants =
        (const QmpVariant[]){
            {"socket", &socket_wrapper}, {"stdio", &stdio_wrapper}, {"null", &common_wrapper}, {0}},
};
static const QmpType id_and_backend = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "its name"},
                                   {"backend", &backend, .doc = "what it is"},
                                   {0}},
};
static const QmpType id_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "its name"}, {0}},
};
static const QmpType chardev_return = {
    .name = "ChardevReturn",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"pty", &qmp_str, true, "never there"}, {0}},
};

// -- adding, changing, removing -------------------------------------------------------------------

typedef struct Opening {
    InheritedFds *fds;
    const char *id;
    const json_t *backend;
    Chardev *chardev;
    GError *error;
} Opening;

static int open_on_worker(void *arg)
{
    Opening *o = arg;
    o->chardev = chardev_open(o->fds, o->id, o->backend, &o->error);
    return 0;
}

// Only one reads the standard input. `instead`: of this one; may be NULL.
static int check_stdio(const Monitors *monitors, const json_t *new_backend, const Chardev *instead,
                       GError **error)
{
    const GPtrArray *all = monitors_chardevs(monitors);
    bool is_stdio = g_str_equal(qmp_args_str(new_backend, "type"), "stdio");
    for (guint i = 0; is_stdio && i < all->len; i++) {
        const Chardev *chardev = all->pdata[i];
        if (chardev != instead && g_str_equal(chardev->kind, "stdio"))
            return qmp_fail(error, "cannot use stdio by multiple character devices");
    }
    return 0;
}

// Name look-ups and connections take their time. Suspends.
static Chardev *open_chardev(Fiber *self, QmpCall *call, const json_t *args, const Chardev *instead,
                             GError **error)
{
    Opening o = {
        .fds = call->daemon->inherited,
        .id = qmp_args_str(args, "id"),
        .backend = json_object_get(args, "backend"),
    };
    if (check_stdio(call->daemon->monitors, o.backend, instead, &o.error) == 0)
        loop_work(self, open_on_worker, &o);
    if (o.error)
        qmp_fail(error, "Failed to add chardev '%s': %s", o.id, o.error->message);
    g_clear_error(&o.error);
    return o.chardev;
}

static int check_new(const Monitors *monitors, const char *id, GError **error)
{
    if (monitors_find_chardev(monitors, id))
        return qmp_fail(error, "Chardev with id '%s' already exists", id);
    return 0;
}

static int chardev_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Monitors *monitors = call->daemon->monitors;
    const char *id = qmp_args_str(args, "id");
    int r = check_new(monitors, id, error);
    if (r < 0)
        return r;
    Chardev *chardev = open_chardev(self, call, args, NULL, error);
    if (!chardev)
        return -EINVAL;
    r = check_new(monitors, id, error); // it suspended
    if (r == 0)
        monitors_add_chardev(monitors, chardev);
    else
        chardev_close(chardev);
    return r;
}

static int find_changeable(const Monitors *monitors, const char *id, Chardev **ret_chardev,
                           GError **error)
{
    *ret_chardev = monitors_find_chardev(monitors, id);
    if (!*ret_chardev)
        return qmp_fail(error, "Chardev '%s' does not exist", id);
    if ((*ret_chardev)->is_used)
        return qmp_fail(error, "Chardev user does not support chardev hotswap");
    return 0;
}

static int chardev_change(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    Monitors *monitors = call->daemon->monitors;
    const char *id = qmp_args_str(args, "id");
    Chardev *old;
    int r = find_changeable(monitors, id, &old, error);
    if (r < 0)
        return r;
    Chardev *chardev = open_chardev(self, call, args, old, error);
    if (!chardev)
        return -EINVAL;
    r = find_changeable(monitors, id, &old, error); // it suspended
    if (r < 0) {
        chardev_close(chardev);
        return r;
    }
    monitors_remove_chardev(monitors, old);
    monitors_add_chardev(monitors, chardev);
    return 0;
}

static int chardev_remove(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    const char *id = qmp_args_str(args, "id");
    Chardev *chardev = monitors_find_chardev(call->daemon->monitors, id);
    if (!chardev)
        return qmp_fail(error, "Chardev '%s' not found", id);
    if (chardev->is_used)
        return qmp_fail(error, "Chardev '%s' is busy", id);
    monitors_remove_chardev(call->daemon->monitors, chardev);
    return 0;
}

// -- queries --------------------------------------------------------------------------------------

static const QmpType chardev_info = {
    .name = "ChardevInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"label", &qmp_str, .doc = "its name"},
                                   {"filename", &qmp_str, .doc = "what it is, for people"},
                                   {"frontend-open", &qmp_bool,
                                    .doc = "whether a client speaks with a monitor through it"},
                                   {0}},
};
static const QmpType chardev_infos = {.kind = QMP_ARRAY, .element = &chardev_info};

static int query_chardev(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    const GPtrArray *all = monitors_chardevs(call->daemon->monitors);
    *ret_reply = json_array();
    for (guint i = 0; i < all->len; i++) {
        const Chardev *chardev = all->pdata[i];
        bool is_socket = g_str_equal(chardev->kind, "socket");
        bool is_open =
            chardev->is_used && qmp_server_n_clients(call->daemon->qmp, chardev->name) > 0;
        g_autofree char *name =
            g_strconcat(is_socket && !is_open ? "disconnected:" : "", chardev->name,
                        chardev->is_server ? ",server=on" : "", NULL);
        g_autofree char *valid = g_utf8_make_valid(name, -1); // names of files may be anything
        json_array_append_new(*ret_reply, json_pack("{s:b, s:s, s:s}", "frontend-open", is_open,
                                                    "filename", valid, "label", chardev->id));
    }
    return 0;
}

static const QmpType backend_info = {
    .name = "ChardevBackendInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "its kind"}, {0}},
};
static const QmpType backend_infos = {.kind = QMP_ARRAY, .element = &backend_info};

static int query_chardev_backends(Fiber *self, QmpCall *call, const json_t *args,
                                  json_t **ret_reply, GError **error)
{
    *ret_reply = json_array();
    for (const char *const *kind = kinds; *kind; kind++)
        json_array_append_new(*ret_reply, json_pack("{s:s}", "name", *kind));
    return 0;
}

static const QmpCommand commands[] = {
    {"query-chardev", NULL, &chardev_infos, "All character devices that have a name.",
     query_chardev, .is_query = true},
    {"query-chardev-backends", NULL, &backend_infos, "The kinds of character devices.",
     query_chardev_backends, .is_query = true},
    {"chardev-add", &id_and_backend, &chardev_return,
     "Opens a character device. Monitors are made on the command line only, so nothing uses it.",
     chardev_add},
    {"chardev-change", &id_and_backend, &chardev_return,
     "Opens another one in the place of one that no monitor uses.", chardev_change},
    {"chardev-remove", &id_args, NULL, "Closes a character device that no monitor uses.",
     chardev_remove},
    {0},
};

const QmpFamily qmp_chardevs_family = {.title = "Character devices", .commands = commands};
