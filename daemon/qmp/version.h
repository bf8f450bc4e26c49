// SPDX-License-Identifier: LGPL-2.1-or-later
// The version that is told to clients: that of QEMU whose commands are spoken here, and our own as
// the package. Pure.
#pragma once

#include <jansson.h>

// A new reference.
json_t *qmp_version_make(void);
