// SPDX-License-Identifier: LGPL-2.1-or-later
// The database of a state directory: what is written is there after a new start, all of it or
// nothing; what it refuses to open, with which words, and leaves as it was.
#include "../loop/in-fiber.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#include "state/database.h"

static char *new_directory(void)
{
    return g_dir_make_tmp("chaind-test-database-XXXXXX", NULL);
}

static void remove_directory(char *dir)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", dir);
    fiber_assert_equal(system(command), 0);
    g_free(dir);
}

static Database *opens(const char *dir)
{
    g_autoptr(GError) error = NULL;
    Database *database = database_open(dir, &error);
    if (!database)
        g_error("%s", error->message);
    return database;
}

static void refuses(const char *dir, const char *words)
{
    g_autoptr(GError) error = NULL;
    fiber_assert(!database_open(dir, &error));
    if (!strstr(error->message, words))
        g_error("'%s' does not say '%s'", error->message, words);
}

static void take_text(void *arg, sqlite3_stmt *row)
{
    g_string_append_printf(arg, "%s ", sqlite3_column_text(row, 0));
}

// The details of the history, the oldest first.
static void has(Database *database, const char *expected)
{
    g_autoptr(GString) text = g_string_new(NULL);
    fiber_assert_equal(database_read(database, "SELECT detail FROM history ORDER BY number",
                                     take_text, text, NULL),
                       0);
    if (!g_str_equal(g_strchomp(text->str), expected))
        g_error("it has '%s', not '%s'", text->str, expected);
}

static DatabaseChange *change_of(const char *detail)
{
    DatabaseChange *change = database_change_new();
    database_change_add(change, "INSERT INTO history(detail) VALUES(%Q)", detail);
    return change;
}

// With SQLite itself, as some other program has it.
static void with_sqlite(const char *dir, const char *sql)
{
    g_autofree char *path = g_build_filename(dir, "chaind.db", NULL);
    sqlite3 *handle;
    fiber_assert_equal(sqlite3_open(path, &handle), SQLITE_OK);
    fiber_assert_equal(sqlite3_exec(handle, sql, NULL, NULL, NULL), SQLITE_OK);
    fiber_assert_equal(sqlite3_close(handle), SQLITE_OK);
}

// The bytes of its file.
static GBytes *bytes_of(const char *dir)
{
    g_autofree char *path = g_build_filename(dir, "chaind.db", NULL);
    char *data;
    gsize size;
    fiber_assert(g_file_get_contents(path, &data, &size, NULL));
    return g_bytes_new_take(data, size);
}

// -- opening --------------------------------------------------------------------------------------

FIBER_TEST(what_is_written_is_there_after_a_new_start)
{
    char *dir = new_directory();
    g_autofree char *below = g_build_filename(dir, "made/below", NULL);
    Database *database = opens(below);
    fiber_assert_equal(database_write(self, database, change_of("one"), NULL), 0);
    fiber_assert_equal(database_write(self, database, change_of("it's \"two\""), NULL), 0);
    database_close(database);
    database = opens(below);
    has(database, "one it's \"two\"");
    database_close(database);
    remove_directory(dir);
}

FIBER_TEST(a_directory_has_one_daemon)
{
    char *dir = new_directory();
    g_autofree char *pid = g_strdup_printf("in use by another chaind (pid %d)", (int)getpid());
    Database *database = opens(dir);
    fiber_assert_equal(database_write(self, database, change_of("one"), NULL), 0);
    refuses(dir, pid);
    fiber_assert_equal(database_write(self, database, change_of("two"), NULL), 0);
    database_close(database);
    database = opens(dir);
    has(database, "one two");
    database_close(database);
    remove_directory(dir);
}

FIBER_TEST(tables_of_a_newer_version_are_refused_and_left_alone)
{
    char *dir = new_directory();
    database_close(opens(dir));
    with_sqlite(dir, "PRAGMA user_version=99; CREATE TABLE future(x)");
    g_autoptr(GBytes) before = bytes_of(dir);
    refuses(dir, "newer chaind (version 99");
    g_autoptr(GBytes) after = bytes_of(dir);
    fiber_assert(g_bytes_equal(before, after));
    remove_directory(dir);
}

FIBER_TEST(the_database_of_another_program_is_left_alone)
{
    char *dir = new_directory();
    with_sqlite(dir, "CREATE TABLE addresses(name TEXT)");
    g_autoptr(GBytes) before = bytes_of(dir);
    refuses(dir, "database of another program");
    with_sqlite(dir, "PRAGMA user_version=1");
    refuses(dir, "database of another program");
    with_sqlite(dir, "PRAGMA user_version=0");
    g_autoptr(GBytes) after = bytes_of(dir);
    // But for the counter of changes that with_sqlite() has made.
    fiber_assert_equal(g_bytes_get_size(before), g_bytes_get_size(after));
    with_sqlite(dir, "SELECT name FROM addresses");
    remove_directory(dir);
}

FIBER_TEST(an_empty_file_becomes_a_database)
{
    char *dir = new_directory();
    g_autofree char *path = g_build_filename(dir, "chaind.db", NULL);
    fiber_assert(g_file_set_contents(path, "", 0, NULL));
    Database *database = opens(dir);
    has(database, "");
    database_close(database);
    remove_directory(dir);
}

