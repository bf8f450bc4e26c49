// SPDX-License-Identifier: LGPL-2.1-or-later
// What moves data: backup, mirror, flatten, commit.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_copies_family;
