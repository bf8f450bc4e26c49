// SPDX-License-Identifier: LGPL-2.1-or-later
// What chainctl says of itself.
#pragma once

#include <stdio.h>

#include "verb.h"

void help_print_all(FILE *to, const VerbFamily *const *families);
void help_print_verb(FILE *to, const Verb *verb);
