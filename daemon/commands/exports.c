// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of the NBD server and its exports. Control loop.
#include "exports.h"

#include "bitmaps.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/node-active.h"
#include "daemon/node-names.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-nodes.h"
#include "object-authz.h"
#include "object-kind.h"
#include "socket-address.h"

// -- nbd-server-start, nbd-server-stop ------------------------------------------------------------

static const QmpType nbd_server_start_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"addr", &socket_address_legacy, .doc = "where to listen"},
                                   {"handshake-max-seconds", &qmp_uint32, true,
                                    "how long a client may take until it has chosen an export; 10, "
                                    "0: as long as it likes"},
                                   {"tls-creds", &qmp_str, true,
                                    "an object of a kind tls-creds, of a server: clients must "
                                    "speak TLS"},
                                   {"tls-authz", &qmp_str, true,
                                    "an object of a kind authz: who may connect, by the "
                                    "certificate's distinguished name or the key's user; does "
                                    "nothing without tls-creds"},
                                   {"max-connections", &qmp_uint32, true,
                                    "how many clients at a time; 0 and without it: "
                                    "as many as the daemon has memory for"},
                                   {0}},
};

// What the arguments say; `*ret_creds` is owned, the rest borrowed.
static int find_tls(const Daemon *daemon, const json_t *args, TlsCreds **ret_creds,
                    NbdsTls *ret_tls, GError **error)
{
    const char *creds = qmp_args_str(args, "tls-creds"), *authz = qmp_args_str(args, "tls-authz");
    if (!creds)
        return 0;
    const Object *object = objects_find(daemon->objects, creds);
    if (object && !g_str_equal(object->kind->parent, "tls-creds"))
        return qmp_fail(error, "Object with id '%s' is not TLS credentials", creds);
    int r = tls_creds_table_find(daemon->tls_creds, creds, TLS_SERVER, ret_creds, error);
    if (r < 0)
        return r;
    *ret_tls = (NbdsTls){.mode = NBDS_TLS_REQUIRED, .creds = *ret_creds};
    if (!authz)
        return 0;
    if (!tls_creds_identify_peer(*ret_creds))
        return qmp_fail(error,
                        "'%s' does not tell who a client is: it needs verify-peer for "
                        "tls-authz",
                        creds);
    ret_tls->authz = object_authz_find(daemon, authz, error);
    return ret_tls->authz ? 0 : -ENOENT;
}

static int nbd_server_start_command(Fiber *self, QmpCall *call, const json_t *args,
                                    json_t **ret_reply, GError **error)
{
    NbdServer *nbd = call->daemon->nbd;
    if (nbd_server_get(nbd))
        return qmp_fail(error, "NBD server already running");
    g_autoptr(TlsCreds) creds = NULL;
    NbdsTls tls = {0};
    int r = find_tls(call->daemon, args, &creds, &tls, error);
    if (r < 0)
        return r;
    G_GNUC_UNUSED g_autoptr(TlsAuthz) authz = // while this suspends
        tls.authz ? tls_authz_ref(tls.authz) : NULL;
    Listeners *listeners =
        socket_address_listen(self, call->daemon->inherited, json_object_get(args, "addr"), error);
    if (!listeners)
        return -EINVAL;
    listeners_set_tls(listeners, &tls, NULL, NULL);
    if (nbd_server_get(nbd)) {
        listeners_free(listeners);
        return qmp_fail(error, "NBD server already running");
    }
    nbd_server_start(nbd, &(NbdServerBounds){
                              .max_connections = (unsigned)qmp_args_int(args, "max-connections", 0),
                              .handshake_s = qmp_args_int(args, "handshake-max-seconds", 10),
                          });
    nbd_server_listen(nbd, listeners);
    disks_serve(self, call->daemon);
    return 0;
}

static void remove_fiber(Fiber *self, void *arg);

typedef struct Removal {
    Exports *exports;
    Export *export;
} Removal;

static void begin_removal(Fiber *self, Exports *exports, Export *export)
{
    export->is_shutting_down = true;
    Removal *removal = g_new(Removal, 1);
    *removal = (Removal){exports, export};
    if (fiber_spawn_reserve(fiber_loop(self), "remove export", remove_fiber, removal) < 0)
        remove_fiber(self, removal);
}

// Lets the command that began it answer first.
static void remove_fiber(Fiber *self, void *arg)
{
    Removal removal = *(Removal *)arg;
    g_free(arg);
    exports_remove(self, removal.exports, removal.export);
}

