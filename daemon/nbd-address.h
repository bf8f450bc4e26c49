// SPDX-License-Identifier: LGPL-2.1-or-later
// An address to listen at, as --nbd takes it. Pure.
#pragma once

#include <glib.h>

typedef struct NbdAddress {
    char *path; // unix socket (absolute), or NULL
    char *host; // TCP; "" is every address of the machine
    char *port;
} NbdAddress;

// Into zeros; nbd_address_clear(), also on failure: -EINVAL with a sentence. Opens nothing.
int nbd_address_parse(const char *text, NbdAddress *ret_address, GError **error);
void nbd_address_clear(NbdAddress *address);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(NbdAddress, nbd_address_clear)
