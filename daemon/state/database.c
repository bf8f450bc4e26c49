// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-ahead log with synchronous=FULL: one sync for each change, after which it survives a power
// cut. What cannot be written any more is told in a sentence; the process goes on with what it has
// in memory.
#include "database.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"
#include "daemon/qmp/error.h"

struct Database {
    char *dir, *path;
    int lock_fd;
    sqlite3 *handle;
    FiberMutex writing;
    GPtrArray *unwritten; // DatabaseChange, in their order
};

struct DatabaseChange {
    GString *sql;
};

// The n-th brings a database of version n to version n + 1. Never changed once released.
static const char *const migrations[] = {
    "CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
    "INSERT INTO counters VALUES('layer', 0), ('job', 0);"
    "CREATE TABLE layers(id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, format TEXT NOT NULL,"
    " below INTEGER REFERENCES layers(id), is_ours INTEGER NOT NULL, is_merging INTEGER NOT NULL);"
    "CREATE TABLE disks(name TEXT PRIMARY KEY, head INTEGER NOT NULL UNIQUE REFERENCES layers(id),"
    " policy TEXT NOT NULL);"
    "CREATE TABLE points(disk TEXT NOT NULL REFERENCES disks(name), name TEXT NOT NULL,"
    " layer INTEGER NOT NULL REFERENCES layers(id), created INTEGER NOT NULL,"
    " PRIMARY KEY(disk, name));"
    "CREATE TABLE exports(id TEXT PRIMARY KEY, disk TEXT NOT NULL REFERENCES disks(name),"
    " point TEXT, name TEXT NOT NULL UNIQUE, options TEXT NOT NULL);"
    "CREATE TABLE checkpoints(disk TEXT NOT NULL REFERENCES disks(name), name TEXT NOT NULL,"
    " layer INTEGER NOT NULL REFERENCES layers(id), target TEXT, created INTEGER NOT NULL,"
    " PRIMARY KEY(disk, name));"
    "CREATE TABLE intents(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, detail TEXT NOT NULL);"
    "CREATE TABLE history(number INTEGER PRIMARY KEY, detail TEXT NOT NULL);",
};

// -- opening --------------------------------------------------------------------------------------

static int fail_system(GError **error, const char *what, const char *path)
{
    int number = errno;
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(number), "%s '%s': %s", what, path,
                g_strerror(number));
    return -number;
}

static int take_directory(Database *d, GError **error)
{
    g_autofree char *path = g_build_filename(d->dir, "chaind.lock", NULL);
    char owner[32] = "";
    if (g_mkdir_with_parents(d->dir, 0700) < 0)
        return fail_system(error, "cannot make the state directory", d->dir);
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock_fd < 0)
        return fail_system(error, "cannot open", path);
    if (flock(d->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        ssize_t n = read(d->lock_fd, owner, sizeof owner - 1);
        owner[n > 0 ? n : 0] = '\0';
        return qmp_fail(error,
                        "the state directory '%s' is in use by another chaind (pid %s): stop that, "
                        "or give this one its own with --state",
                        d->dir, *owner ? g_strchomp(owner) : "unknown");
    }
    g_snprintf(owner, sizeof owner, "%ld\n", (long)getpid());
    if (ftruncate(d->lock_fd, 0) < 0 || write(d->lock_fd, owner, strlen(owner)) < 0)
        return fail_system(error, "cannot write", path);
    return 0;
}

// SQLite's reason, and what to do about it.
static int fail(const Database *d, GError **error)
{
    int code = sqlite3_errcode(d->handle) & 0xff;
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_OK)
        return qmp_fail(
            error,
            "the database '%s' is damaged (%s): move it away, and tell a new one of the "
            "disks with disk-add, or put back a copy; no image was touched",
            d->path, code ? sqlite3_errmsg(d->handle) : "its check fails");
    bool is_of_system = code == SQLITE_IOERR || code == SQLITE_CANTOPEN;
    int number = is_of_system ? sqlite3_system_errno(d->handle) : 0;
    return qmp_fail(error, "the database '%s' cannot be used: %s", d->path,
                    number ? g_strerror(number) : sqlite3_errmsg(d->handle));
}

