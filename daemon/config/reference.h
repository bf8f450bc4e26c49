// SPDX-License-Identifier: LGPL-2.1-or-later
// The sections and keys as a part of the manual page chaind.conf(5). Pure.
#pragma once

// POD; owned.
char *config_reference_make(void);