// Marks them, so that nobody else removes them; owned.
static GPtrArray *exports_to_remove(const Exports *exports)
{
    GPtrArray *chosen = g_ptr_array_new();
    const GPtrArray *all = exports_all(exports);
    for (guint i = all->len; i-- > 0;) {
        Export *export = all->pdata[i];
        if (!export->nbds || export->is_shutting_down)
            continue;
        export->is_shutting_down = true;
        g_ptr_array_add(chosen, export);
    }
    return chosen;
}

// Beyond what slow clients are given (5 s).
#define LATE_NS UINT64_C(7000000000)

typedef struct LateExports {
    LoopTimer timer; // first
    const Exports *exports;
} LateExports;

static void say_which_are_late(LoopTimer *timer)
{
    const GPtrArray *all = exports_all(((const LateExports *)timer)->exports);
    for (guint i = 0; i < all->len; i++) {
        const Export *export = all->pdata[i];
        log_line(LOG_WARNING,
                 "nbd-server-stop waits for the export '%s' of node '%s': its storage or a client "
                 "does not answer",
                 export->id, export_node(export)->name);
    }
}

static int nbd_server_stop_command(Fiber *self, QmpCall *call, const json_t *args,
                                   json_t **ret_reply, GError **error)
{
    Daemon *daemon = call->daemon;
    if (!nbd_server_begin_stop(daemon->nbd))
        return qmp_fail(error, "NBD server not running");
    LateExports late = {{.fn = say_which_are_late}, daemon->exports};
    loop_timer_start(fiber_loop(self), &late.timer, LATE_NS);
    exports_wait_added(self, daemon->exports); // from now on none is added
    g_autoptr(GPtrArray) leaving = exports_to_remove(daemon->exports);
    for (guint i = 0; i < leaving->len; i++)
        begin_removal(self, daemon->exports, leaving->pdata[i]);
    nbd_server_stop(self, daemon->nbd);
    exports_wait_removed(self, daemon->exports);
    loop_timer_stop(fiber_loop(self), &late.timer);
    nbd_server_end(daemon->nbd);
    return 0;
}

// -- block-export-add -----------------------------------------------------------------------------

static const QmpType export_type = {
    .name = "BlockExportType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"nbd", NULL},
};

static const QmpType nbd_options = {
    .name = "BlockExportOptionsNbd",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"name", &qmp_str, true, "what clients call the export; the node's name without it"},
            {"description", &qmp_str, true, "free text for clients, at most 4096 bytes"},
            {"bitmaps", &bitmap_refs_type, true, "dirty bitmaps that clients may ask for"},
            {"allocation-depth", &qmp_bool, true,
             "whether clients may ask for qemu:allocation-depth; they may not without it"},
            {0}},
};

static const QmpType block_export_add_args = {
    .name = "BlockExportOptions",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"type", &export_type, .doc = "nbd"},
            {"id", &qmp_str, .doc = "the export's name in commands"},
            {"fixed-iothread", &qmp_bool, true,
             "whether the node stays on its loop as long as the export is there, and fails to be "
             "exported if it cannot be brought to the iothread's; false without it"},
            {"iothread", &qmp_str, true,
             "the object to whose loop the node is moved, with all that is joined to it; without "
             "it, the node stays where it is"},
            {"node-name", &qmp_str, .doc = "the node"},
            {"allow-inactive", &qmp_bool, true,
             "whether the node may be inactive, so that clients read only, and become so while it "
             "is exported; without it, it is made active"},
            {"writable", &qmp_bool, true, "whether clients may write; they may not without it"},
            {"writethrough", &qmp_bool, true, "whether each write is flushed before its reply"},
            {0}},
    .tag = "type",
    .variants = (const QmpVariant[]){{"nbd", &nbd_options}, {0}},
};

static int add_export(Fiber *self, Daemon *daemon, const json_t *args, GError **error)
{
    const char *id = qmp_args_str(args, "id"), *node_name = qmp_args_str(args, "node-name");
    if (!node_names_is_id(id))
        return qmp_fail(error, "Invalid block export id");
    if (exports_find(daemon->exports, id))
        return qmp_fail(error, "Block export id '%s' is already in use", id);
    NamedNode *named = nodes_get(daemon->nodes, node_name, error);
    if (!named)
        return -ENODEV;
    const char *name = qmp_args_str(args, "name"), *iothread = qmp_args_str(args, "iothread");
    bool is_writable = qmp_args_bool(args, "writable", false);
    if (is_writable && named_node_says_read_only(named))
        return qmp_fail(error, "Cannot export read-only node as writable");
    bool allows_inactive = qmp_args_bool(args, "allow-inactive", false);
    if (named->is_inactive && !allows_inactive &&
        node_active_set(self, daemon->nodes, named, true, error) < 0)
        return -EINVAL;
    const Object *thread = iothread ? objects_find(daemon->objects, iothread) : NULL;
    if (iothread && (!thread || !thread->loop))
        return qmp_fail(error, "iothread \"%s\" not found", iothread);
    ExportSpec spec = {
        .id = id,
        .name = name ? name : node_name,
        .description = qmp_args_str(args, "description"),
        .is_writable = is_writable,
        .allows_inactive = allows_inactive,
        .loop = thread ? thread->loop : NULL,
        .is_fixed = qmp_args_bool(args, "fixed-iothread", false),
        .bitmaps = json_object_get(args, "bitmaps"),
        .is_writethrough = qmp_args_bool(args, "writethrough", false),
        .has_allocation_depth = qmp_args_bool(args, "allocation-depth", false),
    };
    Export *export;
    return exports_add(self, daemon->exports, named, &spec, &export, error);
}

