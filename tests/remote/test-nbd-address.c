// SPDX-License-Identifier: LGPL-2.1-or-later
// Addresses of NBD exports: what options and URIs mean, and what is refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/nbd-client.h"
#include "remote/nbd-address.h"

static void assert_values(const char *text, const char *expected)
{
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');
    json_t *values = json_loads(json, 0, NULL);
    g_autoptr(NbdAddress) address = NULL;
    g_autoptr(GError) error = NULL;
    int r = nbd_address_from_values(values, &address, &error);
    json_decref(values);
    if (r < 0)
        assert_string_equal(error->message, expected);
    else
        assert_string_equal(address->text, expected);
}

static void options_name_a_server(void **state)
{
    assert_values("{'server': {'type': 'unix', 'path': '/a b'}}", "nbd+unix:///?socket=/a b");
    assert_values("{'server': {'type': 'inet', 'host': 'h', 'port': '1'}, 'export': 'x/y'}",
                  "nbd://h:1/x/y");
    assert_values("{'server': {'host': '::1'}}", "nbd://[::1]:10809/");
    assert_values("{'path': '/s', 'export': 'e'}", "nbd+unix:///e?socket=/s");
    assert_values("{'host': 'h'}", "nbd://h:10809/");
}

static void options_that_name_none_or_two_are_refused(void **state)
{
    assert_values("{}", "NBD server address missing");
    assert_values("{'path': '/s', 'host': 'h'}", "path and host may not be used at the same time");
    assert_values("{'server': {'type': 'unix'}}", "Parameter 'server.path' is missing");
    assert_values("{'server': {'type': 'inet'}}", "Parameter 'server.host' is missing");
    g_autofree char *path = g_strnfill(108, 'x'), *expected = NULL, *text = NULL;
    expected = g_strdup_printf("UNIX socket path '%s' is too long", path);
    text = g_strdup_printf("{'path': '%s'}", path);
    assert_values(text, expected);
}

static void assert_uri(const char *uri, const char *expected)
{
    g_autoptr(NbdAddress) address = NULL;
    g_autoptr(GError) error = NULL;
    if (nbd_address_from_uri(uri, &address, &error) < 0)
        assert_non_null(strstr(error->message, expected));
    else
        assert_string_equal(address->text, expected);
}

static void uris_are_those_of_the_nbd_project(void **state)
{
    assert_uri("nbd://h", "nbd://h:10809/");
    assert_uri("nbd://h:5/a%20b", "nbd://h:5/a%20b");
    assert_uri("nbd+tcp://[::1]:5/", "nbd://[::1]:5/");
    assert_uri("nbd+unix:///e?socket=/run/a%26b", "nbd+unix:///e?socket=/run/a&b");
}

static void other_uris_are_refused(void **state)
{
    assert_uri("nbds://h", "names no credentials for TLS");
    assert_uri("http://h", "not the URI of an NBD export");
    assert_uri("nbd", "not the URI of an NBD export");
    assert_uri("nbd+unix:///e", "it has no socket=PATH");
    assert_uri("nbd:///e", "it has no host");
}

static void a_uri_becomes_options(void **state)
{
    json_t *values = nbd_client_values_of_uri("nbd://h:5/e", NULL);
    assert_string_equal(json_string_value(json_object_get(values, "host")), "h");
    assert_string_equal(json_string_value(json_object_get(values, "port")), "5");
    assert_string_equal(json_string_value(json_object_get(values, "export")), "e");
    json_decref(values);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_name_a_server),
        cmocka_unit_test(options_that_name_none_or_two_are_refused),
        cmocka_unit_test(uris_are_those_of_the_nbd_project),
        cmocka_unit_test(other_uris_are_refused),
        cmocka_unit_test(a_uri_becomes_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
