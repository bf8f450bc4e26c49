// SPDX-License-Identifier: LGPL-2.1-or-later
// Monitors' sockets are bound before anything else is opened, as those of NBD are: a wrong path
// costs nothing. --chardev names a socket or the terminal, and --monitor has it speak QMP. Whatever
// their order, clients are served after all other options have taken effect.
#include "monitors.h"

#include <errno.h>
#include <sys/stat.h>

#include "chardev-option.h"
#include "daemon/qmp/args.h"
#include "node-names.h"
#include "stdio-relay.h"

enum { QUERY_SOCKET_MODE = 0660 };

struct Monitors {
    GPtrArray *unnamed, *chardevs; // Chardev: of --qmp, and all others
    GMutex mutex;                  // of the changes of both, for the way out in a hurry
    StdioRelay *stdio;             // NULL: not served
};

static const QmpType mode = {
    .name = "MonitorMode",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"readline", "control", NULL},
};
static const QmpType monitor_type = {
    .name = "MonitorOptions",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"chardev", &qmp_str},
                                   {"id", &qmp_str, true},
                                   {"mode", &mode, true},
                                   {"pretty", &qmp_bool, true}, // lines stay lines
                                   {0}},
};

// -- the table ------------------------------------------------------------------------------------

const GPtrArray *monitors_chardevs(const Monitors *monitors)
{
    return monitors->chardevs;
}

Chardev *monitors_find_chardev(const Monitors *monitors, const char *id)
{
    for (guint i = 0; i < monitors->chardevs->len; i++) {
        Chardev *chardev = monitors->chardevs->pdata[i];
        if (g_str_equal(chardev->id, id))
            return chardev;
    }
    return NULL;
}

static void add(Monitors *monitors, GPtrArray *chardevs, Chardev *chardev)
{
    g_mutex_lock(&monitors->mutex);
    g_ptr_array_add(chardevs, chardev);
    g_mutex_unlock(&monitors->mutex);
}

void monitors_add_chardev(Monitors *monitors, Chardev *chardev)
{
    add(monitors, monitors->chardevs, chardev);
}

void monitors_remove_chardev(Monitors *monitors, Chardev *chardev)
{
    g_assert(!chardev->is_used);
    g_mutex_lock(&monitors->mutex);
    g_ptr_array_remove(monitors->chardevs, chardev);
    g_mutex_unlock(&monitors->mutex);
}

// -- options --------------------------------------------------------------------------------------

// A listening socket of that type; `data` is taken. Borrowed; NULL with a sentence.
static Chardev *open_unnamed(Monitors *monitors, InheritedFds *fds, const char *type, json_t *data,
                             GError **error)
{
    json_auto_t *backend = json_pack("{s:s, s:{s:{s:s, s:o}}}", "type", "socket", "data", "addr",
                                     "type", type, "data", data);
    Chardev *chardev = chardev_open(fds, NULL, backend, error);
    if (!chardev)
        return NULL;
    chardev->is_used = true;
    add(monitors, monitors->unnamed, chardev);
    return chardev;
}

static Chardev *open_path(Monitors *monitors, const char *path, GError **error)
{
    return open_unnamed(monitors, NULL, "unix",
                        json_pack("{s:o}", "path", json_string_nocheck(path)), error);
}

// For the group, too: there is nothing that it could change.
static int open_for_queries(Monitors *monitors, const char *path, GError **error)
{
    static const SocketAccess access = {QUERY_SOCKET_MODE, (uid_t)-1, (gid_t)-1};
    Chardev *chardev = open_path(monitors, path, error);
    if (!chardev)
        return -EINVAL;
    chardev->policy.is_read_only = true;
    return socket_files_set_access(chardev->files, &access, error);
}

