// SPDX-License-Identifier: LGPL-2.1-or-later
// The verb top: what disks do, live.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_top_family;