static int block_export_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    fiber_mutex_lock(self, lock);
    int r = add_export(self, call->daemon, args, error);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- block-export-del -----------------------------------------------------------------------------

static const QmpType remove_mode = {
    .name = "BlockExportRemoveMode",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"safe", "hard", NULL},
};

static const QmpType block_export_del_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the export"},
                                   {"mode", &remove_mode, true,
                                    "safe, which is the default: refused while clients are "
                                    "connected; hard: they are disconnected"},
                                   {0}},
};

static int block_export_del(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    const char *id = qmp_args_str(args, "id"), *mode = qmp_args_str(args, "mode");
    Export *export = exports_find(call->daemon->exports, id);
    if (!export)
        return qmp_fail(error, "Export '%s' is not found", id);
    if (export->is_shutting_down)
        return qmp_fail(error, "Export '%s' is already shutting down", id);
    int r = disk_check_not_its_export(call->daemon, id, error);
    if (r < 0)
        return r;
    bool has_clients = exports_have_clients(self, call->daemon->exports, id);
    export = exports_find(call->daemon->exports, id); // it suspended
    if (!export || export->is_shutting_down)
        return qmp_fail(error, "Export '%s' is already shutting down", id);
    if (has_clients && g_strcmp0(mode, "hard") != 0)
        return qmp_fail(error, "export '%s' still in use", id);
    if (has_clients)
        begin_removal(self, call->daemon->exports, export);
    else
        exports_remove(self, call->daemon->exports, export); // at once, as in QEMU
    return 0;
}

// -- query-block-exports --------------------------------------------------------------------------

static const QmpType block_export_info = {
    .name = "BlockExportInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the export"},
                                   {"type", &export_type, .doc = "nbd"},
                                   {"node-name", &qmp_str, .doc = "what it shows"},
                                   {"shutting-down", &qmp_bool,
                                    .doc = "whether it is on its way "
                                           "out"},
                                   {0}},
};
static const QmpType block_export_infos = {.kind = QMP_ARRAY, .element = &block_export_info};

static int query_block_exports(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                               GError **error)
{
    const GPtrArray *all = exports_all(call->daemon->exports);
    json_t *infos = json_array();
    for (guint i = all->len; i-- > 0;) { // QEMU tells the last one first
        const Export *export = all->pdata[i];
        if (!export->nbds)
            continue; // still being added
        json_array_append_new(
            infos, json_pack("{s:s, s:s, s:b, s:s}", "node-name", export_node(export)->name, "type",
                             "nbd", "shutting-down", export->is_shutting_down, "id", export->id));
    }
    *ret_reply = infos;
    return 0;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"nbd-server-start", &nbd_server_start_args, NULL,
     "Begins to serve exports over NBD. Those of disks are there again after an nbd-server-stop.",
     nbd_server_start_command},
    {"nbd-server-stop", NULL, NULL,
     "Removes all exports, disconnects all clients, and listens no more. Waits for requests that "
     "are under way; when that takes long, the log names the exports whose storage does not "
     "answer.",
     nbd_server_stop_command},
    {"block-export-add", &block_export_add_args, NULL, "Exports a node.", block_export_add},
    {"block-export-del", &block_export_del_args, NULL,
     "Removes an export. BLOCK_EXPORT_DELETED tells when it is gone.", block_export_del},
    {"query-block-exports", NULL, &block_export_infos, "All exports.", query_block_exports,
     .is_query = true},
    {0},
};

static const QmpType export_deleted_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the export"}, {0}},
};

static const QmpEvent events[] = {
    {"BLOCK_EXPORT_DELETED", &export_deleted_data, "An export is gone, and its id is free."},
    {0},
};

const QmpFamily qmp_exports_family = {.title = "Exports", .commands = commands, .events = events};
