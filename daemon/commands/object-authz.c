// SPDX-License-Identifier: LGPL-2.1-or-later
// Who may connect with TLS, as QEMU's objects say it. Lists can be changed while they are in use.
#include "object-authz.h"

#include "daemon/qmp/args.h"
#include "object-kind.h"

static const QmpType policy = {
    .name = "QAuthZListPolicy",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"deny", "allow", NULL},
};
static const QmpType format = {
    .name = "QAuthZListFormat",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"exact", "glob", NULL},
};
static const QmpType rule = {
    .name = "QAuthZListRule",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"match", &qmp_str, .doc = "an identity, or a pattern of some"},
                                   {"policy", &policy, .doc = "what is done with it"},
                                   {"format", &format, true, "what match is; exact without it"},
                                   {0}},
};
static const QmpType rules = {.kind = QMP_ARRAY, .element = &rule};

static const QmpType simple_properties = {
    .name = "AuthZSimpleProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"identity", &qmp_str,
                                    .doc = "a certificate's distinguished name, or the user of a "
                                           "shared key"},
                                   {0}},
};
static const QmpType list_properties = {
    .name = "AuthZListProperties",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"policy", &policy, true, "for whom no rule matches; deny without it"},
                            {"rules", &rules, true, "the first that matches decides"},
                            {0}},
};
static const QmpType list_file_properties = {
    .name = "AuthZListFileProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"filename", &qmp_str,
                                    .doc = "of a JSON object with policy and rules, as authz-list "
                                           "has them"},
                                   {"refresh", &qmp_bool, true,
                                    "whether it is read again when it has changed; it is without "
                                    "it"},
                                   {0}},
};

TlsAuthz *object_authz_find(const Daemon *daemon, const char *id, GError **error)
{
    const Object *object = objects_find(daemon->objects, id);
    if (!object)
        qmp_fail(error, "No authorization object with id '%s'", id);
    else if (!object->authz)
        qmp_fail(error, "Object with id '%s' is not an authorization object", id);
    return object ? object->authz : NULL;
}

static int make_simple(Fiber *self, Daemon *daemon, Object *object, const json_t *args,
                       GError **error)
{
    const char *identity = qmp_args_str(args, "identity");
    object->values = json_pack("{s:s}", "identity", identity);
    object->authz = tls_authz_new_simple(identity);
    return 0;
}

static int make_list(Fiber *self, Daemon *daemon, Object *object, const json_t *args,
                     GError **error)
{
    object->values = json_pack("{s:s, s:[]}", "policy", "deny", "rules");
    json_object_update_existing(object->values, (json_t *)args);
    object->authz = tls_authz_new_list(object->values, error);
    return object->authz ? 0 : -EINVAL;
}

// On a worker.
typedef struct Reading {
    const char *path;
    bool refreshes;
    TlsAuthz *authz;
    GError *error;
} Reading;

static int read_list(void *arg)
{
    Reading *reading = arg;
    reading->authz = tls_authz_new_list_file(reading->path, reading->refreshes, &reading->error);
    return reading->authz ? 0 : -EINVAL;
}

static int make_list_file(Fiber *self, Daemon *daemon, Object *object, const json_t *args,
                          GError **error)
{
    Reading reading = {.path = qmp_args_str(args, "filename"),
                       .refreshes = qmp_args_bool(args, "refresh", true)};
    object->values =
        json_pack("{s:s, s:b}", "filename", reading.path, "refresh", (int)reading.refreshes);
    int r = loop_work(self, read_list, &reading);
    if (reading.error)
        g_propagate_error(error, reading.error);
    object->authz = reading.authz;
    return r;
}

// A list, for who connects from now on.
static int set(Daemon *daemon, Object *object, const char *property, json_t *value, GError **error)
{
    json_auto_t *changed = json_copy(object->values);
    json_object_set(changed, property, value);
    int r = tls_authz_set_list(object->authz, changed, error);
    if (r == 0)
        json_object_set(object->values, property, value);
    return r;
}

const ObjectKind object_authz_simple_kind = {
    .name = "authz-simple",
    .parent = "authz",
    .properties = &simple_properties,
    .make = make_simple,
    .get = object_kind_get_value,
};
const ObjectKind object_authz_list_kind = {
    .name = "authz-list",
    .parent = "authz",
    .properties = &list_properties,
    .make = make_list,
    .get = object_kind_get_value,
    .set = set,
};
const ObjectKind object_authz_list_file_kind = {
    .name = "authz-list-file",
    .parent = "authz",
    .properties = &list_file_properties,
    .make = make_list_file,
    .get = object_kind_get_value,
};
