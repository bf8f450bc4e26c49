// SPDX-License-Identifier: LGPL-2.1-or-later
// chaind: opens disk images with their backing chains and serves them over NBD.
//
// The command line, and the daemon's life in one function, on the main thread: it begins
// (daemon-begin.c), serves until somebody asks for the end, and ends (daemon-end.c). I/O happens
// only on the loops.
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "configure.h"
#include "daemon-life.h"
#include "daemon/commands/commands.h"
#include "daemon/config/reference.h"
#include "daemon/qmp/reference.h"
#include "daemon/qmp/table.h"
#include "daemonize.h"
#include "jobs/node-drivers.h"
#include "log.h"
#include "nbd-address.h"
#include "pid-file.h"

enum { EXIT_USAGE = 2 };

static int check_addresses(char **addresses, GError **error)
{
    for (; *addresses; addresses++) {
        g_auto(NbdAddress) address = {0};
        int r = nbd_address_parse(*addresses, &address, error);
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

// Of the tables alone; docs/qmp.md.
static int print_reference(void)
{
    QmpTable *table = qmp_table_new(qmp_families);
    g_autofree char *text = qmp_reference_make(qmp_families);
    fputs(text, stdout);
    qmp_table_free(table);
    return EXIT_SUCCESS;
}

// Likewise; a part of docs/chaind.conf.pod.
static int print_config_reference(void)
{
    g_autofree char *text = config_reference_make();
    fputs(text, stdout);
    return EXIT_SUCCESS;
}

static void forget_inherited(const Daemon *daemon, const GArray *fds)
{
    for (guint i = 0; i < fds->len; i++)
        inherited_fds_forget(daemon->inherited, g_array_index(fds, int, i), 1);
}

// Before there is anything to finish. Returns STATUS.
static int leave_early(Daemon *daemon, int status)
{
    options_clear(&daemon->options);
    config_free(daemon->config);
    inherited_fds_free(daemon->inherited);
    activation_clear(&daemon->activation);
    return status;
}

static int give_up(Daemon *daemon, int reason, const GError *error)
{
    log_line(LOG_ERROR, "%s", error->message);
    service_failed(reason, EXIT_FAILURE, error->message);
    return leave_early(daemon, EXIT_FAILURE);
}

int main(int argc, char **argv)
{
    drivers_add(&copy_before_write_driver);
    drivers_add(&snapshot_access_driver);
    if (argc == 2 && g_str_equal(argv[1], "--qmp-reference"))
        return print_reference();
    if (argc == 2 && g_str_equal(argv[1], "--config-reference"))
        return print_config_reference();
    occupy_standard_descriptors();
    Daemon daemon = {.inherited = inherited_fds_new()};
    g_autoptr(GError) error = NULL;
    int r = options_parse(argc, argv, &daemon.options, &error);
    if (r > 0)
        return leave_early(&daemon, EXIT_SUCCESS);
    if (r < 0 || check_addresses(daemon.options.addresses, &error) < 0) {
        log_line(LOG_ERROR, "%s; see chaind --help", error->message);
        service_failed(-EINVAL, EXIT_USAGE, error->message);
        return leave_early(&daemon, EXIT_USAGE);
    }

    if (daemon.options.checks_config)
        return leave_early(&daemon, configure_check(&daemon.options));
    if (configure(&daemon.options, &daemon.config) < 0) {
        service_failed(-EINVAL, EXIT_USAGE, "the configuration makes no sense: the log says why");
        return leave_early(&daemon, EXIT_USAGE);
    }
    log_init(daemon.options.daemon.log_level);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); // a write past a file size limit fails with EFBIG instead
    r = activation_take(&daemon.activation, &error);
    if (r < 0)
        return give_up(&daemon, r, error);
    forget_inherited(&daemon, daemon.activation.fds[ACTIVATION_NBD]);
    Daemonize *daemonize = NULL;
    if (daemon.options.daemonize && !(daemonize = daemonize_begin(&error)))
        return give_up(&daemon, -EAGAIN, error);
    daemon.stop = stop_new();
    PidFile *pid_file = NULL;
    r = daemon_begin(&daemon, &error);
    if (r == 0 && daemon.options.pidfile) {
        pid_file = pid_file_new(daemon.options.pidfile, &error);
        r = pid_file ? 0 : -EEXIST;
    }
    if (r < 0) {
        log_line(LOG_ERROR, "%s", error->message);
        service_failed(r, EXIT_FAILURE, error->message);
        daemon_end(&daemon);
        daemonize_free(daemonize);
        return EXIT_FAILURE;
    }
    daemon_announce(&daemon);
    if (daemonize)
        daemonize_ready(daemonize);
    daemonize_free(daemonize);
    service_ready(daemon.service);
    const char *why = stop_wait(daemon.stop);
    log_line(LOG_INFO, "stopping: %s", why);
    service_stopping(daemon.service, why);
    r = daemon_end(&daemon);
    if (r < 0)
        service_failed(r, EXIT_FAILURE, "not everything could be flushed: the log says what");
    pid_file_free(pid_file);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
