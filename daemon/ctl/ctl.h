// SPDX-License-Identifier: LGPL-2.1-or-later
// What a verb has at hand: its arguments, the output, and the daemon, to which it is connected at
// the first use.
#pragma once

#include "arguments.h"
#include "output.h"
#include "qmp-client.h"

struct Ctl {
    const VerbFamily *const *families; // all there are
    const Verb *verb;
    Arguments *arguments;
    Output output;
    char *socket;
    QmpClient *client; // NULL: not connected
};

// `words` follow the verb's name. CTL_USAGE when they make no sense.
int ctl_init(Ctl *ctl, const VerbFamily *const *families, const Verb *verb, char **words,
             GError **error);
void ctl_done(Ctl *ctl);

// The word at this place, or NULL. Borrowed.
const char *ctl_word(const Ctl *ctl, unsigned i);
// NULL: `error`. Borrowed.
QmpClient *ctl_client(Ctl *ctl, GError **error);
// Connects if need be and runs a command: qmp_client_run().
json_t *ctl_run(Ctl *ctl, const char *command, json_t *args, GError **error);
// The same, with arguments as for json_pack().
json_t *ctl_run_with(Ctl *ctl, const char *command, GError **error, const char *format, ...);
// Runs a command of which only its success matters. 0, or -1 with `error`.
int ctl_do(Ctl *ctl, const char *command, json_t *args, GError **error);

// Where the daemon is expected without --socket. Borrowed.
const char *ctl_default_socket(void);
