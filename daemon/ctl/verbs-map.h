// SPDX-License-Identifier: LGPL-2.1-or-later
// map.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_map_family;
