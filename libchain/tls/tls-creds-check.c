// SPDX-License-Identifier: LGPL-2.1-or-later
// What a peer would look at: that certificates are valid now, who may sign others, and that our own
// is signed by an authority of ours. Blocks. Any thread.
#include "tls/tls-creds-check.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

typedef struct Certificates {
    gnutls_x509_crt_t *list;
    unsigned n;
} Certificates;

static void certificates_clear(Certificates *certificates)
{
    for (unsigned i = 0; i < certificates->n; i++)
        gnutls_x509_crt_deinit(certificates->list[i]);
    gnutls_free(certificates->list);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Certificates, certificates_clear)

static int load(const char *path, Certificates *ret_certificates, GError **error)
{
    g_autofree char *text = NULL;
    gsize len;
    if (!g_file_get_contents(path, &text, &len, NULL))
        return error_set(error, -EINVAL, "Cannot load certificate file %s", path);
    gnutls_datum_t datum = {(unsigned char *)text, (unsigned)len};
    int r = gnutls_x509_crt_list_import2(&ret_certificates->list, &ret_certificates->n, &datum,
                                         GNUTLS_X509_FMT_PEM, 0);
    return r < 0 ? error_set(error, -EINVAL, "Unable to import certificate %s: %s", path,
                             gnutls_strerror(r))
                 : 0;
}

static const char *role(TlsEnd end, bool is_authority)
{
    return is_authority ? "CA" : end == TLS_SERVER ? "server" : "client";
}

static int check_times(gnutls_x509_crt_t certificate, const char *path, const char *which,
                       GError **error)
{
    time_t now = time(NULL);
    if (gnutls_x509_crt_get_expiration_time(certificate) < now)
        return error_set(error, -EINVAL, "The %s certificate %s has expired", which, path);
    if (gnutls_x509_crt_get_activation_time(certificate) > now)
        return error_set(error, -EINVAL, "The %s certificate %s is not yet active", which, path);
    return 0;
}

static int check_constraints(gnutls_x509_crt_t certificate, const char *path, TlsEnd end,
                             bool is_authority, GError **error)
{
    int is_ca = gnutls_x509_crt_get_basic_constraints(certificate, NULL, NULL, NULL);
    if (is_ca > 0 && !is_authority)
        return error_set(error, -EINVAL,
                         "The certificate %s basic constraints show a CA, but we need one for a %s",
                         path, role(end, false));
    if (is_ca == 0 && is_authority)
        return error_set(error, -EINVAL, "The certificate %s basic constraints do not show a CA",
                         path);
    return 0;
}

static int check_each(const Certificates *c, const char *path, TlsEnd end, bool is_authority,
                      GError **error)
{
    // Of a chain, the first is ours, and the others sign.
    unsigned n = is_authority ? c->n : MIN(c->n, 1);
    for (unsigned i = 0; i < n; i++) {
        int r = check_times(c->list[i], path, role(end, is_authority), error);
        if (r == 0)
            r = check_constraints(c->list[i], path, end, is_authority, error);
        if (r < 0)
            return r;
    }
    return 0;
}

static const char *why_untrusted(unsigned status)
{
    if (status & GNUTLS_CERT_INSECURE_ALGORITHM)
        return "The certificate uses an insecure algorithm";
    if (status & GNUTLS_CERT_REVOKED)
        return "The certificate has been revoked";
    if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
        return "The certificate hasn't got a known issuer";
    return "The certificate is not trusted";
}

int tls_creds_check(TlsEnd end, const char *authority, const char *certificate, GError **error)
{
    g_auto(Certificates) trusted = {0}, own = {0};
    int r = load(authority, &trusted, error);
    if (r == 0)
        r = check_each(&trusted, authority, end, true, error);
    if (r == 0 && certificate)
        r = load(certificate, &own, error);
    if (r == 0)
        r = check_each(&own, certificate, end, false, error);
    if (r < 0 || !certificate)
        return r;
    unsigned status = 0;
    if (gnutls_x509_crt_list_verify(own.list, (int)own.n, trusted.list, (int)trusted.n, NULL, 0, 0,
                                    &status) < 0)
        status = GNUTLS_CERT_INVALID;
    return status ? error_set(error, -EINVAL,
                              "Our own certificate %s failed validation against %s: %s",
                              certificate, authority, why_untrusted(status))
                  : 0;
}
