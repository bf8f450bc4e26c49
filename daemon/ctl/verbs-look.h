// SPDX-License-Identifier: LGPL-2.1-or-later
// What there is: ls, info, tree, map, top.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_look_family;
