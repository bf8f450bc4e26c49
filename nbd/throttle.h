// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits of an export: requests of its connections wait before they enter its port, so no drain
// waits for them. Each connection is a member of the export's throttle group. While it is, it holds
// no more memory than its own share (admission.h), beside one request that is larger than that:
// what waits long takes little from others. On the export's loop.
//
// Reads and CACHE count by their bytes, writes by theirs; WRITE_ZEROES and TRIM move no data, and
// count as a request only. FLUSH and BLOCK_STATUS do not wait.
#pragma once

#include "connection.h"

// A connection begins to transmit, or its export has got another group.
void nbds_throttle_join(NbdsConnection *c);
// Waits until this request may go on.
void nbds_throttle_wait(Fiber *self, const NbdsConnection *c, const NbdsRequestHead *head);