static int run(const Database *d, const char *sql, GError **error)
{
    return sqlite3_exec(d->handle, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(d, error);
}

static void take_int(void *arg, sqlite3_stmt *row)
{
    *(int *)arg = sqlite3_column_int(row, 0);
}

static void take_is_ok(void *arg, sqlite3_stmt *row)
{
    *(bool *)arg = g_strcmp0((const char *)sqlite3_column_text(row, 0), "ok") == 0;
}

static void take_is_not(void *arg, sqlite3_stmt *row)
{
    *(bool *)arg = false;
}

// What is in it is what was written, and all that it refers to is there.
static int check(Database *d, GError **error)
{
    bool is_ok = false;
    int r = database_read(d, "PRAGMA quick_check(1)", take_is_ok, &is_ok, error);
    if (r == 0 && is_ok)
        r = database_read(d, "PRAGMA foreign_key_check", take_is_not, &is_ok, error);
    // Who stands on a layer has a higher number, so chains end.
    if (r == 0 && is_ok)
        r = database_read(d, "SELECT 1 FROM layers WHERE below >= id", take_is_not, &is_ok, error);
    return r < 0 || is_ok ? r : fail(d, error);
}

// "chai": tells SQLite's files of one program from those of others.
enum { APPLICATION_ID = 0x63686169 };

// Nobody else's tables get ours beside them.
static int check_whose(Database *d, GError **error)
{
    int id = 0, n_tables = 0;
    int r = database_read(d, "PRAGMA application_id", take_int, &id, error);
    if (r == 0)
        r = database_read(d, "SELECT count(*) FROM sqlite_schema", take_int, &n_tables, error);
    if (r == 0 && n_tables && id != APPLICATION_ID)
        return qmp_fail(error,
                        "'%s' is the database of another program: give chaind a directory of its "
                        "own with --state",
                        d->path);
    return r;
}

static int migrate(Database *d, GError **error)
{
    int version = 0;
    int r = database_read(d, "PRAGMA user_version", take_int, &version, error);
    if (r == 0 && version > (int)G_N_ELEMENTS(migrations))
        return qmp_fail(
            error,
            "the database '%s' was written by a newer chaind (version %d of its tables, "
            "this one knows %d): use that, or another directory",
            d->path, version, (int)G_N_ELEMENTS(migrations));
    for (; r == 0 && version < (int)G_N_ELEMENTS(migrations); version++) {
        g_autofree char *sql =
            g_strdup_printf("BEGIN IMMEDIATE; %s PRAGMA user_version=%d; PRAGMA application_id=%d; "
                            "COMMIT",
                            migrations[version], version + 1, APPLICATION_ID);
        r = run(d, sql, error);
    }
    return r;
}

static int open_handle(Database *d, GError **error)
{
    d->path = g_build_filename(d->dir, "chaind.db", NULL);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
    if (sqlite3_open_v2(d->path, &d->handle, flags, NULL) != SQLITE_OK)
        return fail(d, error);
    int r = run(d, "PRAGMA locking_mode=EXCLUSIVE", error);
    if (r == 0)
        r = check_whose(d, error);
    if (r == 0)
        r = run(d,
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; "
                "PRAGMA temp_store=MEMORY", // nothing else can be written, perhaps
                error);
    if (r == 0)
        r = migrate(d, error);
    return r == 0 ? check(d, error) : r;
}

Database *database_open(const char *dir, GError **error)
{
    Database *d = g_new0(Database, 1);
    d->dir = g_canonicalize_filename(dir, NULL);
    d->lock_fd = -1;
    d->unwritten = g_ptr_array_new();
    if (take_directory(d, error) == 0 && open_handle(d, error) == 0)
        return d;
    database_close(d);
    return NULL;
}

int database_read(Database *d, const char *sql, DatabaseRowFn *row, void *arg, GError **error)
{
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(d->handle, sql, -1, &statement, NULL) != SQLITE_OK)
        return fail(d, error);
    int r;
    while ((r = sqlite3_step(statement)) == SQLITE_ROW)
        row(arg, statement);
    int result = r == SQLITE_DONE ? 0 : fail(d, error);
    sqlite3_finalize(statement);
    return result;
}

