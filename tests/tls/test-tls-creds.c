// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials: what is missing, wrong or out of date is told by name when they are loaded. And
// lists of who may connect.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib/gstdio.h>
#include <string.h>
#include <utime.h>

#include "chain-core/tls-authz.h"
#include "chain-core/tls-creds.h"
#include "pki.h"

static void assert_refused(TlsCreds *creds, GError *error, const char *words)
{
    assert_null(creds);
    assert_non_null(error);
    if (!strstr(error->message, words))
        fail_msg("'%s' has no '%s'", error->message, words);
    g_error_free(error);
}

static void x509_refused(TlsEnd end, const char *dir, const char *words)
{
    GError *error = NULL;
    TlsCreds *creds = tls_creds_new_x509(&(TlsCredsConfig){.end = end, .dir = dir}, &error);
    assert_refused(creds, error, words);
}

static void what_is_missing_is_named(void **state)
{
    g_autoptr(Pki) pki = pki_new();
    g_autofree char *dir = pki_make_dir(pki, "a");
    x509_refused(TLS_SERVER, NULL, "Missing 'dir'");
    x509_refused(TLS_SERVER, "/no/such", "/no/such/ca-cert.pem: No such file");
    x509_refused(TLS_SERVER, dir, "server-cert.pem: No such file");
    g_autoptr(TlsCreds) client =
        tls_creds_new_x509(&(TlsCredsConfig){.end = TLS_CLIENT, .dir = dir}, NULL);
    assert_non_null(client); // it needs no certificate
    pki_issue(pki, dir, &(PkiCertificate){"client", "c", 0, 0, false});
    g_autofree char *key = g_build_filename(dir, "client-key.pem", NULL);
    g_unlink(key);
    x509_refused(TLS_CLIENT, dir, "client-key.pem: No such file");
    GError *error = NULL;
    TlsCreds *creds = tls_creds_new_psk(&(TlsCredsConfig){.end = TLS_SERVER, .dir = dir}, &error);
    assert_refused(creds, error, "keys.psk: No such file");
}

static void certificates_that_nobody_could_accept_are_refused(void **state)
{
    g_autoptr(Pki) pki = pki_new();
    g_autoptr(Pki) other = pki_new();
    g_autofree char *expired = pki_make_dir(pki, "expired"), *early = pki_make_dir(pki, "early"),
                    *foreign = pki_make_dir(pki, "foreign"), *good = pki_make_dir(pki, "good");
    pki_issue(pki, expired, &(PkiCertificate){"server", "s", -5, -1, false});
    pki_issue(pki, early, &(PkiCertificate){"server", "s", 1, 5, false});
    pki_issue(other, foreign, &(PkiCertificate){"server", "s", 0, 0, false});
    pki_issue(pki, good, &(PkiCertificate){"server", "s", 0, 0, false});
    x509_refused(TLS_SERVER, expired, "has expired");
    x509_refused(TLS_SERVER, early, "is not yet active");
    x509_refused(TLS_SERVER, foreign, "failed validation");
    g_autoptr(TlsCreds) taken = tls_creds_new_x509(
        &(TlsCredsConfig){.end = TLS_SERVER, .dir = expired, .skips_sanity = true}, NULL);
    assert_non_null(taken);
    g_autoptr(TlsCreds) creds =
        tls_creds_new_x509(&(TlsCredsConfig){.end = TLS_SERVER, .dir = good}, NULL);
    assert_non_null(creds);
    GError *error = NULL;
    TlsCreds *odd = tls_creds_new_x509(
        &(TlsCredsConfig){.end = TLS_SERVER, .dir = good, .algorithms = "NONSENSE"}, &error);
    assert_refused(odd, error, "NONSENSE");
}

static void a_client_takes_the_key_of_its_user(void **state)
{
    g_autoptr(Pki) pki = pki_new();
    g_autofree char *dir = pki_make_psk(pki, "psk", "alice:01020304\nbob:zz\n");
    TlsCredsConfig config = {.end = TLS_CLIENT, .dir = dir, .username = "alice"};
    GError *error = NULL;
    g_autoptr(TlsCreds) alice = tls_creds_new_psk(&config, &error);
    if (!alice)
        fail_msg("%s", error->message);
    config.username = NULL;
    TlsCreds *nobody = tls_creds_new_psk(&config, &error);
    assert_refused(nobody, error, "qemu not found");
    config.username = "bob";
    error = NULL;
    TlsCreds *bob = tls_creds_new_psk(&config, &error);
    assert_refused(bob, error, "PSK client credentials");
}