// For this user only until others may use it.
static int open_configured(Monitors *monitors, const ConfigEntry *entry, GError **error)
{
    const ControlSettings *control = entry->values;
    const ConfigPlace *place = config_place(entry, "path");
    SocketAccess access = {control->mode, control->owner, control->group};
    Chardev *chardev = open_path(monitors, control->path, error);
    QmpPolicy policy = {control->is_read_only, control->allow_uid, control->allow_gid};
    if (chardev)
        chardev->policy = qmp_policy_copy(&policy);
    if (chardev && socket_files_set_access(chardev->files, &access, error) == 0)
        return 0;
    if (place->path)
        g_prefix_error(error, "%s:%u: ", place->path, place->line);
    return -EINVAL;
}

static int open_all_configured(Monitors *monitors, const Config *config, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < config->entries->len; i++) {
        const ConfigEntry *entry = config->entries->pdata[i];
        if (entry->section == &settings_control)
            r = open_configured(monitors, entry, error);
    }
    return r;
}

static int check_stdio(const Monitors *monitors, const Options *options, GError **error)
{
    if (options->daemonize)
        return qmp_fail(error, "cannot use stdio with --daemonize");
    for (guint i = 0; i < monitors->chardevs->len; i++)
        if (g_str_equal(((const Chardev *)monitors->chardevs->pdata[i])->kind, "stdio"))
            return qmp_fail(error, "cannot use stdio by multiple character devices");
    return 0;
}

static int open_chardev(Monitors *monitors, const Options *options, const StartupOption *option,
                        InheritedFds *fds, GError **error)
{
    json_auto_t *args = chardev_option_parse(option, error);
    if (!args)
        return -EINVAL;
    const char *id = qmp_args_str(args, "id");
    const json_t *backend = json_object_get(args, "backend");
    if (!node_names_is_id(id))
        return qmp_fail(error, "Parameter 'id' expects an identifier");
    if (monitors_find_chardev(monitors, id))
        return qmp_fail(error, "Chardev with id '%s' already exists", id);
    if (g_str_equal(qmp_args_str(backend, "type"), "stdio") &&
        check_stdio(monitors, options, error) < 0)
        return -EINVAL;
    Chardev *chardev = chardev_open(fds, id, backend, error);
    if (!chardev)
        return -EINVAL;
    monitors_add_chardev(monitors, chardev);
    return 0;
}

static int open_monitor(Monitors *monitors, const StartupOption *option, GError **error)
{
    int r = qmp_type_check(&monitor_type, option->args, option->input, error);
    if (r < 0)
        return r;
    if (g_strcmp0(qmp_args_str(option->args, "mode"), "readline") == 0)
        return qmp_fail(error, "Only QMP is supported");
    const char *id = qmp_args_str(option->args, "chardev");
    Chardev *chardev = monitors_find_chardev(monitors, id);
    if (!chardev)
        return qmp_fail(error, "chardev \"%s\" not found", id);
    if (chardev->is_used)
        return qmp_fail(error, "chardev '%s' is already in use", id);
    chardev->is_used = true;
    return 0;
}

// Those of one kind: a monitor's chardev may come after it.
static int open_kind(Monitors *monitors, const Options *options, StartupKind kind,
                     InheritedFds *fds, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < options->startups->len; i++) {
        const StartupOption *option = options->startups->pdata[i];
        if (option->kind != kind)
            continue;
        r = kind == STARTUP_CHARDEV ? open_chardev(monitors, options, option, fds, error)
                                    : open_monitor(monitors, option, error);
        if (r < 0)
            g_prefix_error(error, "%s: ", option->text);
    }
    return r;
}

static int open_given(Monitors *monitors, int fd, bool is_for_queries, InheritedFds *fds,
                      GError **error)
{
    g_autofree char *number = g_strdup_printf("%d", fd);
    Chardev *chardev = open_unnamed(monitors, fds, "fd", json_pack("{s:s}", "str", number), error);
    if (!chardev)
        return -EINVAL;
    chardev->policy.is_read_only = is_for_queries;
    return 0;
}

static int open_all_given(Monitors *monitors, const Activation *activation, InheritedFds *fds,
                          GError **error)
{
    static const ActivationUse uses[] = {ACTIVATION_CONTROL, ACTIVATION_QUERY};
    int r = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(uses); i++) {
        const GArray *given = activation->fds[uses[i]];
        for (guint j = 0; r == 0 && j < given->len; j++)
            r = open_given(monitors, g_array_index(given, int, j), uses[i] == ACTIVATION_QUERY, fds,
                           error);
    }
    return r;
}

