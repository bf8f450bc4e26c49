// SPDX-License-Identifier: LGPL-2.1-or-later
// Why and when the daemon ends: SIGTERM, SIGINT, a terminal that goes away, or the last client of a
// socket-activated one. SIGHUP otherwise asks for something else.
#pragma once

typedef struct Stop Stop;

// Blocks the signals that stop the daemon in this thread, hence in all that are started from it,
// and starts the thread that waits for them. Before any other thread. A signal a second or more
// after the first one ends the process at once with status 1.
Stop *stop_new(void);

// What is still to be done when a later signal ends the process: `fn` runs on the signals' thread.
// NULL takes it back; it does not run any more after that.
void stop_set_leave(Stop *stop, void (*fn)(void *arg), void *arg);

// What SIGHUP asks for: `fn` runs on the signals' thread, and must not block. NULL takes it back;
// it does not run any more after that. Without one, nothing.
void stop_set_reload(Stop *stop, void (*fn)(void *arg), void *arg);

// Asks for the end. `why` is a literal for the log. Any thread; returns at once.
void stop_request(Stop *stop, const char *why);
// Waits until somebody asked, and returns why.
const char *stop_wait(Stop *stop);
