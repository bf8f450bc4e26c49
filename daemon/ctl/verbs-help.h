// SPDX-License-Identifier: LGPL-2.1-or-later
// help, and what the completion of shells asks.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_help_family;
