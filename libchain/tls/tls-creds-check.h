// SPDX-License-Identifier: LGPL-2.1-or-later
// Are certificates such that a peer can accept them? Asked when they are loaded, so that what is
// wrong is told to who made them, not to a client days later. Blocks. Any thread.
#pragma once

#include "chain-core/tls-creds.h"

// `certificate`: our own, NULL: we have none. `authority`: a file of those trusted. 0, or -EINVAL
// with QEMU's sentence.
int tls_creds_check(TlsEnd end, const char *authority, const char *certificate, GError **error);
