// SPDX-License-Identifier: LGPL-2.1-or-later
// What --chardev says, as qemu-storage-daemon has it: flat, unlike the argument of chardev-add.
// Pure.
#pragma once

#include "options.h"

// Checks it, and brings it into the form of chardev-add: {"id": …, "backend": …}, a new object.
// NULL with QEMU's words.
json_t *chardev_option_parse(const StartupOption *option, GError **error);
