// SPDX-License-Identifier: LGPL-2.1-or-later
// Who may connect, among those whose identity TLS has verified: the distinguished name of a
// certificate, or the user of a shared key. QEMU's authz-simple, authz-list and authz-list-file.
// Any thread.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

typedef struct TlsAuthz TlsAuthz;

// Only this one.
TlsAuthz *tls_authz_new_simple(const char *identity);
// The first rule that matches decides, or else `policy`: {"policy": "allow"|"deny", "rules":
// [{"match": TEXT, "policy": …, "format": "exact"|"glob"}]}. Owned; NULL with a sentence.
TlsAuthz *tls_authz_new_list(const json_t *list, GError **error);
// Another list, for who is asked about from now on, of one that tls_authz_new_list() made.
int tls_authz_set_list(TlsAuthz *authz, const json_t *list, GError **error);
// A list in a file, which is read again when it has changed, if it `refreshes`; one that cannot be
// read then leaves what there was. Blocks. Owned; NULL with a sentence.
TlsAuthz *tls_authz_new_list_file(const char *path, bool refreshes, GError **error);
TlsAuthz *tls_authz_ref(TlsAuthz *authz);
void tls_authz_unref(TlsAuthz *authz); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsAuthz, tls_authz_unref)

// May block, for a file that refreshes.
bool tls_authz_allows(TlsAuthz *authz, const char *identity);
