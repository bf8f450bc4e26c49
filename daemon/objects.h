// SPDX-License-Identifier: LGPL-2.1-or-later
// Objects that are neither nodes nor exports, by their id. What one is, its kind knows
// (commands/object-kind.h). Control loop.
#pragma once

#include <glib.h>
#include <jansson.h>

#include "chain-core/loop.h"
#include "chain-core/tls-authz.h"

typedef struct ObjectKind ObjectKind;

typedef struct Object {
    char *id;
    const ObjectKind *kind;
    json_t *values;  // of its properties; NULL: its kind has them elsewhere
    Loop *loop;      // an iothread's
    TlsAuthz *authz; // of kinds that say who may connect
} Object;

typedef struct Objects Objects;

Objects *objects_new(void);
void objects_free(Objects *objects); // accepts NULL

// Takes `object`, of whose id there is none.
void objects_add(Objects *objects, Object *object);
void objects_delete(Objects *objects, Object *object);
// NULL: there is none of that id.
Object *objects_find(const Objects *objects, const char *id);
// All of them, Object, in the order in which they came.
const GPtrArray *objects_all(const Objects *objects);

Object *object_new(const char *id, const ObjectKind *kind);
void object_free(Object *object);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Object, object_free)
