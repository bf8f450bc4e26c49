// SPDX-License-Identifier: LGPL-2.1-or-later
// Certificates through gnutls, of elliptic curves: quickly made.
#include "pki.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib/gstdio.h>
#include <string.h>
#include <time.h>

#define ok(call) assert_true((call) >= 0)

enum { DAY_S = 86400 };

static gnutls_x509_privkey_t new_key(void)
{
    gnutls_x509_privkey_t key;
    ok(gnutls_x509_privkey_init(&key));
    ok(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA,
                                    GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
    return key;
}

static gnutls_x509_crt_t new_certificate(gnutls_x509_privkey_t key, const char *name, int from_day,
                                         int to_day)
{
    static unsigned serial;
    gnutls_x509_crt_t crt;
    uint32_t number = ++serial;
    time_t now = time(NULL);
    ok(gnutls_x509_crt_init(&crt));
    ok(gnutls_x509_crt_set_version(crt, 3));
    ok(gnutls_x509_crt_set_serial(crt, &number, sizeof number));
    ok(gnutls_x509_crt_set_key(crt, key));
    ok(gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                     (unsigned)strlen(name)));
    ok(gnutls_x509_crt_set_activation_time(crt, now + from_day * DAY_S));
    ok(gnutls_x509_crt_set_expiration_time(crt, now + to_day * DAY_S));
    return crt;
}

static void write_file(const char *dir, const char *name, const void *data, size_t len)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    assert_true(g_file_set_contents(path, data, (gssize)len, NULL));
}

static void write_certificate(const char *dir, const char *name, gnutls_x509_crt_t crt)
{
    gnutls_datum_t text;
    ok(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &text));
    write_file(dir, name, text.data, text.size);
    gnutls_free(text.data);
}

Pki *pki_new(void)
{
    Pki *pki = g_new0(Pki, 1);
    pki->base = g_dir_make_tmp("pki-XXXXXX", NULL);
    assert_non_null(pki->base);
    pki->key = new_key();
    pki->authority = new_certificate(pki->key, "authority", -10, 10);
    ok(gnutls_x509_crt_set_ca_status(pki->authority, 1));
    ok(gnutls_x509_crt_set_key_usage(pki->authority, GNUTLS_KEY_KEY_CERT_SIGN));
    ok(gnutls_x509_crt_sign2(pki->authority, pki->authority, pki->key, GNUTLS_DIG_SHA256, 0));
    return pki;
}

// Of one level.
static void remove_dir(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *inside = g_build_filename(path, name, NULL);
        if (g_file_test(inside, G_FILE_TEST_IS_DIR))
            remove_dir(inside);
        else
            g_unlink(inside);
    }
    g_rmdir(path);
}

void pki_free(Pki *pki)
{
    gnutls_x509_crt_deinit(pki->authority);
    gnutls_x509_privkey_deinit(pki->key);
    remove_dir(pki->base);
    g_free(pki->base);
    g_free(pki);
}

char *pki_make_dir(const Pki *pki, const char *name)
{
    char *dir = g_build_filename(pki->base, name, NULL);
    assert_int_equal(g_mkdir(dir, 0700), 0);
    write_certificate(dir, "ca-cert.pem", pki->authority);
    return dir;
}

void pki_issue(const Pki *pki, const char *dir, const PkiCertificate *c)
{
    bool is_server = g_str_equal(c->role, "server") != c->has_other_purpose;
    bool is_valid = !c->from_day && !c->to_day;
    g_autofree char *cert_name = g_strconcat(c->role, "-cert.pem", NULL);
    g_autofree char *key_name = g_strconcat(c->role, "-key.pem", NULL);
    gnutls_x509_privkey_t key = new_key();
    gnutls_x509_crt_t crt =
        new_certificate(key, c->common_name, is_valid ? -5 : c->from_day, is_valid ? 5 : c->to_day);
    ok(gnutls_x509_crt_set_ca_status(crt, 0));
    ok(gnutls_x509_crt_set_key_purpose_oid(
        crt, is_server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT, 0));
    if (g_str_equal(c->role, "server"))
        ok(gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, c->common_name,
                                                (unsigned)strlen(c->common_name), GNUTLS_FSAN_SET));
    ok(gnutls_x509_crt_sign2(crt, pki->authority, pki->key, GNUTLS_DIG_SHA256, 0));
    gnutls_datum_t text;
    ok(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &text));
    write_file(dir, key_name, text.data, text.size);
    gnutls_free(text.data);
    write_certificate(dir, cert_name, crt);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(key);
}

char *pki_make_psk(const Pki *pki, const char *name, const char *lines)
{
    char *dir = g_build_filename(pki->base, name, NULL);
    assert_int_equal(g_mkdir(dir, 0700), 0);
    write_file(dir, "keys.psk", lines, strlen(lines));
    return dir;
}
