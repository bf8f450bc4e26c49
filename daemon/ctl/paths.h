// SPDX-License-Identifier: LGPL-2.1-or-later
// Names of files for the daemon, which has another working directory.
#pragma once

#include <jansson.h>

// Absolute, unless it is a URI or another name of an image ("json:…"). Owned.
char *paths_absolute(const char *name);
// The same as a JSON string.
json_t *paths_json(const char *name);
