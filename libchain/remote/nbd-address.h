// SPDX-License-Identifier: LGPL-2.1-or-later
// Where an NBD export is: from the options of the nbd driver, or from a URI. And getting a socket
// to there.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdint.h>

#include "chain-core/fiber.h"
#include "chain-core/tls-creds.h"

typedef struct NbdAddress {
    char *path;        // of a unix socket; NULL: TCP
    char *host, *port; // TCP
    char *export_name;
    TlsCreds *tls_creds; // NULL: no TLS
    char *tls_hostname;  // that the server's certificate must be for; NULL: for any
    char *text;          // for messages, as a URI
} NbdAddress;

// From taken option values: "server", or "host" and "port", or "path"; "export". -EINVAL with a
// sentence. Pure.
int nbd_address_from_values(const json_t *values, NbdAddress **ret_address, GError **error);
// From nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH. -ENOTSUP for TLS and others.
// Pure.
int nbd_address_from_uri(const char *uri, NbdAddress **ret_address, GError **error);
void nbd_address_free(NbdAddress *address);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdAddress, nbd_address_free)

// It is spoken to with TLS: takes `creds`. `hostname` NULL: the host, if it has one.
void nbd_address_set_tls(NbdAddress *address, TlsCreds *creds, const char *hostname);

// A connected, non-blocking socket, or negative with a sentence. Names are resolved on a worker.
// Takes `timeout_ns` at the longest, besides what the resolver takes. -ECANCELED.
int nbd_address_connect(Fiber *self, const NbdAddress *address, uint64_t timeout_ns,
                        GError **error);
