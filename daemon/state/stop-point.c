// SPDX-License-Identifier: LGPL-2.1-or-later
// The program as users have it.
#include "stop-point.h"

void stop_point(const char *name)
{
}
