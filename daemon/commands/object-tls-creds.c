// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials for TLS, in libchain's table, where NBD servers and nodes find them. They are read
// when the object is made: who wants others makes another object. Anonymous ones, which keep nobody
// out, are refused.
#include "daemon/qmp/args.h"
#include "object-kind.h"
#include "object-secret.h"

static const QmpType endpoint = {
    .name = "QCryptoTLSCredsEndpoint",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"client", "server", NULL},
};

#define COMMON_MEMBERS                                                                             \
    {"endpoint", &endpoint, true, "which end it is for; client without it"},                       \
        {"dir", &qmp_str, true, "where the files are"},                                            \
        {"verify-peer", &qmp_bool, true,                                                           \
         "whether the other end must show a certificate of the authority; it must without it"},    \
    {                                                                                              \
        "priority", &qmp_str, true, "gnutls's priority string; without it NORMAL, from TLS 1.2 on" \
    }

static const QmpType anon_properties = {
    .name = "TlsCredsAnonProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS, {0}},
};
static const QmpType psk_properties = {
    .name = "TlsCredsPskProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS,
                                   {"username", &qmp_str, true,
                                    "clients: whose key in keys.psk; qemu without it"},
                                   {0}},
};
static const QmpType x509_properties = {
    .name = "TlsCredsX509Properties",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){COMMON_MEMBERS,
                            {"sanity-check", &qmp_bool, true,
                             "whether certificates that no peer could accept are refused; they "
                             "are without it"},
                            {"passwordid", &qmp_str, true, "a secret that opens the key's file"},
                            {0}},
};

// On a worker.
typedef struct Loading {
    TlsCreds *(*load)(const TlsCredsConfig *config, GError **error);
    TlsCredsConfig config;
    TlsCreds *creds;
    GError *error;
} Loading;

static int load(void *arg)
{
    Loading *l = arg;
    l->creds = l->load(&l->config, &l->error);
    return l->creds ? 0 : -EINVAL;
}

static int make(Fiber *self, Daemon *daemon, Object *object, const json_t *args, Loading *l,
                GError **error)
{
    l->config.end = g_strcmp0(qmp_args_str(args, "endpoint"), "server") ? TLS_CLIENT : TLS_SERVER;
    l->config.dir = qmp_args_str(args, "dir");
    l->config.verifies_peer = qmp_args_bool(args, "verify-peer", true);
    l->config.algorithms = qmp_args_str(args, "priority");
    if (l->config.username && l->config.end == TLS_SERVER)
        return qmp_fail(error, "username should not be set when endpoint=server");
    int r = loop_work(self, load, l);
    if (l->error)
        g_propagate_error(error, l->error);
    if (r == 0 && objects_find(daemon->objects, object->id)) { // it suspended
        tls_creds_unref(l->creds);
        return 0; // object_add() will say so
    }
    if (r < 0)
        return r;
    object->values = json_pack("{s:s, s:s, s:b, s:s, s:b, s:s, s:s}", "endpoint", "client", "dir",
                               "", "verify-peer", 1, "priority", "", "sanity-check", 1,
                               "passwordid", "", "username", "");
    json_object_update_existing(object->values, (json_t *)args);
    tls_creds_table_set(daemon->tls_creds, object->id, l->creds);
    return 0;
}

static int make_x509(Fiber *self, Daemon *daemon, Object *object, const json_t *args,
                     GError **error)
{
    const char *secret = qmp_args_str(args, "passwordid");
    g_autofree char *password = secret ? object_secret_read(self, daemon, secret, error) : NULL;
    if (secret && !password)
        return -EINVAL;
    Loading l = {.load = tls_creds_new_x509};
    l.config.skips_sanity = !qmp_args_bool(args, "sanity-check", true);
    l.config.password = password;
    return make(self, daemon, object, args, &l, error);
}

static int make_psk(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    Loading l = {.load = tls_creds_new_psk};
    l.config.username = qmp_args_str(args, "username");
    return make(self, daemon, object, args, &l, error);
}

// Who uses them keeps them.
static int unmake(Daemon *daemon, Object *object, GError **error)
{
    if (object->values) // it got so far
        tls_creds_table_set(daemon->tls_creds, object->id, NULL);
    return 0;
}

static int refuse(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    return qmp_fail(error, "Anonymous TLS keeps nobody out: use tls-creds-x509 or tls-creds-psk");
}

const ObjectKind object_tls_creds_anon_kind = {
    .name = "tls-creds-anon",
    .parent = "tls-creds",
    .properties = &anon_properties,
    .is_refused = true,
    .make = refuse,
};
const ObjectKind object_tls_creds_psk_kind = {
    .name = "tls-creds-psk",
    .parent = "tls-creds",
    .properties = &psk_properties,
    .make = make_psk,
    .unmake = unmake,
    .get = object_kind_get_value,
};
const ObjectKind object_tls_creds_x509_kind = {
    .name = "tls-creds-x509",
    .parent = "tls-creds",
    .properties = &x509_properties,
    .make = make_x509,
    .unmake = unmake,
    .get = object_kind_get_value,
};