FIBER_TEST(a_file_that_is_no_database_is_refused_and_left_alone)
{
    char *dir = new_directory();
    g_autofree char *path = g_build_filename(dir, "chaind.db", NULL);
    static const char text[] = "this is somebody's letter, of some length, and no database at all: "
                               "nobody may write to it";
    fiber_assert(g_file_set_contents(path, text, sizeof text, NULL));
    refuses(dir, "is damaged");
    g_autoptr(GBytes) after = bytes_of(dir);
    fiber_assert_equal(g_bytes_get_size(after), sizeof text);
    fiber_assert(memcmp(g_bytes_get_data(after, NULL), text, sizeof text) == 0);
    remove_directory(dir);
}

// Each page by itself, filled with noise: nothing of it is believed.
FIBER_TEST(a_damaged_page_is_found)
{
    enum { PAGE = 4096 };
    char *dir = new_directory();
    g_autofree char *path = g_build_filename(dir, "chaind.db", NULL);
    database_close(opens(dir));
    g_autoptr(GBytes) good = bytes_of(dir);
    gsize size = g_bytes_get_size(good);
    for (gsize at = 0; at < size; at += PAGE) {
        g_autofree char *bad = g_memdup2(g_bytes_get_data(good, NULL), size);
        memset(bad + at, 0x5a, PAGE);
        fiber_assert(g_file_set_contents(path, bad, (gssize)size, NULL));
        refuses(dir, "is damaged");
    }
    fiber_assert(g_file_set_contents(path, g_bytes_get_data(good, NULL), (gssize)size, NULL));
    database_close(opens(dir));
    remove_directory(dir);
}

FIBER_TEST(rows_that_refer_to_nothing_are_found)
{
    char *dir = new_directory();
    database_close(opens(dir));
    with_sqlite(dir, "INSERT INTO disks VALUES('web', 7, '{}')");
    refuses(dir, "is damaged");
    with_sqlite(dir, "DELETE FROM disks; INSERT INTO layers VALUES(1, '/a', 'raw', 2, 0, 0);"
                     "INSERT INTO layers VALUES(2, '/b', 'raw', 1, 0, 0)");
    refuses(dir, "is damaged"); // a chain that never ends
    with_sqlite(dir, "DELETE FROM layers");
    database_close(opens(dir));
    remove_directory(dir);
}

FIBER_TEST(a_directory_that_cannot_be_is_named)
{
    char *dir = new_directory();
    g_autofree char *file = g_build_filename(dir, "file", NULL);
    g_autofree char *below = g_build_filename(file, "state", NULL);
    fiber_assert(g_file_set_contents(file, "x", 1, NULL));
    refuses(below, "cannot make the state directory");
    refuses(below, file);
    remove_directory(dir);
}

// -- writing --------------------------------------------------------------------------------------

FIBER_TEST(a_change_is_written_whole_or_not_at_all)
{
    char *dir = new_directory();
    g_autoptr(GError) error = NULL;
    Database *database = opens(dir);
    DatabaseChange *change = change_of("half");
    database_change_add(change, "INSERT INTO points VALUES('web', 'mon', 1, 0)"); // of no disk
    fiber_assert(database_write(self, database, change, &error) < 0);
    fiber_assert(error);
    has(database, "");
    fiber_assert_equal(database_write(self, database, change_of("one"), NULL), 0);
    has(database, "one");
    database_close(database);
    remove_directory(dir);
}

// Files of this process cannot grow: as on a disk that is full.
static void set_full(bool is_full)
{
    struct rlimit limit;
    fiber_assert_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = is_full ? 0 : limit.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    fiber_assert_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

FIBER_TEST(what_a_full_disk_does_not_take_is_told_and_later_changes_are_written)
{
    char *dir = new_directory();
    g_autoptr(GError) error = NULL;
    Database *database = opens(dir);
    fiber_assert_equal(database_write(self, database, change_of("one"), NULL), 0);
    set_full(true);
    fiber_assert(database_write(self, database, change_of("lost"), &error) < 0);
    fiber_assert(strstr(error->message, "cannot be used"));
    fiber_assert(strstr(error->message, dir));
    has(database, "one");
    set_full(false);
    fiber_assert_equal(database_write(self, database, change_of("two"), NULL), 0);
    database_close(database);
    database = opens(dir);
    has(database, "one two");
    database_close(database);
    remove_directory(dir);
}

FIBER_TEST(what_is_true_already_is_kept_and_written_first_in_its_order)
{
    char *dir = new_directory();
    Database *database = opens(dir);
    set_full(true);
    g_autoptr(GError) error = NULL;
    fiber_assert(database_note(self, database, change_of("one"), &error) < 0);
    fiber_assert(database_note(self, database, change_of("two"), NULL) < 0);
    // Nothing is written before what came before it.
    fiber_assert(database_write(self, database, change_of("lost"), NULL) < 0);
    has(database, "");
    set_full(false);
    fiber_assert_equal(database_write(self, database, change_of("three"), NULL), 0);
    has(database, "one two three");
    database_close(database);
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_there_after_a_new_start),
        cmocka_unit_test(a_directory_has_one_daemon),
        cmocka_unit_test(tables_of_a_newer_version_are_refused_and_left_alone),
        cmocka_unit_test(the_database_of_another_program_is_left_alone),
        cmocka_unit_test(an_empty_file_becomes_a_database),
        cmocka_unit_test(a_file_that_is_no_database_is_refused_and_left_alone),
        cmocka_unit_test(a_damaged_page_is_found),
        cmocka_unit_test(rows_that_refer_to_nothing_are_found),
        cmocka_unit_test(a_directory_that_cannot_be_is_named),
        cmocka_unit_test(a_change_is_written_whole_or_not_at_all),
        cmocka_unit_test(what_a_full_disk_does_not_take_is_told_and_later_changes_are_written),
        cmocka_unit_test(what_is_true_already_is_kept_and_written_first_in_its_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
