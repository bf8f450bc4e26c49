// SPDX-License-Identifier: LGPL-2.1-or-later
// A listener is its address: what is at an address that stays, stays, with other credentials and
// permissions from then on, whatever its section is called. Credentials are read anew with each
// reload, so that certificates can be renewed. Everything that may fail is done before the first
// change, but for one case: an address that is free only when another of ours goes (":10809" and
// "localhost:10809") is tried again then.
#include "configured-listeners.h"

#include <errno.h>

static int at_place(const ConfigEntry *entry, const char *key, GError **error)
{
    const ConfigPlace *place = config_place(entry, key);
    if (place->path)
        g_prefix_error(error, "%s:%u: ", place->path, place->line);
    return -EINVAL;
}

static TlsCreds *read_creds(const ListenSettings *listen, GError **error)
{
    TlsCredsConfig config = {
        .end = TLS_SERVER,
        .dir = listen->tls_certificates,
        .psk_file = listen->tls_psk,
        .verifies_peer = listen->tls_verify_peer,
    };
    if (config.dir)
        return tls_creds_new_x509(&config, error);
    g_autoptr(TlsCreds) creds = tls_creds_new_psk(&config, error);
    return creds && tls_psk_check_file(config.psk_file, error) == 0 ? g_steal_pointer(&creds)
                                                                    : NULL;
}

// `*ret_key`: of the file that is at fault.
static int read_files(const ListenSettings *listen, NbdsTls *ret_tls, const char **ret_key,
                      GError **error)
{
    NbdsTls tls = {.mode = settings_tls_mode(listen)};
    bool has_authz = tls.mode != NBDS_TLS_OFF && listen->tls_authz;
    *ret_key = listen->tls_psk ? "tls-psk" : "tls-certificates";
    if (tls.mode != NBDS_TLS_OFF && !(tls.creds = read_creds(listen, error)))
        return -EINVAL;
    *ret_key = "tls-authz";
    if (has_authz && !(tls.authz = tls_authz_new_list_file(listen->tls_authz, true, error))) {
        nbds_tls_clear(&tls);
        return -EINVAL;
    }
    *ret_tls = tls;
    return 0;
}

int configured_tls_read(const ListenSettings *listen, NbdsTls *ret_tls, GError **error)
{
    const char *unused;
    return read_files(listen, ret_tls, &unused, error);
}

static int read_tls(const ConfigEntry *entry, NbdsTls *ret_tls, GError **error)
{
    const char *key;
    return read_files(entry->values, ret_tls, &key, error) < 0 ? at_place(entry, key, error) : 0;
}

int configured_tls_check(const ConfigEntry *entry, GError **error)
{
    NbdsTls tls;
    if (read_tls(entry, &tls, error) < 0)
        return -EINVAL;
    nbds_tls_clear(&tls);
    return 0;
}

static SocketAccess access_of(const ListenSettings *listen)
{
    return (SocketAccess){listen->mode, listen->owner, listen->group};
}

// -- start ----------------------------------------------------------------------------------------

static Listeners *open_listeners(const ConfigEntry *entry, GError **error)
{
    const ListenSettings *listen = entry->values;
    SocketAccess access = access_of(listen);
    Listeners *listeners = listeners_open_at(listen->address, &access, error);
    if (!listeners)
        at_place(entry, "address", error);
    return listeners;
}

int configured_listeners_open(const Config *config, GPtrArray *ret_listeners, GError **error)
{
    for (guint i = 0; i < config->entries->len; i++) {
        const ConfigEntry *entry = config->entries->pdata[i];
        if (entry->section != &settings_listen)
            continue;
        const ListenSettings *listen = entry->values;
        NbdsTls tls;
        if (read_tls(entry, &tls, error) < 0)
            return -EINVAL;
        Listeners *listeners = open_listeners(entry, error);
        if (listeners) {
            listeners_set_tls(listeners, &tls, listen->tls_certificates, listen->tls_psk);
            g_ptr_array_add(ret_listeners, listeners);
        }
        nbds_tls_clear(&tls);
        if (!listeners)
            return -EINVAL;
    }
    return 0;
}

// -- change ---------------------------------------------------------------------------------------

// One section.
typedef struct ListenStep {
    const ConfigEntry *entry;
    bool is_there;        // something listens at its address already
    Listeners *listeners; // opened for it; NULL: it is there, or its address is not free yet
    NbdsTls tls;
} ListenStep;

struct ListenChange {
    GArray *steps; // ListenStep
    int result;
    GError *error;
};

static ListenStep *get_step(const ListenChange *change, guint i)
{
    return &g_array_index(change->steps, ListenStep, i);
}

static int prepare_step(ListenStep *step, GError **error)
{
    if (read_tls(step->entry, &step->tls, error) < 0)
        return -EINVAL;
    if (step->is_there)
        return 0;
    g_autoptr(GError) fault = NULL;
    step->listeners = open_listeners(step->entry, &fault);
    // What is in the way may be ours.
    bool is_tcp = !g_path_is_absolute(((const ListenSettings *)step->entry->values)->address);
    if (step->listeners || (is_tcp && strstr(fault->message, g_strerror(EADDRINUSE))))
        return 0;
    g_propagate_error(error, g_steal_pointer(&fault));
    return -EINVAL;
}

