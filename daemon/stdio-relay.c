// SPDX-License-Identifier: LGPL-2.1-or-later
// A thread for each direction, since files and terminals cannot be waited for as sockets can. The
// one that reads sleeps in read() until the process ends.
#include "stdio-relay.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { END_TIMEOUT_MS = 1000 }; // for a reader of the output to go on reading

struct StdioRelay {
    int fd; // our end of the pair
    GThread *writer;
};

// Less than PIPE_BUF: poll() tells whether it can be written without waiting.
static ssize_t write_piece(const char *bytes, size_t len)
{
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    int r;
    do
        r = poll(&out, 1, END_TIMEOUT_MS);
    while (r < 0 && errno == EINTR);
    return r == 1 ? write(STDOUT_FILENO, bytes, MIN(len, PIPE_BUF)) : -1;
}

static gpointer write_output(gpointer arg)
{
    StdioRelay *relay = arg;
    char bytes[PIPE_BUF];
    ssize_t n;
    while ((n = read(relay->fd, bytes, sizeof bytes)) > 0) {
        for (ssize_t at = 0; at < n;) {
            ssize_t written = write_piece(bytes + at, (size_t)(n - at));
            if (written < 0)
                return NULL;
            at += written;
        }
    }
    return NULL;
}

static gpointer read_input(gpointer arg)
{
    int fd = GPOINTER_TO_INT(arg);
    char bytes[PIPE_BUF];
    ssize_t n;
    while ((n = read(STDIN_FILENO, bytes, sizeof bytes)) > 0)
        if (send(fd, bytes, (size_t)n, MSG_NOSIGNAL) != n)
            break;
    shutdown(fd, SHUT_WR);
    return NULL;
}

StdioRelay *stdio_relay_new(int *ret_fd, GError **error)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "standard input cannot be served: %s", g_strerror(errno));
        return NULL;
    }
    StdioRelay *relay = g_new0(StdioRelay, 1);
    relay->fd = fds[0];
    relay->writer = g_thread_new("stdout", write_output, relay);
    g_thread_unref(g_thread_new("stdin", read_input, GINT_TO_POINTER(fds[0])));
    *ret_fd = fds[1];
    return relay;
}

void stdio_relay_free(StdioRelay *relay)
{
    if (!relay)
        return;
    g_thread_join(relay->writer);
    g_free(relay); // its descriptor is also the reader's, which ends with the process
}
