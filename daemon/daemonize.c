// SPDX-License-Identifier: LGPL-2.1-or-later
// The parent waits at a pipe, so that a script that starts the daemon goes on only when everything
// is served, and sees in the exit status when it is not. Main thread.
#include "daemonize.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct Daemonize {
    int parent; // to be told
};

static int fail(GError **error, int number, const char *what)
{
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(number), "%s: %s", what,
                g_strerror(number));
    return -number;
}

G_NORETURN
static void wait_for_child(int fd)
{
    char byte;
    ssize_t n;
    do
        n = read(fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    _exit(n == 1 ? EXIT_SUCCESS : EXIT_FAILURE); // the child said why
}

Daemonize *daemonize_begin(GError **error)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        fail(error, errno, "cannot go to the background");
        return NULL;
    }
    pid_t pid = fork();
    if (pid > 0) {
        close(fds[1]);
        wait_for_child(fds[0]);
    }
    close(fds[0]);
    if (pid < 0) {
        fail(error, errno, "cannot go to the background");
        close(fds[1]);
        return NULL;
    }
    setsid();
    Daemonize *daemonize = g_new0(Daemonize, 1);
    daemonize->parent = fds[1];
    return daemonize;
}

void daemonize_ready(Daemonize *daemonize)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        close(null);
    }
    // A parent that is gone already needs no answer.
    if (chdir("/") < 0 || write(daemonize->parent, "", 1) < 0)
        errno = 0;
}

void daemonize_free(Daemonize *daemonize)
{
    if (!daemonize)
        return;
    close(daemonize->parent);
    g_free(daemonize);
}
