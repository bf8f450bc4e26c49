// SPDX-License-Identifier: LGPL-2.1-or-later
// All commands and events by name, from the families; and a request brought to its command.
// Control loop.
#pragma once

#include "command.h"

// `families` ends with NULL and is borrowed.
QmpTable *qmp_table_new(const QmpFamily *const *families);
void qmp_table_free(QmpTable *table);

const QmpFamily *const *qmp_table_families(const QmpTable *table);
// NULL: there is none of that name.
const QmpCommand *qmp_table_find_command(const QmpTable *table, const char *name);
const QmpEvent *qmp_table_find_event(const QmpTable *table, const char *name);
const QmpAction *qmp_table_find_action(const QmpTable *table, const char *name);

// Checks `args` (an object; changed in place from dotted keys) and runs the command. 0, or a
// negative errno with `error`. `*ret_reply`: a new reference, {} when the command gives nothing.
int qmp_table_run(Fiber *self, QmpCall *call, const QmpCommand *command, json_t *args,
                  QmpInput input, json_t **ret_reply, GError **error);
// The command of this name, for another one that consists of it, with `args` (taken); its reply is
// dropped.
int qmp_table_run_by_name(Fiber *self, const QmpCall *call, const char *name, json_t *args,
                          GError **error);

// A request of the wire, `{"execute": …, "arguments": …, "id": …}`, and its reply: {"return": …} or
// {"error": …}, with the id. A new reference.
json_t *qmp_table_dispatch(Fiber *self, QmpCall *call, const json_t *request);
