// SPDX-License-Identifier: LGPL-2.1-or-later
// Loads credentials. Files have the names that QEMU looks for, and messages its words. Any thread.
#include "chain-core/tls-creds.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "tls/tls-creds-check.h"
#include "tls/tls-creds-private.h"

#define DEFAULT_ALGORITHMS "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"
#define PSK_ALGORITHMS ":+ECDHE-PSK:+DHE-PSK:+PSK"

// --- Life ---

TlsCreds *tls_creds_ref(TlsCreds *creds)
{
    g_atomic_ref_count_inc(&creds->n_refs);
    return creds;
}

void tls_creds_unref(TlsCreds *creds)
{
    if (!creds || !g_atomic_ref_count_dec(&creds->n_refs))
        return;
    if (creds->algorithms)
        gnutls_priority_deinit(creds->algorithms);
    if (creds->certificate)
        gnutls_certificate_free_credentials(creds->certificate);
    if (creds->psk_server)
        gnutls_psk_free_server_credentials(creds->psk_server);
    if (creds->psk_client)
        gnutls_psk_free_client_credentials(creds->psk_client);
    g_free(creds);
}

TlsEnd tls_creds_end(const TlsCreds *creds)
{
    return creds->end;
}

bool tls_creds_identify_peer(const TlsCreds *creds)
{
    return creds->psk_server || (creds->certificate && creds->verifies_peer);
}

// `more` follows what the config says, or else the default.
static TlsCreds *creds_new(const TlsCredsConfig *config, const char *more, GError **error)
{
    g_autofree char *algorithms =
        g_strconcat(config->algorithms ? config->algorithms : DEFAULT_ALGORITHMS, more, NULL);
    TlsCreds *creds = g_new0(TlsCreds, 1);
    g_atomic_ref_count_init(&creds->n_refs);
    creds->end = config->end;
    creds->verifies_peer = config->verifies_peer;
    int r = gnutls_priority_init(&creds->algorithms, algorithms, NULL);
    if (r >= 0)
        return creds;
    creds->algorithms = NULL;
    tls_creds_unref(creds);
    error_set(error, -EINVAL, "Unable to set TLS session priority %s: %s", algorithms,
              gnutls_strerror(r));
    return NULL;
}

// --- Files ---

// Owned. NULL with a sentence; without one when it is absent, and may be.
static char *find_file(const TlsCredsConfig *config, const char *name, bool may_be_absent,
                       GError **error)
{
    g_autofree char *path = g_build_filename(config->dir, name, NULL);
    if (access(path, R_OK) == 0)
        return g_steal_pointer(&path);
    if (errno != ENOENT || !may_be_absent)
        error_set(error, -errno, "Unable to access credentials %s: %s", path, g_strerror(errno));
    return NULL;
}

static int check_dir(const TlsCredsConfig *config, GError **error)
{
    return config->dir ? 0 : error_set(error, -EINVAL, "Missing 'dir' property value");
}

// --- X.509 ---

typedef struct X509Files {
    char *authority, *revoked, *certificate, *key;
} X509Files;

