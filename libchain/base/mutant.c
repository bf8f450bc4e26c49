// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads the environment once. Any thread.
#include "chain-core/mutant.h"

#include <stdlib.h>
#include <string.h>

#ifdef CHAIND_MUTANTS
bool mutant_is_on(const char *name)
{
    static const char *on;
    if (!on) {
        const char *text = getenv("CHAIND_MUTANT");
        on = text ? text : "";
    }
    return strcmp(on, name) == 0;
}
#endif
