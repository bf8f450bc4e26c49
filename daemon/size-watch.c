// SPDX-License-Identifier: LGPL-2.1-or-later
// A thread that waits for the kernel. The daemon's own writes are told, too, so a file that was
// told of is not watched for a while, and looked at once more when it is again:
//
//     WATCHED ──changed──▶ due (control looks) ; LEFT ALONE ──interval──▶ WATCHED, due
//
// Messages are posted with the mutex held, so that none is on its way once everything is removed.
#include "size-watch.h"

#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "chain-core/loop.h"

// Often enough to tell a user what went wrong, and rare enough to cost nothing.
enum { INTERVAL_US = 5 * G_USEC_PER_SEC };

typedef struct Entry {
    char *path;
    void *key;
    int number;      // of the watch; -1: it is left alone
    gint64 watch_at; // then: when it is watched again
    bool is_due;
} Entry;

struct SizeWatch {
    SizeWatchFn *fn;
    void *arg;
    Loop *control;
    int inotify_fd, wake_fd;
    pthread_t thread;
    bool has_thread;
    LoopCall call;
    pthread_mutex_t mutex; // of what follows
    GPtrArray *entries;    // Entry
    bool is_posted, is_ending;
};

static void entry_free(gpointer p)
{
    Entry *e = p;
    g_free(e->path);
    g_free(e);
}

SizeWatch *size_watch_new(SizeWatchFn *fn, void *arg)
{
    SizeWatch *watch = g_new0(SizeWatch, 1);
    watch->fn = fn;
    watch->arg = arg;
    watch->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    watch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    watch->entries = g_ptr_array_new_with_free_func(entry_free);
    pthread_mutex_init(&watch->mutex, NULL);
    return watch;
}

static void wake(const SizeWatch *watch)
{
    uint64_t one = 1;
    ssize_t n = write(watch->wake_fd, &one, sizeof one);
    (void)n; // full: it is awake
}

void size_watch_free(SizeWatch *watch)
{
    g_assert(watch->entries->len == 0);
    if (watch->has_thread) {
        pthread_mutex_lock(&watch->mutex);
        watch->is_ending = true;
        pthread_mutex_unlock(&watch->mutex);
        wake(watch);
        pthread_join(watch->thread, NULL);
    }
    if (watch->inotify_fd >= 0)
        close(watch->inotify_fd);
    if (watch->wake_fd >= 0)
        close(watch->wake_fd);
    g_ptr_array_unref(watch->entries);
    pthread_mutex_destroy(&watch->mutex);
    g_free(watch);
}

// --- control -------------------------------------------------------------------------------------

static void *take_due(SizeWatch *watch)
{
    void *key = NULL;
    pthread_mutex_lock(&watch->mutex);
    for (guint i = 0; i < watch->entries->len && !key; i++) {
        Entry *e = watch->entries->pdata[i];
        if (e->is_due)
            key = e->key;
        e->is_due = false;
    }
    pthread_mutex_unlock(&watch->mutex);
    return key;
}

static void look_fiber(Fiber *self, void *arg)
{
    SizeWatch *watch = arg;
    for (void *key; (key = take_due(watch));)
        watch->fn(self, watch->arg, key);
}

static void due_came(LoopCall *call)
{
    SizeWatch *watch = (SizeWatch *)((char *)call - offsetof(SizeWatch, call));
    pthread_mutex_lock(&watch->mutex);
    watch->is_posted = false;
    pthread_mutex_unlock(&watch->mutex);
    fiber_spawn(watch->control, "sizes of files", look_fiber, watch, NULL); // else the next time
}

// --- the thread ----------------------------------------------------------------------------------

// With the mutex held, like the next ones.
static void set_due(SizeWatch *watch, Entry *e)
{
    e->is_due = true;
    if (!watch->is_posted)
        loop_post(watch->control, &watch->call);
    watch->is_posted = true;
}

static void watch_again(SizeWatch *watch, Entry *e)
{
    e->number = inotify_add_watch(watch->inotify_fd, e->path, IN_MODIFY | IN_CLOSE_WRITE);
}

