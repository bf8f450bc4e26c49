// SPDX-License-Identifier: LGPL-2.1-or-later
// Places between the steps of a change at which a test ends the process. Does nothing, but in the
// program that tests are run with (tests/integration/test-disks-killed.py).
#pragma once

void stop_point(const char *name);
