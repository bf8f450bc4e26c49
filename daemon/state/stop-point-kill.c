// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests only: ends the process at the place that is the CHAIND_STOP_AT-th one passed, and tells
// of each that is passed in the file CHAIND_STOP_POINTS. It stays there for CHAIND_STOP_MS before,
// while the other threads go on.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stop-point.h"

void stop_point(const char *name)
{
    static int n_passed;
    const char *at = getenv("CHAIND_STOP_AT"), *list = getenv("CHAIND_STOP_POINTS");
    const char *stays_ms = getenv("CHAIND_STOP_MS");
    int fd = list ? open(list, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (fd >= 0) {
        if (write(fd, name, strlen(name)) < 0 || write(fd, "\n", 1) < 0)
            abort();
        close(fd);
    }
    if (__atomic_add_fetch(&n_passed, 1, __ATOMIC_RELAXED) != (at ? atoi(at) : 0))
        return;
    usleep(1000 * (useconds_t)(stays_ms ? atoi(stays_ms) : 0));
    raise(SIGKILL);
}
