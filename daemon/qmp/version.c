// SPDX-License-Identifier: LGPL-2.1-or-later
// The version. Pure.
#include "version.h"

json_t *qmp_version_make(void)
{
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "micro", 2, "minor", 0, "major", 10,
                     "package", "chaind " CHAIND_VERSION);
}