static void lines_of_keys_are_checked(void **state)
{
    static const struct {
        const char *text, *bad; // NULL: none
    } cases[] = {
        {"", NULL},
        {"alice:0102\n\n# bob has left\n#616c:ABcd\ncarol:00", NULL},
        {"alice:0102\nbob\n", ".psk:2: "},
        {"alice:0102\n\nbob:\n", ".psk:3: "},
        {":0102\n", ".psk:1: "},
        {"alice:010\n", ".psk:1: "},
        {"alice:0102 \n", ".psk:1: "},
        {"alice:01:02\n", ".psk:1: "},
    };
    g_autoptr(Pki) pki = pki_new();
    g_autofree char *path = g_build_filename(pki->base, "some.psk", NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        assert_true(g_file_set_contents(path, cases[i].text, -1, NULL));
        int r = tls_psk_check_file(path, &error);
        assert_int_equal(r, cases[i].bad ? -EINVAL : 0);
        assert_true(!cases[i].bad || strstr(error->message, cases[i].bad));
    }
}

static TlsAuthz *list_of(const char *text)
{
    json_auto_t *list = json_loads(text, 0, NULL);
    return tls_authz_new_list(list, NULL);
}

static void the_first_rule_that_matches_decides(void **state)
{
    g_autoptr(TlsAuthz) simple = tls_authz_new_simple("CN=a");
    assert_true(tls_authz_allows(simple, "CN=a"));
    assert_false(tls_authz_allows(simple, "CN=ab"));
    g_autoptr(TlsAuthz) list =
        list_of("{\"policy\":\"deny\",\"rules\":[{\"match\":\"CN=evil\",\"policy\":\"deny\"},"
                "{\"match\":\"CN=*\",\"policy\":\"allow\",\"format\":\"glob\"}]}");
    assert_false(tls_authz_allows(list, "CN=evil"));
    assert_true(tls_authz_allows(list, "CN=good"));
    assert_false(tls_authz_allows(list, "O=good"));
    g_autoptr(TlsAuthz) empty = list_of("{}");
    assert_false(tls_authz_allows(empty, "CN=a"));
    assert_null(list_of("{\"policy\":\"perhaps\"}"));
    assert_null(list_of("{\"rules\":[{\"match\":\"x\"}]}"));
    assert_null(list_of("{\"rules\":[{\"match\":\"x\",\"policy\":\"deny\",\"format\":\"re\"}]}"));
}

static void write_list(const char *path, const char *text)
{
    assert_true(g_file_set_contents(path, text, -1, NULL)); // another file each time
}

static void a_changed_file_counts_once_it_can_be_read(void **state)
{
    g_autoptr(Pki) pki = pki_new();
    g_autofree char *path = g_build_filename(pki->base, "list.json", NULL);
    assert_null(tls_authz_new_list_file(path, true, NULL));
    write_list(path, "{\"policy\":\"allow\"}");
    g_autoptr(TlsAuthz) live = tls_authz_new_list_file(path, true, NULL);
    g_autoptr(TlsAuthz) fixed = tls_authz_new_list_file(path, false, NULL);
    assert_true(tls_authz_allows(live, "x"));
    write_list(path, "{\"policy\":");
    assert_true(tls_authz_allows(live, "x"));
    write_list(path, "{\"policy\":\"deny\"}");
    assert_false(tls_authz_allows(live, "x"));
    assert_true(tls_authz_allows(fixed, "x"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(certificates_that_nobody_could_accept_are_refused),
        cmocka_unit_test(a_client_takes_the_key_of_its_user),
        cmocka_unit_test(lines_of_keys_are_checked),
        cmocka_unit_test(the_first_rule_that_matches_decides),
        cmocka_unit_test(a_changed_file_counts_once_it_can_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
