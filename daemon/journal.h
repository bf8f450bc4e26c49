// SPDX-License-Identifier: LGPL-2.1-or-later
// systemd's journal, natively. Any thread.
#pragma once

#include <stdbool.h>

// Has systemd connected `fd` to the journal?
bool journal_is_behind(int fd);
// One entry of `n` fields, "NAME=value" each. False: the journal did not take it.
bool journal_send(char *const *fields, unsigned n);
