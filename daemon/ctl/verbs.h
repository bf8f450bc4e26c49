// SPDX-License-Identifier: LGPL-2.1-or-later
// All verbs.
#pragma once

#include "verb.h"

extern const VerbFamily *const verb_families[]; // ends with NULL
