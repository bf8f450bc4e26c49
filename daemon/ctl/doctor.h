// SPDX-License-Identifier: LGPL-2.1-or-later
// The verb doctor: what is wrong, and what mends it.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_doctor_family;
