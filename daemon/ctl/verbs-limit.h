// SPDX-License-Identifier: LGPL-2.1-or-later
// limit: how much clients may do.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_limit_family;
