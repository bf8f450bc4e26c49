// SPDX-License-Identifier: LGPL-2.1-or-later
// How a function of the control path fails: one sentence in a GError, and a negative errno. Pure;
// any thread.
#pragma once

#include <glib.h>

// Sets `error` (may be NULL) to the sentence and returns `negative_errno`, so that a failing
// function is one statement: return error_set(error, -EINVAL, "…", …). Control characters and
// broken UTF-8, which names from images may hold, are shown as escapes.
int error_set(GError **error, int negative_errno, const char *format, ...) G_GNUC_PRINTF(3, 4);
