// SPDX-License-Identifier: LGPL-2.1-or-later
// The command line of a verb, checked against its table: words and options by name. Pure.
#pragma once

#include <stdint.h>

#include "verb.h"

typedef struct Arguments Arguments;

// The options of every verb; ends with an entry without a name.
extern const VerbOption arguments_common[];

// `words` (NULL-terminated, borrowed) follow the verb. NULL: they make no sense, CTL_USAGE.
Arguments *arguments_parse(const Verb *verb, char **words, GError **error);
void arguments_free(Arguments *arguments); // accepts NULL

// The words that are no options; never NULL, NULL-terminated. Borrowed.
char **arguments_words(const Arguments *arguments);
// Options of the verb's table. Borrowed; NULL: not given.
const char *arguments_text(const Arguments *arguments, const char *option);
bool arguments_flag(const Arguments *arguments, const char *option);
bool arguments_have(const Arguments *arguments, const char *option);
// Checked when they were parsed.
uint64_t arguments_size(const Arguments *arguments, const char *option, uint64_t otherwise);
uint64_t arguments_count(const Arguments *arguments, const char *option, uint64_t otherwise);
double arguments_seconds(const Arguments *arguments, const char *option, double otherwise);

// "DISK@POINT [FILE]"; owned.
char *arguments_usage(const Verb *verb);
