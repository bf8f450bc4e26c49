// SPDX-License-Identifier: LGPL-2.1-or-later
// Descriptors that the process was started with. Numbers come from the command line or from
// clients: only what was inherited can be meant, and each once, so that nothing is closed twice,
// and no file of ours is taken for a socket. Any thread.
#pragma once

#include <stdbool.h>

#include <glib.h>

typedef struct InheritedFds InheritedFds;

// What there is, but for the standard three. Before anything else is opened.
InheritedFds *inherited_fds_new(void);
void inherited_fds_free(InheritedFds *fds); // accepts NULL

// A stream socket, by its number: owned from now on, close-on-exec and non-blocking. A negative
// errno with QEMU's words, or when it is none of these, or taken already.
int inherited_fds_take(InheritedFds *fds, const char *text, GError **error);
// Sockets from this one on are taken by others.
void inherited_fds_forget(InheritedFds *fds, int first, unsigned n);
