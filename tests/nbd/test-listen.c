// SPDX-License-Identifier: LGPL-2.1-or-later
// Unix sockets come into the world with the mode and the owner that were asked for.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <glib.h>
#include <glib/gstdio.h>

#include "nbd/listen.h"

static char *dir, *path;

static int make_dir(void **state)
{
    dir = g_dir_make_tmp("chaind-listen-XXXXXX", NULL);
    path = g_build_filename(dir, "s.sock", NULL);
    return dir ? 0 : -1;
}

static int remove_dir(void **state)
{
    g_remove(path);
    g_rmdir(dir);
    g_free(path);
    g_free(dir);
    return 0;
}

static struct stat listen_with(mode_t mode, uid_t owner, gid_t group)
{
    g_autoptr(GError) error = NULL;
    struct stat st;
    int fd = nbds_listen_unix(path, mode, owner, group, &error);
    if (fd < 0)
        fail_msg("%s", error->message);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    close(fd);
    return st;
}

static void the_mode_is_the_one_asked_for_whatever_the_umask(void **state)
{
    static const mode_t modes[] = {0600, 0660, 0666, 0777}, umasks[] = {0, 0027, 0777};
    for (size_t m = 0; m < G_N_ELEMENTS(modes); m++) {
        for (size_t u = 0; u < G_N_ELEMENTS(umasks); u++) {
            mode_t before = umask(umasks[u]);
            struct stat st = listen_with(modes[m], (uid_t)-1, (gid_t)-1);
            umask(before);
            assert_int_equal(st.st_mode & 07777, modes[m]);
        }
    }
}

static void without_a_mode_the_umask_decides(void **state)
{
    mode_t before = umask(0037);
    struct stat st = listen_with(0, (uid_t)-1, (gid_t)-1);
    umask(before);
    assert_int_equal(st.st_mode & 07777, 0740);
}

static void the_owner_is_the_one_asked_for(void **state)
{
    // Only root can give something away; others can give it to themselves.
    uid_t owner = geteuid() == 0 ? 12345 : geteuid();
    gid_t group = geteuid() == 0 ? 23456 : getegid();
    struct stat st = listen_with(0640, owner, group);
    assert_int_equal(st.st_uid, owner);
    assert_int_equal(st.st_gid, group);
    assert_int_equal(st.st_mode & 07777, 0640);
    st = listen_with(0640, owner, (gid_t)-1);
    assert_int_equal(st.st_uid, owner);
    assert_int_equal(st.st_gid, getegid());
}

static void an_owner_that_cannot_be_set_leaves_no_socket(void **state)
{
    if (geteuid() == 0) {
        print_message("# SKIP root may give sockets to anybody\n");
        skip();
    }
    g_autoptr(GError) error = NULL;
    assert_int_equal(nbds_listen_unix(path, 0600, 0, 0, &error), -EPERM);
    assert_non_null(error);
    assert_int_equal(access(path, F_OK), -1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_mode_is_the_one_asked_for_whatever_the_umask),
        TEST(without_a_mode_the_umask_decides),
        TEST(the_owner_is_the_one_asked_for),
        TEST(an_owner_that_cannot_be_set_leaves_no_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
