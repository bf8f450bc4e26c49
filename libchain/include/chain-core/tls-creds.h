// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials for TLS: certificates (X.509) or shared keys (PSK), for one end of connections. They
// are read once and do not change; only the keys of a PSK server are looked up in their file for
// each connection. Any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef struct TlsCreds TlsCreds;

typedef enum TlsEnd { TLS_CLIENT, TLS_SERVER } TlsEnd;

typedef struct TlsCredsConfig {
    TlsEnd end;
    // Where the files are, named as QEMU, libvirt, nbdkit and libnbd name them. X.509: ca-cert.pem,
    // ca-crl.pem (may be absent), and server-cert.pem with server-key.pem, or client-cert.pem with
    // client-key.pem (may be absent, both). PSK: keys.psk, of lines USER:KEY.
    const char *dir;
    const char *psk_file;   // instead of keys.psk in `dir`
    const char *username;   // PSK clients: whose key; NULL: "qemu"
    bool verifies_peer;     // X.509: the other end must have a certificate of the authority
    bool skips_sanity;      // X.509: certificates that no peer could accept are taken, too
    const char *password;   // X.509: of the key's file; NULL: it has none
    const char *algorithms; // gnutls's priority string; NULL: "NORMAL", from TLS 1.2 on
} TlsCredsConfig;

// Reads the files: blocks. Owned; NULL with a sentence.
TlsCreds *tls_creds_new_x509(const TlsCredsConfig *config, GError **error);
TlsCreds *tls_creds_new_psk(const TlsCredsConfig *config, GError **error);
// Whether each line of a PSK server's file is USER:KEY, with a key that can be used. Empty lines
// and those that begin with '#' are passed over, as gnutls does. -EINVAL with a sentence that names
// the line. Blocks.
int tls_psk_check_file(const char *path, GError **error);
TlsCreds *tls_creds_ref(TlsCreds *creds);
void tls_creds_unref(TlsCreds *creds); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsCreds, tls_creds_unref)

TlsEnd tls_creds_end(const TlsCreds *creds);
// Credentials by name, of both ends.
typedef struct TlsCredsTable TlsCredsTable;
TlsCredsTable *tls_creds_table_new(void);
void tls_creds_table_free(TlsCredsTable *table); // accepts NULL
// Takes `creds`, in the place of any of that name; NULL: there are none any more.
void tls_creds_table_set(TlsCredsTable *table, const char *name, TlsCreds *creds);
// A new reference. -ENOENT, or -EINVAL when they are of the other end, with QEMU's sentence.
// `table` may be NULL.
int tls_creds_table_find(TlsCredsTable *table, const char *name, TlsEnd end, TlsCreds **ret_creds,
                         GError **error);

// Whether who is at the other end is known after a handshake.
bool tls_creds_identify_peer(const TlsCreds *creds);
