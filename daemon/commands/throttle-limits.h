// SPDX-License-Identifier: LGPL-2.1-or-later
// ThrottleLimits as QMP has it. Pure.
#pragma once

#include "chain-core/throttle-group.h"
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
