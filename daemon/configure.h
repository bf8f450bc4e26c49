// SPDX-License-Identifier: LGPL-2.1-or-later
// The configuration: read, checked, and joined with the command line. Blocking.
#pragma once

#include "options.h"

// Reads the files that the command line asks for, if any; owned. Mistakes as config_read() has
// them.
Config *configure_read(const Options *options, GPtrArray *mistakes);
// What --service has where nothing says otherwise: a socket for commands, and one for NBD clients,
// unless sockets were `given` for that.
void configure_add_defaults(Config *config, const Options *options, bool is_nbd_given,
                            bool is_control_given);
// Reads what the command line asks for, if anything. 0 with `*ret_config`, owned. -EINVAL: the log
// has every mistake.
int configure(Options *options, Config **ret_config);
// --check-config: says on stdout which files are right, and in the log what is wrong. Returns the
// program's exit status.
int configure_check(const Options *options);
