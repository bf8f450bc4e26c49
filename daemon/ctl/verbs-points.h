// SPDX-License-Identifier: LGPL-2.1-or-later
// Points in time: snapshot, delete, rollback, clone.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_points_family;
