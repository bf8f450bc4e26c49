// SPDX-License-Identifier: LGPL-2.1-or-later
// The [throttle-group] sections of the configuration as groups, and which exports are in them. An
// object of the same name keeps its limits. Control loop, unless said otherwise.
#pragma once

#include "daemon.h"

// At the start, before there are exports and objects. Main thread.
void throttle_policy_begin(Daemon *daemon);
// `daemon->config` is a new one, and `before` was the old one. Sentences (char *) are appended to
// `failed`.
void throttle_policy_change(Fiber *self, Daemon *daemon, const Config *before, GPtrArray *failed);
// Are the limits of that group the configuration's? Then others may not change them: -EPERM with a
// sentence.
int throttle_policy_check_not_its_group(const Daemon *daemon, const char *group, GError **error);
