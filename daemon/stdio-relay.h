// SPDX-License-Identifier: LGPL-2.1-or-later
// Standard input and output as one socket, for what knows sockets only.
#pragma once

#include <glib.h>

typedef struct StdioRelay StdioRelay;

// `*ret_fd`: the socket, owned by the caller; its end ends the relay. NULL with a sentence.
StdioRelay *stdio_relay_new(int *ret_fd, GError **error);
// Waits until what was sent to the socket before its end is written, unless nobody reads it.
// Accepts NULL.
void stdio_relay_free(StdioRelay *relay);