static void x509_files_clear(X509Files *files)
{
    g_free(files->authority);
    g_free(files->revoked);
    g_free(files->certificate);
    g_free(files->key);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(X509Files, x509_files_clear)

static int find_x509_files(const TlsCredsConfig *config, X509Files *files, GError **error)
{
    bool is_server = config->end == TLS_SERVER;
    g_autoptr(GError) fault = NULL;
    files->authority = find_file(config, "ca-cert.pem", false, &fault);
    if (!fault)
        files->revoked = find_file(config, "ca-crl.pem", true, &fault);
    if (!fault)
        files->certificate = find_file(config, is_server ? "server-cert.pem" : "client-cert.pem",
                                       !is_server, &fault);
    if (!fault) // one without the other is a mistake
        files->key = find_file(config, is_server ? "server-key.pem" : "client-key.pem",
                               !files->certificate, &fault);
    if (!fault)
        return 0;
    g_propagate_error(error, g_steal_pointer(&fault));
    return -EINVAL;
}

static int load_x509(TlsCreds *creds, const TlsCredsConfig *config, const X509Files *files,
                     GError **error)
{
    int r = gnutls_certificate_allocate_credentials(&creds->certificate);
    if (r < 0)
        return error_set(error, -ENOMEM, "Cannot allocate credentials: %s", gnutls_strerror(r));
    r = gnutls_certificate_set_x509_trust_file(creds->certificate, files->authority,
                                               GNUTLS_X509_FMT_PEM);
    if (r < 0)
        return error_set(error, -EINVAL, "Cannot load CA certificate '%s': %s", files->authority,
                         gnutls_strerror(r));
    if (files->revoked)
        r = gnutls_certificate_set_x509_crl_file(creds->certificate, files->revoked,
                                                 GNUTLS_X509_FMT_PEM);
    if (r < 0)
        return error_set(error, -EINVAL, "Cannot load CRL '%s': %s", files->revoked,
                         gnutls_strerror(r));
    if (files->certificate && files->key)
        r = gnutls_certificate_set_x509_key_file2(creds->certificate, files->certificate,
                                                  files->key, GNUTLS_X509_FMT_PEM, config->password,
                                                  0);
    return r < 0 ? error_set(error, -EINVAL, "Cannot load certificate '%s' & key '%s': %s",
                             files->certificate, files->key, gnutls_strerror(r))
                 : 0;
}

TlsCreds *tls_creds_new_x509(const TlsCredsConfig *config, GError **error)
{
    g_auto(X509Files) files = {0};
    if (check_dir(config, error) < 0 || find_x509_files(config, &files, error) < 0)
        return NULL;
    if (!config->skips_sanity &&
        tls_creds_check(config->end, files.authority, files.certificate, error) < 0)
        return NULL;
    g_autoptr(TlsCreds) creds = creds_new(config, "", error);
    if (!creds || load_x509(creds, config, &files, error) < 0)
        return NULL;
    return g_steal_pointer(&creds);
}

// --- PSK ---

static int load_psk_server(TlsCreds *creds, const char *path, GError **error)
{
    int r = gnutls_psk_allocate_server_credentials(&creds->psk_server);
    if (r >= 0) // looks into the file at each handshake
        r = gnutls_psk_set_server_credentials_file(creds->psk_server, path);
    return r < 0 ? error_set(error, -EINVAL, "Cannot set PSK server credentials: %s",
                             gnutls_strerror(r))
                 : 0;
}

static bool is_psk_line(const char *line)
{
    const char *colon = strchr(line, ':');
    size_t n_digits = colon ? strspn(colon + 1, "0123456789abcdefABCDEF") : 0;
    return n_digits && colon > line && !colon[1 + n_digits] && n_digits % 2 == 0;
}

int tls_psk_check_file(const char *path, GError **error)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) fault = NULL;
    if (!g_file_get_contents(path, &text, NULL, &fault))
        return error_set(error, -EINVAL, "Cannot read PSK file '%s': %s", path, fault->message);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    gnutls_memset(text, 0, strlen(text));
    unsigned bad = 0;
    for (unsigned i = 0; lines[i]; i++) {
        const char *line = lines[i];
        if (!bad && *line && *line != '#' && !is_psk_line(line))
            bad = i + 1;
        gnutls_memset(lines[i], 0, strlen(lines[i]));
    }
    return bad ? error_set(error, -EINVAL,
                           "%s:%u: a line is USER:KEY, with the key in hexadecimal digits, as "
                           "psktool writes it",
                           path, bad)
               : 0;
}

// The line USER:KEY; owned. NULL with a sentence.
static char *find_psk(const char *path, const char *username, GError **error)
{
    g_autofree char *text = NULL;
    g_autofree char *prefix = g_strconcat(username, ":", NULL);
    g_autoptr(GError) fault = NULL;
    if (!g_file_get_contents(path, &text, NULL, &fault)) {
        error_set(error, -EINVAL, "Cannot read PSK file '%s': %s", path, fault->message);
        return NULL;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++)
        if (g_str_has_prefix(*line, prefix))
            return g_strdup(g_strchomp(*line + strlen(prefix)));
    error_set(error, -EINVAL, "Username %s not found in PSK file %s", username, path);
    return NULL;
}

static int load_psk_client(TlsCreds *creds, const char *path, const char *username, GError **error)
{
    g_autofree char *hex = find_psk(path, username, error);
    if (!hex)
        return -EINVAL;
    gnutls_datum_t key = {(unsigned char *)hex, (unsigned)strlen(hex)};
    int r = gnutls_psk_allocate_client_credentials(&creds->psk_client);
    if (r >= 0)
        r = gnutls_psk_set_client_credentials(creds->psk_client, username, &key,
                                              GNUTLS_PSK_KEY_HEX);
    gnutls_memset(hex, 0, strlen(hex));
    return r < 0 ? error_set(error, -EINVAL, "Cannot set PSK client credentials: %s",
                             gnutls_strerror(r))
                 : 0;
}

TlsCreds *tls_creds_new_psk(const TlsCredsConfig *config, GError **error)
{
    g_autofree char *path = g_strdup(config->psk_file);
    if (!path && check_dir(config, error) < 0)
        return NULL;
    if (!path)
        path = find_file(config, "keys.psk", false, error);
    else if (access(path, R_OK) < 0 &&
             error_set(error, -errno, "Unable to access credentials %s: %s", path,
                       g_strerror(errno)) < 0)
        return NULL;
    g_autoptr(TlsCreds) creds = path ? creds_new(config, PSK_ALGORITHMS, error) : NULL;
    if (!creds)
        return NULL;
    int r = config->end == TLS_SERVER
                ? load_psk_server(creds, path, error)
                : load_psk_client(creds, path, config->username ? config->username : "qemu", error);
    return r < 0 ? NULL : g_steal_pointer(&creds);
}