static int prepare_steps(void *arg)
{
    ListenChange *change = arg;
    for (guint i = 0; change->result == 0 && i < change->steps->len; i++)
        change->result = prepare_step(get_step(change, i), &change->error);
    return change->result;
}

ListenChange *listen_change_prepare(Fiber *self, const NbdServer *server, const Config *now,
                                    GError **error)
{
    ListenChange *change = g_new0(ListenChange, 1);
    change->steps = g_array_new(false, true, sizeof(ListenStep));
    for (guint i = 0; i < now->entries->len; i++) {
        const ConfigEntry *entry = now->entries->pdata[i];
        if (entry->section != &settings_listen)
            continue;
        const ListenSettings *listen = entry->values;
        ListenStep step = {
            .entry = entry,
            .is_there = nbd_server_find_listeners(server, listen->address),
        };
        g_array_append_val(change->steps, step);
    }
    int r = loop_work(self, prepare_steps, change);
    if (r == 0)
        return change;
    if (change->error)
        g_propagate_error(error, g_steal_pointer(&change->error));
    else
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s", g_strerror(-r));
    listen_change_free(change);
    return NULL;
}

void listen_change_free(ListenChange *change)
{
    if (!change)
        return;
    for (guint i = 0; i < change->steps->len; i++) {
        listeners_free(get_step(change, i)->listeners);
        nbds_tls_clear(&get_step(change, i)->tls);
    }
    g_array_unref(change->steps);
    g_clear_error(&change->error);
    g_free(change);
}

static bool is_running(const NbdServer *server)
{
    return nbd_server_get(server) && !nbd_server_is_stopping(server);
}

static bool is_wanted(const ListenChange *change, const char *address)
{
    for (guint i = 0; i < change->steps->len; i++) {
        const ListenSettings *listen = get_step(change, i)->entry->values;
        if (g_str_equal(listen->address, address))
            return true;
    }
    return false;
}

static void end_others(Fiber *self, const ListenChange *change, NbdServer *server,
                       const Config *before, GPtrArray *done)
{
    for (guint i = 0; i < before->entries->len; i++) {
        const ConfigEntry *entry = before->entries->pdata[i];
        if (entry->section != &settings_listen)
            continue;
        const char *address = ((const ListenSettings *)entry->values)->address;
        Listeners *listeners = nbd_server_find_listeners(server, address);
        if (!listeners || is_wanted(change, address) || !is_running(server))
            continue;
        nbd_server_end_listeners(self, server, listeners);
        g_ptr_array_add(done, g_strdup_printf("no more clients are taken at %s", address));
    }
}

typedef struct LateOpening {
    ListenStep *step;
    GError *error;
} LateOpening;

static int open_late(void *arg)
{
    LateOpening *late = arg;
    late->step->listeners = open_listeners(late->step->entry, &late->error);
    return 0;
}

static void begin_step(Fiber *self, ListenStep *step, NbdServer *server, GPtrArray *done,
                       GPtrArray *failed)
{
    const ListenSettings *listen = step->entry->values;
    LateOpening late = {.step = step};
    int r = step->listeners ? 0 : loop_work(self, open_late, &late);
    if (!step->listeners)
        g_ptr_array_add(failed, late.error ? g_strdup(late.error->message)
                                           : g_strdup_printf("cannot listen at %s: %s",
                                                             listen->address, g_strerror(-r)));
    g_clear_error(&late.error);
    if (!step->listeners || !is_running(server))
        return;
    listeners_set_tls(step->listeners, &step->tls, listen->tls_certificates, listen->tls_psk);
    nbd_server_listen(server, g_steal_pointer(&step->listeners));
    g_ptr_array_add(done, g_strdup_printf("clients are taken at %s", listen->address));
}

static void change_step(Fiber *self, const ListenStep *step, Listeners *listeners,
                        GPtrArray *failed)
{
    const ListenSettings *listen = step->entry->values;
    SocketAccess access = access_of(listen);
    g_autoptr(GError) error = NULL;
    if (listeners_set_access(listeners, &access, &error) < 0)
        g_ptr_array_add(failed, g_strdup(error->message));
    listeners_change_tls(self, listeners, &step->tls, listen->tls_certificates, listen->tls_psk);
}

void listen_change_commit(Fiber *self, ListenChange *change, NbdServer *server,
                          const Config *before, GPtrArray *done, GPtrArray *failed)
{
    end_others(self, change, server, before, done);
    for (guint i = 0; i < change->steps->len && is_running(server); i++) {
        ListenStep *step = get_step(change, i);
        const ListenSettings *listen = step->entry->values;
        Listeners *there = nbd_server_find_listeners(server, listen->address);
        if (there)
            change_step(self, step, there, failed);
        else
            begin_step(self, step, server, done, failed);
    }
}
