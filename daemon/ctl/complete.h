// SPDX-License-Identifier: LGPL-2.1-or-later
// What could stand at the end of a command line: for the completion of shells.
#pragma once

#include "ctl.h"

// `words` follow "chainctl"; the last one is what is being typed, perhaps "". Prints each word that
// could stand there on a line; of files the line is "FILES", since shells know them better. Asks
// the daemon for names, and is silent where there is none.
void complete_print(Ctl *ctl, char **words);
