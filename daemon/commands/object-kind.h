// SPDX-License-Identifier: LGPL-2.1-or-later
// Kinds of objects: how one is made, changed and deleted, and which properties it has. A kind is a
// file object-KIND.c, and a line in the table of objects.c. Control loop.
#pragma once

#include "daemon/daemon.h"
#include "daemon/objects.h"
#include "daemon/qmp/type.h"

struct ObjectKind {
    const char *name;
    const char *parent;        // the type that it is a kind of, as qom-list-types tells it
    const QmpType *properties; // an object: of object-add, of qom-list
    bool is_refused;           // none can be made; only their arguments are known
    // Makes it of `args`, which are of the type; may suspend. What fails undoes itself.
    int (*make)(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error);
    // Undoes make: QEMU's words when it is in use. NULL: there is nothing to undo.
    int (*unmake)(Daemon *daemon, Object *object, GError **error);
    // A property of the type: its value, a new reference.
    json_t *(*get)(const Daemon *daemon, const Object *object, const char *property);
    // NULL: none can be changed.
    int (*set)(Daemon *daemon, Object *object, const char *property, json_t *value, GError **error);
};

extern const ObjectKind object_throttle_group_kind, object_iothread_kind, object_secret_kind,
    object_authz_simple_kind, object_authz_list_kind, object_authz_list_file_kind,
    object_tls_creds_anon_kind, object_tls_creds_psk_kind, object_tls_creds_x509_kind;

// NULL: it has none of that name.
const QmpMember *object_kind_find_property(const ObjectKind *kind, const char *name);
// Is `value` one for that property? 0, or QEMU's words.
int object_kind_check_value(const QmpMember *property, json_t *value, GError **error);

// `get` of kinds whose objects have all in `values`.
json_t *object_kind_get_value(const Daemon *daemon, const Object *object, const char *property);
