// SPDX-License-Identifier: LGPL-2.1-or-later
// Going to the background. Main thread.
#pragma once

#include <glib.h>

typedef struct Daemonize Daemonize;

// Forks, while there is only this thread: returns in the child; the parent waits for
// daemonize_ready() and ends with status 0, or with 1 when the child ended before. NULL with a
// sentence.
Daemonize *daemonize_begin(GError **error);
// Lets the parent end, and leaves the terminal: what is logged from now on is not seen.
void daemonize_ready(Daemonize *daemonize);
// A parent that still waits ends with status 1. Accepts NULL.
void daemonize_free(Daemonize *daemonize);
