// SPDX-License-Identifier: LGPL-2.1-or-later
// chaind: opens disk images with their backing chains and serves them over NBD.
//
// This file is the daemon's life from top to bottom, on the main thread: command line, signals,
// sockets, loops, disks, serving until somebody asks for the end, and the same backwards. I/O
// happens only on the loops.
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chain-core/remote-call.h"
#include "exports.h"
#include "listeners.h"
#include "log.h"
#include "loops.h"
#include "nbd/server.h"
#include "options.h"
#include "stop.h"

enum {
    EXIT_USAGE = 2,
    STOP_PATIENCE_US = 7 * G_USEC_PER_SEC, // beyond what slow clients are given (5 s)
};

// Everything that is opened, in this order, and closed in the reverse one.
typedef struct Daemon {
    Options options;
    unsigned n_activated; // sockets handed to this process
    Stop *stop;
    Listeners *listeners;
    Loops *loops;
    MapMemory *memory;
    NbdsServer *server;
    Exports *exports;
} Daemon;

static void last_client_left(void *arg)
{
    Daemon *daemon = arg;
    if (listeners_are_activated(daemon->listeners))
        stop_request(daemon->stop, "the last client left");
}

static unsigned choose_n_loops(const Options *options)
{
    return options->n_loops ? options->n_loops
                            : MIN(options->disks->len, (unsigned)g_get_num_processors());
}

// On the only processor a loop that looks out for a client keeps that client from running.
static uint64_t choose_busy_wait_ns(const Options *options)
{
    return g_get_num_processors() > 1 ? options->busy_wait_us * UINT64_C(1000) : 0;
}

// Also on the way out in a hurry (stop.h).
static void remove_sockets(void *arg)
{
    listeners_remove_files(((Daemon *)arg)->listeners);
}

static int start(Daemon *daemon, GError **error)
{
    const Options *options = &daemon->options;
    daemon->listeners = listeners_open(daemon->n_activated, options->addresses, error);
    if (!daemon->listeners)
        return -EINVAL;
    stop_set_leave(daemon->stop, remove_sockets, daemon);
    daemon->loops = loops_start(choose_n_loops(options), choose_busy_wait_ns(options), error);
    if (!daemon->loops)
        return -ENOSYS;
    daemon->memory = map_memory_new(options->map_memory_bytes);
    daemon->server =
        nbds_server_new(&(NbdsServerConfig){.last_client_left = last_client_left, .arg = daemon});
    daemon->exports = exports_open(options, daemon->loops, daemon->server, daemon->memory, error);
    if (!daemon->exports)
        return -EIO;
    listeners_serve(daemon->listeners, daemon->server, daemon->loops);
    return 0;
}

// The URIs go to stdout, where scripts read them; the log says the same in words.
static void announce(const Daemon *daemon)
{
    for (unsigned i = 0; i < exports_count(daemon->exports); i++) {
        const char *name = exports_name(daemon->exports, i);
        g_auto(GStrv) uris = listeners_uris(daemon->listeners, name);
        for (char **uri = uris; *uri; uri++)
            puts(*uri);
        log_line(LOG_INFO, "serving '%s': %s", name, exports_summary(daemon->exports, i));
    }
    fflush(stdout);
    log_line(LOG_INFO, "ready");
}

static void stop_server(Fiber *self, void *arg)
{
    nbds_server_stop(self, arg);
}

// Undoes start(), however far it came: requests in flight end, disks are flushed and unlocked. What
// cannot be stopped is left as it is: the process ends all the same.
static int finish(Daemon *daemon)
{
    RemoteCall stopping;
    if (daemon->server)
        remote_call_start_reserve(&stopping, loops_get(daemon->loops, 0), stop_server,
                                  daemon->server);
    int result = exports_close(daemon->exports, STOP_PATIENCE_US);
    int stopped = daemon->server ? remote_call_wait(&stopping, -1) : 0;
    stop_set_leave(daemon->stop, NULL, NULL);
    if (result == -ENOMEM || stopped < 0) {
        log_line(LOG_ERROR, "stopped without closing everything: out of memory");
        listeners_remove_files(daemon->listeners);
        return -ENOMEM;
    }
    nbds_server_free(daemon->server);
    loops_stop(daemon->loops);
    map_memory_free(daemon->memory);
    listeners_free(daemon->listeners);
    options_clear(&daemon->options);
    return result;
}

static int check_addresses(char **addresses, GError **error)
{
    for (; *addresses; addresses++) {
        int r = listeners_check_address(*addresses, error);
        if (r < 0)
            return r;
    }
    return 0;
}

// A supervisor may start us with 0, 1 or 2 closed. The next file opened would get that number, and
// an image at number 2 would take our log as its content.
static void occupy_standard_descriptors(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    occupy_standard_descriptors();
    Daemon daemon = {0};
    g_autoptr(GError) error = NULL;
    int r = options_parse(argc, argv, &daemon.options, &error);
    if (r > 0)
        return EXIT_SUCCESS;
    if (r < 0 || check_addresses(daemon.options.addresses, &error) < 0) {
        log_line(LOG_ERROR, "%s; see chaind --help", error->message);
        options_clear(&daemon.options);
        return EXIT_USAGE;
    }

    log_init(daemon.options.log_level);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); // a write past a file size limit fails with EFBIG instead
    r = listeners_take_activation(&error);
    if (r < 0) {
        log_line(LOG_ERROR, "%s", error->message);
        options_clear(&daemon.options);
        return EXIT_FAILURE;
    }
    daemon.n_activated = (unsigned)r;
    daemon.stop = stop_new();
    if (start(&daemon, &error) < 0) {
        log_line(LOG_ERROR, "%s", error->message);
        finish(&daemon);
        return EXIT_FAILURE;
    }
    announce(&daemon);
    log_line(LOG_INFO, "stopping: %s", stop_wait(daemon.stop));
    return finish(&daemon) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
