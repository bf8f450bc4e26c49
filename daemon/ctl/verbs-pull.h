// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "verb.h"

extern const VerbFamily verbs_pull_family;
