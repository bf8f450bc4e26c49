// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials as gnutls takes them. For libchain/tls.
#pragma once

#include <gnutls/gnutls.h>

#include "chain-core/tls-creds.h"

struct TlsCreds {
    gatomicrefcount n_refs;
    TlsEnd end;
    bool verifies_peer; // X.509
    gnutls_priority_t algorithms;
    // One of these.
    gnutls_certificate_credentials_t certificate;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
};
