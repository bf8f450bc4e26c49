// SPDX-License-Identifier: LGPL-2.1-or-later
// Who holds a lock on a file, as far as /proc shows it. Blocking; any thread.
#pragma once

#include <sys/types.h>

// "qemu-img (pid 812)" for a process that has a lock on `byte` of the file behind `fd` (through
// another open file description). `pid` > 0 when the kernel told it. NULL when nobody can be seen.
// g_free().
char *host_file_find_holder(int fd, int byte, pid_t pid);
