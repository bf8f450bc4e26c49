// SPDX-License-Identifier: LGPL-2.1-or-later
// Names of files in commands that a message advises. Pure; any thread.
#pragma once

// `text` as one word of a POSIX shell: as it is where that is safe, else in quotes. Owned:
// g_free().
char *shell_word(const char *text);
