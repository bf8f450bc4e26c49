// SPDX-License-Identifier: LGPL-2.1-or-later
// The file with the number of the process. Main thread.
#pragma once

#include <glib.h>

typedef struct PidFile PidFile;
// Makes `path`, which must not be that of another running process. NULL with a sentence.
PidFile *pid_file_new(const char *path, GError **error);
// Removes it. Accepts NULL.
void pid_file_free(PidFile *file);
