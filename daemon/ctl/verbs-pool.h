// SPDX-License-Identifier: LGPL-2.1-or-later
// Directories that the service may write besides its own. Not a daemon's business but systemd's:
// the verbs change files of the administrator, and ask no daemon.
#pragma once

#include "verb.h"

extern const VerbFamily verbs_pool_family;
