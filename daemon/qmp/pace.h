// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that look at many things let other monitors go on from time to time.
#pragma once

#include <glib.h>

#include "chain-core/fiber.h"

typedef struct QmpPace {
    gint64 began_us; // of what was done in one go
} QmpPace;

static inline QmpPace qmp_pace_begin(void)
{
    return (QmpPace){g_get_monotonic_time()};
}

// Suspends if it is time to: what was borrowed from the daemon's tables may be gone then.
static inline void qmp_pace(Fiber *self, QmpPace *pace)
{
    enum { LONG_US = 500 }; // a tenth of what a query may delay another by
    if (g_get_monotonic_time() - pace->began_us < LONG_US)
        return;
    fiber_yield(self);
    *pace = qmp_pace_begin();
}
