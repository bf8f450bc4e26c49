// SPDX-License-Identifier: LGPL-2.1-or-later
// Objects that are neither nodes nor exports, by their id: throttle groups, and iothreads, which are
// names only (loops are made at the start). Control loop.
#pragma once

#include <glib.h>

#include "chain-core/throttle-group.h"

typedef enum ObjectKind { OBJECT_THROTTLE_GROUP, OBJECT_IOTHREAD, OBJECT_N_KINDS } ObjectKind;

typedef struct Object {
    char *id;
    ObjectKind kind;
} Object;

typedef struct Objects Objects;

Objects *objects_new(void);
void objects_free(Objects *objects); // accepts NULL

// QEMU's words when there is one of that id. `limits` (of a throttle group, else NULL) were checked.
int objects_add(Objects *objects, const Object *object, const ThrottleLimits *limits,
                GError **error);
// QEMU's words when there is none, or it is in use.
int objects_delete(Objects *objects, const char *id, GError **error);
// NULL: there is none of that id.
const Object *objects_find(const Objects *objects, const char *id);
// All of them, Object, in the order in which they came.
const GPtrArray *objects_all(const Objects *objects);

// The throttle groups among them; any thread.
ThrottleGroups *objects_throttle_groups(const Objects *objects);
