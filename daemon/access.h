// SPDX-License-Identifier: LGPL-2.1-or-later
// Who may use which export, as the [export] sections of the configuration say it. Any thread.
#pragma once

#include "daemon/config/config.h"
#include "nbd/server.h"

typedef struct Access Access;

// Everybody may use everything.
Access *access_new(void);
void access_free(Access *access); // accepts NULL
// From now on as `config` says, which is borrowed until the next one is set.
void access_set(Access *access, const Config *config);
bool access_allows(Access *access, const NbdsPeer *peer, const char *export_name);
