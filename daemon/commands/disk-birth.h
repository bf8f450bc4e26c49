// SPDX-License-Identifier: LGPL-2.1-or-later
// A disk comes into the catalogue: its layers, its policy, the export of its head. Control loop,
// with the catalogue's lock.
#pragma once

#include "daemon/qmp/command.h"
#include "daemon/state/catalogue.h"

// Members of the arguments of every command that makes a disk, to be followed by its own.
#define DISK_BIRTH_MEMBERS                                                                         \
    {"name", &qmp_str, .doc = "of the disk: a letter, then letters, digits and - . _"},            \
        {"export", &qmp_bool, true,                                                                \
         "whether the head is exported, writable, under the disk's name. true, unless given"},     \
        {"description", &qmp_str, true, "of that export, for clients"},                            \
    {                                                                                              \
        "direct", &qmp_bool, true, "whether its files are used past the page cache; false"         \
    }

// May there be a disk as `args` say? A sentence if not.
int disk_birth_check(const QmpCall *call, const Catalogue *catalogue, const json_t *args,
                     GError **error);
// The disk of these arguments, whose head is there already as a layer in `change`, opened,
// exported, and, with `change` (taken), remembered. On failure it is as if there had been none, but
// for its layers.
int disk_birth_finish(Fiber *self, const QmpCall *call, Catalogue *catalogue,
                      DatabaseChange *change, const json_t *args, DiskLayer *head,
                      json_t **ret_reply, GError **error);
