// SPDX-License-Identifier: LGPL-2.1-or-later
// Addresses, the sockets they become, and the URIs that lead back to them. Serving on them is
// tested from outside (tests/integration).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "activation.h"
#include "listeners.h"
#include "nbd-address.h"

static bool is_accepted(const char *address)
{
    g_autoptr(GError) error = NULL;
    g_auto(NbdAddress) parsed = {0};
    int r = nbd_address_parse(address, &parsed, &error);
    assert_int_equal(r < 0, error != NULL);
    return r == 0;
}

static void addresses_are_paths_or_host_and_port(void **state)
{
    static const char *const good[] = {"/run/a.sock", "a.sock",     "./a:b",
                                       "/a:b",        "host:10809", "127.0.0.1:65535",
                                       "[::1]:10809", ":10809",     "*:0"};
    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++)
        assert_true(is_accepted(good[i]));
}

static void addresses_that_cannot_be_meant_are_refused(void **state)
{
    assert_false(is_accepted("host:"));
    assert_false(is_accepted("::1:10809"));
    assert_false(is_accepted("fe80::1:10809"));
    static const char *const bad_ports[] = {
        "h:65536", "h:99999999999999999999", "h:nbd", "h:1x", "h:-1", "h:+1", "h: 1", "[::1]:0x10"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad_ports); i++)
        assert_false(is_accepted(bad_ports[i]));
    g_autofree char *name = g_strnfill(120, 'x');
    g_autofree char *path = g_strconcat("/", name, NULL);
    assert_false(is_accepted(path));
}

static void a_private_socket_is_for_this_user_only_and_goes_away(void **state)
{
    char *none[] = {NULL};
    g_autoptr(GError) error = NULL;
    Listeners *listeners = listeners_open(NULL, none, &error);
    assert_non_null(listeners);
    assert_false(listeners_are_only_given(listeners));
    g_auto(GStrv) uris = listeners_uris(listeners, "");
    assert_int_equal(g_strv_length(uris), 1);
    assert_true(g_str_has_prefix(uris[0], "nbd+unix:///?socket=/"));
    const char *path = strchr(uris[0], '=') + 1;
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    g_autofree char *dir = g_path_get_dirname(path);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    listeners_free(listeners);
    assert_int_equal(access(dir, F_OK), -1);
}

static void uris_are_escaped(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chaind-listeners-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "a b%&#?.sock", NULL);
    char *addresses[] = {path, NULL};
    Listeners *listeners = listeners_open(NULL, addresses, NULL);
    assert_non_null(listeners);
    g_auto(GStrv) uris = listeners_uris(listeners, "na/me x");
    g_autofree char *want =
        g_strdup_printf("nbd+unix:///na%%2Fme%%20x?socket=%s/a%%20b%%25%%26%%23%%3F.sock", dir);
    assert_string_equal(uris[0], want);
    listeners_free(listeners);
    assert_int_equal(g_rmdir(dir), 0);
}

static void the_uri_of_port_0_has_the_port_that_was_chosen(void **state)
{
    char *addresses[] = {"127.0.0.1:0", NULL};
    Listeners *listeners = listeners_open(NULL, addresses, NULL);
    assert_non_null(listeners);
    g_auto(GStrv) uris = listeners_uris(listeners, "x");
    assert_true(g_str_has_prefix(uris[0], "nbd://127.0.0.1:"));
    assert_true(g_str_has_suffix(uris[0], "/x"));
    assert_int_not_equal(g_ascii_strtoull(uris[0] + strlen("nbd://127.0.0.1:"), NULL, 10), 0);
    listeners_free(listeners);
}

static void a_socket_that_somebody_put_in_our_place_stays(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chaind-listeners-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "s", NULL);
    char *addresses[] = {path, NULL};
    Listeners *listeners = listeners_open(NULL, addresses, NULL);
    assert_non_null(listeners);
    // Made before ours is gone, so that it cannot get the same inode.
    g_autofree char *other = g_build_filename(dir, "other", NULL);
    assert_true(g_file_set_contents(other, "", 0, NULL));
    assert_int_equal(g_rename(other, path), 0);
    listeners_free(listeners);
    assert_int_equal(access(path, F_OK), 0);
    g_unlink(path);
    g_rmdir(dir);
}

static void activation_of_another_process_is_ignored_and_forgotten(void **state)
{
    Activation activation;
    g_setenv("LISTEN_PID", "1", true);
    g_setenv("LISTEN_FDS", "1", true);
    assert_int_equal(activation_take(&activation, NULL), 0);
    assert_int_equal(activation.fds[ACTIVATION_NBD]->len, 0);
    assert_null(g_getenv("LISTEN_FDS"));
    assert_null(g_getenv("LISTEN_PID"));
    activation_clear(&activation);
}

static int listen_on(sa_family_t family, const void *address, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, address, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

static void assert_uri_of(int fd, const char *want)
{
    char *none[] = {NULL};
    g_autoptr(GArray) given = g_array_new(false, false, sizeof(int));
    g_array_append_val(given, fd);
    Listeners *listeners = listeners_open(given, none, NULL);
    assert_non_null(listeners);
    assert_true(listeners_are_only_given(listeners));
    g_auto(GStrv) uris = listeners_uris(listeners, "x");
    assert_string_equal(want ? want : "none", uris[0] ? uris[0] : "none");
    listeners_free(listeners);
}

static void assert_uri_of_port(int fd, const char *format)
{
    struct sockaddr_in6 bound;
    socklen_t len = sizeof bound;
    assert_int_equal(getsockname(fd, (struct sockaddr *)&bound, &len), 0);
    g_autofree char *port = g_strdup_printf("%u", ntohs(bound.sin6_port)); // where IPv4 has it, too
    g_auto(GStrv) parts = g_strsplit(format, "PORT", 2);
    g_autofree char *want = g_strjoinv(port, parts);
    assert_uri_of(fd, want);
}

static void a_socket_that_was_given_has_a_uri_and_stays(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chaind-listeners-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "s", NULL);
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    strcpy(local.sun_path, path);
    g_autofree char *want = g_strconcat("nbd+unix:///x?socket=", path, NULL);
    assert_uri_of(listen_on(AF_UNIX, &local, sizeof local), want);
    assert_int_equal(access(path, F_OK), 0);
    g_unlink(path);
    g_rmdir(dir);
    local = (struct sockaddr_un){.sun_family = AF_UNIX}; // the kernel chooses a name
    assert_uri_of(listen_on(AF_UNIX, &local, sizeof(sa_family_t)), NULL);
    struct sockaddr_in v4 = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
    assert_uri_of_port(listen_on(AF_INET, &v4, sizeof v4), "nbd://127.0.0.1:PORT/x");
    v4.sin_addr.s_addr = INADDR_ANY;
    assert_uri_of_port(listen_on(AF_INET, &v4, sizeof v4), "nbd://localhost:PORT/x");
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    assert_uri_of_port(listen_on(AF_INET6, &v6, sizeof v6), "nbd://[::1]:PORT/x");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_paths_or_host_and_port),
        cmocka_unit_test(addresses_that_cannot_be_meant_are_refused),
        cmocka_unit_test(a_private_socket_is_for_this_user_only_and_goes_away),
        cmocka_unit_test(uris_are_escaped),
        cmocka_unit_test(the_uri_of_port_0_has_the_port_that_was_chosen),
        cmocka_unit_test(a_socket_that_somebody_put_in_our_place_stays),
        cmocka_unit_test(a_socket_that_was_given_has_a_uri_and_stays),
        cmocka_unit_test(activation_of_another_process_is_ignored_and_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
