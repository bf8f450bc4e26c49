// SPDX-License-Identifier: LGPL-2.1-or-later
// Disks: create, add, remove, export, resize.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_disks_family;