static void leave_alone(SizeWatch *watch, int number, gint64 now)
{
    inotify_rm_watch(watch->inotify_fd, number);
    for (guint i = 0; i < watch->entries->len; i++) { // several may be the same file
        Entry *e = watch->entries->pdata[i];
        if (e->number != number)
            continue;
        e->number = -1;
        e->watch_at = now + INTERVAL_US;
        set_due(watch, e);
    }
}

// How long until the next one is watched again, in ms; -1: none is left alone.
static int watch_those_again(SizeWatch *watch, gint64 now)
{
    gint64 first = G_MAXINT64;
    for (guint i = 0; i < watch->entries->len; i++) {
        Entry *e = watch->entries->pdata[i];
        if (e->number >= 0 || !e->watch_at)
            continue;
        if (e->watch_at <= now) {
            e->watch_at = 0;
            watch_again(watch, e);
            set_due(watch, e);
        } else {
            first = MIN(first, e->watch_at);
        }
    }
    return first == G_MAXINT64 ? -1 : (int)((first - now) / 1000 + 1);
}

static void take_events(SizeWatch *watch, gint64 now)
{
    _Alignas(struct inotify_event) char buf[4096];
    ssize_t n;
    while ((n = read(watch->inotify_fd, buf, sizeof buf)) > 0)
        for (char *at = buf; at < buf + n;) {
            const struct inotify_event *event = (const struct inotify_event *)at;
            if (event->mask & (IN_MODIFY | IN_CLOSE_WRITE))
                leave_alone(watch, event->wd, now);
            at += sizeof *event + event->len;
        }
}

static void *run(void *arg)
{
    SizeWatch *watch = arg;
    for (;;) {
        pthread_mutex_lock(&watch->mutex);
        gint64 now = g_get_monotonic_time();
        take_events(watch, now);
        int ms = watch_those_again(watch, now);
        bool is_ending = watch->is_ending;
        pthread_mutex_unlock(&watch->mutex);
        if (is_ending)
            return NULL;
        struct pollfd fds[] = {{watch->inotify_fd, POLLIN, 0}, {watch->wake_fd, POLLIN, 0}};
        poll(fds, G_N_ELEMENTS(fds), ms);
        uint64_t count;
        ssize_t n = read(watch->wake_fd, &count, sizeof count);
        (void)n;
    }
}

// --- what is watched -----------------------------------------------------------------------------

static bool start(Fiber *self, SizeWatch *watch)
{
    if (watch->inotify_fd < 0 || watch->wake_fd < 0)
        return false;
    if (watch->has_thread)
        return true;
    watch->control = fiber_loop(self);
    watch->call.fn = due_came;
    watch->has_thread = pthread_create(&watch->thread, NULL, run, watch) == 0;
    if (watch->has_thread)
        pthread_setname_np(watch->thread, "sizes-of-files");
    return watch->has_thread;
}

void size_watch_add(Fiber *self, SizeWatch *watch, const char *path, void *key)
{
    if (!start(self, watch))
        return;
    Entry *e = g_new0(Entry, 1);
    *e = (Entry){.path = g_strdup(path), .key = key};
    pthread_mutex_lock(&watch->mutex);
    watch_again(watch, e);
    g_ptr_array_add(watch->entries, e);
    pthread_mutex_unlock(&watch->mutex);
}

static bool has_number(const SizeWatch *watch, int number)
{
    for (guint i = 0; i < watch->entries->len; i++)
        if (((const Entry *)watch->entries->pdata[i])->number == number)
            return true;
    return false;
}

void size_watch_remove(SizeWatch *watch, const void *key)
{
    pthread_mutex_lock(&watch->mutex);
    for (guint i = watch->entries->len; i-- > 0;) {
        const Entry *e = watch->entries->pdata[i];
        int number = e->number;
        if (e->key != key)
            continue;
        g_ptr_array_remove_index_fast(watch->entries, i);
        if (number >= 0 && !has_number(watch, number))
            inotify_rm_watch(watch->inotify_fd, number);
    }
    pthread_mutex_unlock(&watch->mutex);
}
