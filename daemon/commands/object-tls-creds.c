// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials for TLS, which the NBD server does not speak yet: arguments are checked, so that a
// wrong one is told as such, and then none is made.
#include "object-kind.h"

static const QmpType endpoint = {
    .name = "QCryptoTLSCredsEndpoint",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"client", "server", NULL},
};

#define COMMON_MEMBERS                                                                             \
    {"endpoint", &endpoint, true, "which end it is for"},                                          \
        {"dir", &qmp_str, true, "where the files are"},                                            \
        {"verify-peer", &qmp_bool, true, "whether the other end must show its own"},               \
    {                                                                                              \
        "priority", &qmp_str, true, "of the library's algorithms"                                  \
    }

static const QmpType anon_properties = {
    .name = "TlsCredsAnonProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS, {0}},
};
static const QmpType psk_properties = {
    .name = "TlsCredsPskProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS, {"username", &qmp_str, true, "whose key"}, {0}},
};
static const QmpType x509_properties = {
    .name = "TlsCredsX509Properties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){COMMON_MEMBERS,
                                   {"sanity-check", &qmp_bool, true, "whether they are checked"},
                                   {"passwordid", &qmp_str, true, "a secret that opens the key"},
                                   {0}},
};

static int refuse(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    return qmp_fail(error, "TLS is not supported: there can be no object of the type '%s'",
                    object->kind->name);
}

#define KIND(type)                                                                                 \
    {                                                                                              \
        .name = "tls-creds-" #type, .parent = "tls-creds", .properties = &type##_properties,       \
        .is_refused = true, .make = refuse                                                         \
    }
const ObjectKind object_tls_creds_anon_kind = KIND(anon);
const ObjectKind object_tls_creds_psk_kind = KIND(psk);
const ObjectKind object_tls_creds_x509_kind = KIND(x509);