// -- changes --------------------------------------------------------------------------------------

DatabaseChange *database_change_new(void)
{
    DatabaseChange *change = g_new(DatabaseChange, 1);
    change->sql = g_string_new(NULL);
    return change;
}

void database_change_free(DatabaseChange *change)
{
    g_string_free(change->sql, TRUE);
    g_free(change);
}

void database_change_add(DatabaseChange *change, const char *format, ...)
{
    if (!change)
        return;
    va_list args;
    va_start(args, format);
    char *sql = sqlite3_vmprintf(format, args);
    va_end(args);
    g_assert(sql); // of memory GLib would abort, too
    g_string_append_printf(change->sql, "%s;", sql);
    sqlite3_free(sql);
}

// -- writing --------------------------------------------------------------------------------------

static int write_one(const Database *d, const DatabaseChange *change, GError **error)
{
    g_autofree char *sql = g_strdup_printf("BEGIN IMMEDIATE; %s COMMIT", change->sql->str);
    int r = run(d, sql, error);
    if (r < 0 && !sqlite3_get_autocommit(d->handle))
        sqlite3_exec(d->handle, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

// What was kept, in its order, as far as it can be written.
static int write_unwritten(Database *d, GError **error)
{
    while (d->unwritten->len) {
        int r = write_one(d, d->unwritten->pdata[0], error);
        if (r < 0)
            return r;
        database_change_free(g_ptr_array_steal_index(d->unwritten, 0));
    }
    return 0;
}

void database_close(Database *d)
{
    if (!d)
        return;
    write_unwritten(d, NULL);
    sqlite3_close(d->handle);
    if (d->lock_fd >= 0)
        close(d->lock_fd);
    for (guint i = 0; i < d->unwritten->len; i++)
        database_change_free(d->unwritten->pdata[i]);
    g_ptr_array_unref(d->unwritten);
    g_free(d->dir);
    g_free(d->path);
    g_free(d);
}

typedef struct Writing {
    Database *database;
    DatabaseChange *change;
    bool is_kept;
    GError *error;
} Writing;

// A change whose sync fails may lie in the log as a whole, where it would be found after a crash.
// The next one takes its place there: this one, which says nothing.
static void write_over(Database *d)
{
    DatabaseChange *nothing = database_change_new();
    database_change_add(nothing, "UPDATE counters SET value = value + 1 WHERE name = 'job'");
    g_ptr_array_add(d->unwritten, nothing);
    write_unwritten(d, NULL);
}

// On a worker.
static int write_all(void *arg)
{
    Writing *w = arg;
    int r = write_unwritten(w->database, &w->error);
    if (r < 0)
        return r;
    r = write_one(w->database, w->change, &w->error);
    if (r < 0 && !w->is_kept)
        write_over(w->database);
    return r;
}

static int write_change(Fiber *self, Database *d, DatabaseChange *change, bool is_kept,
                        GError **error)
{
    Writing w = {.database = d, .change = change, .is_kept = is_kept};
    fiber_mutex_lock(self, &d->writing);
    int r = loop_work(self, write_all, &w);
    if (r < 0 && is_kept)
        g_ptr_array_add(d->unwritten, change);
    else
        database_change_free(change);
    fiber_mutex_unlock(self, &d->writing);
    if (w.error)
        g_propagate_error(error, w.error);
    return r;
}

int database_write(Fiber *self, Database *d, DatabaseChange *change, GError **error)
{
    return write_change(self, d, change, false, error);
}

int database_note(Fiber *self, Database *d, DatabaseChange *change, GError **error)
{
    return write_change(self, d, change, true, error);
}
