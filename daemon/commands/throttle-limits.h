// SPDX-License-Identifier: LGPL-2.1-or-later
// ThrottleLimits as QMP has it. Pure.
#pragma once

#include "chain-core/throttle-group.h"
#include "daemon/exports.h"
#include "daemon/qmp/type.h"

extern const QmpType throttle_limits_type;
// Of an object: "limits", and the older members x-iops-total and so on.
extern const QmpMember throttle_group_members[];

// Changes what `json`, checked against the type, says; then checks the whole. QEMU's words.
int throttle_limits_from_json(const json_t *json, ThrottleLimits *limits, GError **error);
// The same from members of an object, which have an "x-" in front.
int throttle_limits_from_members(const json_t *json, ThrottleLimits *limits, GError **error);
// All of it; a new reference.
json_t *throttle_limits_to_json(const ThrottleLimits *limits);

// {"group": …, "limits": …}: the limits of an export, as they are told and remembered.
extern const QmpType export_throttle_type;
json_t *export_throttle_to_json(const ExportThrottle *throttle); // a new reference
// `json` NULL: NULL. Borrowed.
const char *export_throttle_group(const json_t *json);
// False: there are none in `json` (which may be NULL), or none that make sense. `group` is
// borrowed.
bool export_throttle_from_json(const json_t *json, ExportThrottle *ret_throttle);
