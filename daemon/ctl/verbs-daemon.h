// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon itself: status, events, log-level.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_daemon_family;
