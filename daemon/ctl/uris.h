// SPDX-License-Identifier: LGPL-2.1-or-later
// What is said of a disk or export that was made.
#pragma once

#include <jansson.h>

#include "output.h"

// The URIs of `exports`, one a line; as JSON `described`, what the daemon said.
void uris_print(const Output *output, const json_t *described, const json_t *exports);
