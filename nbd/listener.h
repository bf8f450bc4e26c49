// SPDX-License-Identifier: LGPL-2.1-or-later
// One listening socket: accepts clients on its loop and starts them as far as there is room.
//
// There is room for a client while the server has fewer than its limit, while descriptors are left
// besides those that images and jobs may need, and while fewer handshakes than their limit are
// unfinished on the loop. Without room one client is held unanswered, the others wait in the
// kernel's backlog, and whichever handshake of the loop has been unfinished for longest, and for
// longer than its grace, is dropped. The server is told (nbds_server_report_full()).
#pragma once

#include "nbd/server.h"
#include "server-loop.h"

// Takes `fd`, and references of `tls` (NULL: off). Any thread, like nbds_listener_free(), which is
// for one that has ended.
NbdsListener *nbds_listener_new(NbdsServerLoop *server_loop, int fd, const NbdsTls *tls);
void nbds_listener_free(NbdsListener *listener);

// Any thread. From its start to its end the listener holds the server (nbds_server_hold()).
void nbds_listener_start(NbdsListener *listener);
// With the server's lock held: it is not freed meanwhile.
void nbds_listener_stop(NbdsListener *listener);
// Returns when it has ended, if it was started. From a fiber of any loop.
void nbds_listener_end(Fiber *self, NbdsListener *listener);
