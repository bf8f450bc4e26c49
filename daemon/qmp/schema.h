// SPDX-License-Identifier: LGPL-2.1-or-later
// The answer of query-qmp-schema, made from the tables, in the format of QEMU's introspection.
#pragma once

#include <jansson.h>

#include "command.h"

// An array; a new reference.
json_t *qmp_schema_make(const QmpFamily *const *families);
