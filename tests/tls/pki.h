// SPDX-License-Identifier: LGPL-2.1-or-later
// Authorities, certificates and shared keys for tests, in directories as QEMU lays them out.
#pragma once

#include <glib.h>
#include <gnutls/x509.h>
#include <stdbool.h>

typedef struct Pki {
    char *base; // a temporary directory
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t authority;
} Pki;

// With an authority of its own.
Pki *pki_new(void);
void pki_free(Pki *pki);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Pki, pki_free)

// A directory with ca-cert.pem; owned.
char *pki_make_dir(const Pki *pki, const char *name);
typedef struct PkiCertificate {
    const char *role; // "server" or "client"
    const char *common_name;
    int from_day, to_day; // from today on; both 0: it is valid
    bool has_other_purpose;
} PkiCertificate;
// Its certificate and key, signed by `pki`, in `dir`.
void pki_issue(const Pki *pki, const char *dir, const PkiCertificate *certificate);
// A directory with keys.psk; owned.
char *pki_make_psk(const Pki *pki, const char *name, const char *lines);
