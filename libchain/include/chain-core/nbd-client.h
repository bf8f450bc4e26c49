// SPDX-License-Identifier: LGPL-2.1-or-later
// The nbd driver: an export of an NBD server as a node. On its loop.
#pragma once

#include "chain-core/driver.h"

extern const Driver nbd_driver;

// The values of the driver's options that nbd://… or nbd+unix://… means; a new reference, NULL with
// a sentence. Pure.
json_t *nbd_client_values_of_uri(const char *uri, GError **error);
