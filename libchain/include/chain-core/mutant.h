// SPDX-License-Identifier: LGPL-2.1-or-later
// The places that docs/ordering.md and the other rules rest on have a name: a sync, a wait, a lock,
// a check. A build for tests (-Dmutants=true) leaves the one out that CHAIND_MUTANT in the
// environment names, and some test must fail then (tests/mutants). In every other build MUTANT() is
// false, and nothing of it is left in the program. Any thread.
#pragma once

#include <stdbool.h>

#ifdef CHAIND_MUTANTS
bool mutant_is_on(const char *name);
#define MUTANT(name) __builtin_expect(mutant_is_on(name), 0)
#else
#define MUTANT(name) false
#endif
