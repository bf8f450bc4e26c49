// SPDX-License-Identifier: LGPL-2.1-or-later
// One thread takes the signals, so that nothing else of the daemon has to be safe inside a signal
// handler; the main thread sleeps in stop_wait(). The signal thread lives as long as the process,
// because it must also see a later signal, when the main thread is busy stopping.
//
// One request can arrive as several signals: timeout(1) and shells signal the process and then its
// group. So signals that follow the first within a moment are the same request.
#include "stop.h"

#include <errno.h>
#include <glib.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "message-ids.h"

// Programs send the signals of one request microseconds apart; a person who asks again takes
// longer.
enum { STOP_SAME_REQUEST_US = G_USEC_PER_SEC };

struct Stop {
    sigset_t signals;
    GMutex mutex;
    GCond changed;
    const char *why; // NULL: go on
    void (*leave)(void *arg);
    void *leave_arg;
    void (*reload)(void *arg);
    void *reload_arg;
};

// The user's terminal went away. While it is there, or where none was, SIGHUP asks a daemon to read
// its configuration again.
static bool hangup_is_final(void)
{
    return !isatty(STDERR_FILENO) && errno == EIO;
}

static void reload(Stop *stop)
{
    g_mutex_lock(&stop->mutex);
    if (stop->reload)
        stop->reload(stop->reload_arg);
    g_mutex_unlock(&stop->mutex);
}

G_NORETURN
static void leave_at_once(Stop *stop, const char *why)
{
    log_about(LOG_ERROR, &(LogAbout){MESSAGE_ID_STOP_CUT_SHORT},
              "%s again: leaving at once; writes that no flush confirmed may be "
              "lost, and what a crash leaves is repaired at the next open",
              why);
    g_mutex_lock(&stop->mutex);
    if (stop->leave)
        stop->leave(stop->leave_arg);
    _exit(1);
}

static gpointer take_signals(gpointer arg)
{
    Stop *stop = arg;
    for (gint64 first_us = -1;;) {
        int signal_number = 0;
        if (sigwait(&stop->signals, &signal_number) != 0)
            continue;
        if (signal_number == SIGHUP && !hangup_is_final()) {
            reload(stop);
            continue;
        }
        gint64 now_us = g_get_monotonic_time();
        if (first_us < 0)
            first_us = now_us;
        else if (now_us - first_us >= STOP_SAME_REQUEST_US)
            leave_at_once(stop, strsignal(signal_number));
        stop_request(stop, strsignal(signal_number));
    }
    return NULL;
}

Stop *stop_new(void)
{
    Stop *stop = g_new0(Stop, 1);
    sigemptyset(&stop->signals);
    sigaddset(&stop->signals, SIGTERM);
    sigaddset(&stop->signals, SIGINT);
    sigaddset(&stop->signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &stop->signals, NULL);
    g_mutex_init(&stop->mutex);
    g_cond_init(&stop->changed);
    g_thread_unref(g_thread_new("signals", take_signals, stop));
    return stop;
}

void stop_set_leave(Stop *stop, void (*fn)(void *arg), void *arg)
{
    g_mutex_lock(&stop->mutex);
    stop->leave = fn;
    stop->leave_arg = arg;
    g_mutex_unlock(&stop->mutex);
}

void stop_set_reload(Stop *stop, void (*fn)(void *arg), void *arg)
{
    g_mutex_lock(&stop->mutex);
    stop->reload = fn;
    stop->reload_arg = arg;
    g_mutex_unlock(&stop->mutex);
}

void stop_request(Stop *stop, const char *why)
{
    g_mutex_lock(&stop->mutex);
    if (!stop->why)
        stop->why = why;
    g_cond_signal(&stop->changed);
    g_mutex_unlock(&stop->mutex);
}

const char *stop_wait(Stop *stop)
{
    g_mutex_lock(&stop->mutex);
    while (!stop->why)
        g_cond_wait(&stop->changed, &stop->mutex);
    const char *why = stop->why;
    g_mutex_unlock(&stop->mutex);
    return why;
}
