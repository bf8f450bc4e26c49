// SPDX-License-Identifier: LGPL-2.1-or-later
// Sockets that a service manager, or libnbd, hands to this process (sd_listen_fds(3)), by what
// their names (FileDescriptorName=) say they are for. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum ActivationUse {
    ACTIVATION_NBD, // "nbd", "unknown" or none (libnbd), "NAME.socket" (a unit that says nothing)
    ACTIVATION_CONTROL, // "control": QMP
    ACTIVATION_QUERY,   // "query": QMP, but only what changes nothing
    ACTIVATION_N_USES,
} ActivationUse;

typedef struct Activation {
    GArray *fds[ACTIVATION_N_USES]; // int; owned by whoever takes them from here
} Activation;

// Listening stream sockets, non-blocking and close-on-exec; forgets them in the environment, so
// that no child takes them for its own. -EINVAL with a sentence. Once, while there is no other
// thread.
int activation_take(Activation *ret_activation, GError **error);
// Closes nothing.
void activation_clear(Activation *activation);

bool activation_is_listening_stream(int fd);