static int open_all(Monitors *monitors, const Options *options, const Config *config,
                    const Activation *activation, InheritedFds *fds, GError **error)
{
    int r = open_all_given(monitors, activation, fds, error);
    for (char **path = options->qmp_paths; r == 0 && *path; path++)
        r = open_path(monitors, *path, error) ? 0 : -EINVAL;
    for (char **path = options->query_paths; r == 0 && *path; path++)
        r = open_for_queries(monitors, *path, error);
    if (r == 0 && !*options->qmp_paths)
        r = open_all_configured(monitors, config, error);
    if (r == 0)
        r = open_kind(monitors, options, STARTUP_CHARDEV, fds, error);
    if (r == 0)
        r = open_kind(monitors, options, STARTUP_MONITOR, fds, error);
    return r;
}

Monitors *monitors_open(const Options *options, const Config *config, const Activation *activation,
                        InheritedFds *fds, GError **error)
{
    Monitors *monitors = g_new0(Monitors, 1);
    g_mutex_init(&monitors->mutex);
    monitors->unnamed = g_ptr_array_new_with_free_func((GDestroyNotify)chardev_close);
    monitors->chardevs = g_ptr_array_new_with_free_func((GDestroyNotify)chardev_close);
    if (open_all(monitors, options, config, activation, fds, error) < 0)
        g_clear_pointer(&monitors, monitors_free);
    return monitors;
}

// -- life -----------------------------------------------------------------------------------------

static void remove_files(gpointer chardev, gpointer unused)
{
    socket_files_remove(((const Chardev *)chardev)->files);
}

void monitors_remove_files(Monitors *monitors)
{
    if (!monitors)
        return;
    g_mutex_lock(&monitors->mutex);
    g_ptr_array_foreach(monitors->unnamed, remove_files, NULL);
    g_ptr_array_foreach(monitors->chardevs, remove_files, NULL);
    g_mutex_unlock(&monitors->mutex);
}

bool monitors_use_stdio(const Monitors *monitors)
{
    return monitors->stdio;
}

void monitors_free(Monitors *monitors)
{
    if (!monitors)
        return;
    g_ptr_array_unref(monitors->unnamed);
    g_ptr_array_unref(monitors->chardevs);
    stdio_relay_free(monitors->stdio);
    g_mutex_clear(&monitors->mutex);
    g_free(monitors);
}

static int serve_stdio(Monitors *monitors, Chardev *chardev, GError **error)
{
    int fd;
    monitors->stdio = stdio_relay_new(&fd, error);
    if (!monitors->stdio)
        return -EIO;
    g_array_append_val(chardev->sockets, fd);
    return 0;
}

static int serve(Monitors *monitors, Chardev *chardev, QmpServer *server, GError **error)
{
    int r = g_str_equal(chardev->kind, "stdio") ? serve_stdio(monitors, chardev, error) : 0;
    while (r == 0 && chardev->sockets->len) {
        int fd = g_array_index(chardev->sockets, int, 0);
        g_array_remove_index(chardev->sockets, 0);
        r = chardev->is_server
                ? qmp_server_add_listener(server, fd, chardev->name, &chardev->policy)
                : qmp_server_add_client(server, fd, chardev->name, &chardev->policy);
        if (r < 0)
            qmp_fail(error, "'%s' cannot be served: no memory for a fiber's stack", chardev->name);
    }
    return r;
}

static int serve_all(Monitors *monitors, const GPtrArray *chardevs, QmpServer *server,
                     GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < chardevs->len; i++) {
        Chardev *chardev = chardevs->pdata[i];
        r = chardev->is_used ? serve(monitors, chardev, server, error) : 0;
    }
    return r;
}

int monitors_serve(Monitors *monitors, QmpServer *server, GError **error)
{
    int r = serve_all(monitors, monitors->unnamed, server, error);
    return r < 0 ? r : serve_all(monitors, monitors->chardevs, server, error);
}
