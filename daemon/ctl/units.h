// SPDX-License-Identifier: LGPL-2.1-or-later
// Numbers as people write and read them. Pure; texts are owned by the caller.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// "20G": bytes, or with K, M, G, T, P (powers of 1024; "iB" may follow), perhaps with a fraction.
bool units_parse_size(const char *text, uint64_t *ret_bytes);
// "2k": a number, or with k, M, G (powers of 1000), perhaps with a fraction.
bool units_parse_count(const char *text, uint64_t *ret_n);
bool units_parse_seconds(const char *text, double *ret_seconds);

char *units_size(uint64_t bytes);                   // "1.1 GiB"
char *units_size_of(uint64_t done, uint64_t total); // "0.7/1.1 GiB"
char *units_rate(uint64_t bytes_per_second);        // "412 MiB/s"
char *units_clock(uint64_t seconds);                // "0:01", "2:05:00"
char *units_latency(double us);                     // "0.2 ms"
char *units_count(double n);                        // "12.3k"
