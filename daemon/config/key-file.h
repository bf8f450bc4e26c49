// SPDX-License-Identifier: LGPL-2.1-or-later
// One file in the form of GLib's key files, with the line of everything in it. Blocking.
#pragma once

#include <glib.h>

typedef struct KeyFileLine {
    char *group; // of the section's header: "listen local"
    char *key;   // NULL: it is that header
    char *value; // without GLib's escapes
    unsigned number;
} KeyFileLine;

// The headers and keys in their order, KeyFileLine, owned. What is wrong with the file is appended
// to `mistakes` (char *), as sentences that begin with its path and a line; NULL: it cannot be
// read.
GPtrArray *key_file_read(const char *path, GPtrArray *mistakes);
// "PATH:LINE: sentence" (without the line if it is 0), to the end of `mistakes`.
void key_file_mistake(GPtrArray *mistakes, const char *path, unsigned number, const char *format,
                      ...) G_GNUC_PRINTF(4, 5);
