// SPDX-License-Identifier: LGPL-2.1-or-later
// Does what the options of qemu-storage-daemon ask for. Control loop.
#pragma once

#include "daemon/qmp/command.h"
#include "options.h"

// Runs the command that each option stands for, in their order, as if a monitor had sent it. The
// first that fails ends it: a negative errno with a sentence that begins with the option.
int startup_run(Fiber *self, QmpCall *call, const Options *options, GError **error);
