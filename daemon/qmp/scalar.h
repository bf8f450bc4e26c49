// SPDX-License-Identifier: LGPL-2.1-or-later
// Scalars written as text in dotted keys: "on", "0x10", "64M". Pure; false for what is none.
#pragma once

#include <stdbool.h>
#include <stdint.h>

bool qmp_scalar_parse_int(const char *text, int64_t *ret_value);
// Bytes, with an optional B, K, M, G, T, P or E (powers of 1024) and then an optional fraction.
bool qmp_scalar_parse_size(const char *text, int64_t *ret_bytes);
bool qmp_scalar_parse_number(const char *text, double *ret_value);
// on, yes, true, y; off, no, false, n.
bool qmp_scalar_parse_bool(const char *text, bool *ret_value);
