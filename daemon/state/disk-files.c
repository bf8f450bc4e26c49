// SPDX-License-Identifier: LGPL-2.1-or-later
// A file is removed only by what an intent says, and only if no layer that is known lies in it, by
// whatever name.
#include "disk-files.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/loop.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "stop-point.h"

typedef struct Names {
    const NewFile *file;
    int64_t next; // number; 0: none
    char *chosen;
} Names;

static bool exists(const char *path)
{
    GStatBuf st;
    return g_lstat(path, &st) == 0 || errno != ENOENT;
}

static char *next_name(Names *n)
{
    const NewFile *f = n->file;
    g_autofree char *name =
        n->next ? g_strdup_printf("%s.%" G_GINT64_FORMAT ".%s", f->stem, n->next, f->suffix)
                : g_strdup_printf("%s.%s", f->stem, f->suffix);
    n->next = n->next ? n->next + 1 : MAX(f->number, 1);
    return g_build_filename(f->directory, name, NULL);
}

static int choose(void *arg)
{
    Names *n = arg;
    do {
        g_free(n->chosen);
        n->chosen = next_name(n);
    } while (exists(n->chosen));
    return 0;
}

char *disk_files_choose(Fiber *self, const Catalogue *catalogue, const NewFile *file)
{
    Names names = {.file = file};
    do
        loop_work(self, choose, &names);
    while (catalogue_find_file(catalogue, names.chosen));
    return names.chosen;
}

static int look(void *arg)
{
    return exists(arg);
}

bool disk_files_exist(Fiber *self, const char *path)
{
    return loop_work(self, look, (void *)path) == 1;
}

typedef struct FileSize {
    const char *path;
    uint64_t bytes;
} FileSize;

static int measure(void *arg)
{
    FileSize *of = arg;
    GStatBuf st;
    if (g_stat(of->path, &st) == 0)
        of->bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

uint64_t disk_files_allocated(Fiber *self, const char *path)
{
    FileSize of = {.path = path};
    loop_work(self, measure, &of);
    return of.bytes;
}

int disk_files_sync_directory_of(const char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return r;
}

typedef struct Removal {
    const char *path;
    GPtrArray *needed;     // files of layers and nodes: paths, owned
    const char *needed_as; // the one of these that is this file
} Removal;

// By another name, perhaps: of its directory, a link to it or through it. One that is a hard link
// to the same file could go, but that would free nothing.
static const char *find_needed(const Removal *removal)
{
    GStatBuf st;
    bool is_there = g_stat(removal->path, &st) == 0;
    for (guint i = 0; i < removal->needed->len; i++) {
        const char *path = removal->needed->pdata[i];
        GStatBuf other;
        if (g_str_equal(path, removal->path) ||
            (is_there && g_stat(path, &other) == 0 && other.st_dev == st.st_dev &&
             other.st_ino == st.st_ino))
            return path;
    }
    return NULL;
}

static int remove_one(void *arg)
{
    Removal *removal = arg;
    GStatBuf st;
    if (g_lstat(removal->path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    removal->needed_as = find_needed(removal);
    if (removal->needed_as)
        return -EBUSY;
    return unlink(removal->path) < 0 ? -errno : disk_files_sync_directory_of(removal->path);
}

// How a header may name a file, too.
static const char *without_protocol(const char *name)
{
    return g_str_has_prefix(name, "file:") ? name + strlen("file:") : name;
}

// Whoever opened it by a command of nodes needs it still, too.
static GPtrArray *list_needed(const Daemon *daemon)
{
    GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);
    const GPtrArray *nodes = nodes_all(daemon->nodes);
    GHashTableIter iter;
    gpointer layer;
    for (guint i = 0; i < nodes->len; i++) {
        const NamedNode *named = nodes->pdata[i];
        if (named->driver->is_file)
            g_ptr_array_add(paths, g_strdup(named_node_file_name(named)));
    }
    g_hash_table_iter_init(&iter, daemon->catalogue->layers);
    while (g_hash_table_iter_next(&iter, NULL, &layer))
        g_ptr_array_add(paths, g_strdup(without_protocol(((const DiskLayer *)layer)->file)));
    return paths;
}

static void tell_of_removal(const Removal *removal, int result)
{
    if (removal->needed_as)
        log_line(LOG_WARNING, "'%s', which no disk needs any more, stays: it is in use as '%s'",
                 removal->path, removal->needed_as);
    else if (result < 0)
        log_line(LOG_WARNING, "'%s', which no disk needs any more, cannot be removed: %s",
                 removal->path, g_strerror(-result));
    else
        log_line(LOG_INFO, "'%s' is removed: no disk needs it", removal->path);
}

static void remove_files(Fiber *self, const Daemon *daemon, const json_t *files)
{
    size_t i;
    const json_t *file;
    json_array_foreach(files, i, file)
    {
        const char *path = json_string_value(file);
        if (!g_path_is_absolute(path) || catalogue_find_file(daemon->catalogue, path))
            continue;
        g_autoptr(GPtrArray) needed = list_needed(daemon);
        Removal removal = {.path = path, .needed = needed};
        int r = loop_work(self, remove_one, &removal);
        tell_of_removal(&removal, r);
        stop_point("a file is removed");
    }
}

void disk_files_remove_intended(Fiber *self, Daemon *daemon, int64_t id, const json_t *files)
{
    g_autoptr(GError) error = NULL;
    DatabaseChange *change = database_change_new();
    remove_files(self, daemon, files);
    catalogue_end_intent(change, id);
    if (database_note(self, daemon->catalogue->database, change, &error) < 0)
        log_line(LOG_ERROR, "%s", error->message);
}
