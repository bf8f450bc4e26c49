// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits of exports, as query-export-stats tells them ("throttle") and block_set_io_throttle takes
// them. Pure.
#pragma once

#include <glib.h>
#include <jansson.h>

// A limit that people give: "read-bps", which of a total or of one direction it is, and its names
// in both.
typedef struct LimitKind {
    const char *option;
    const char *told, *taken;
    unsigned first, count; // of the kinds that cannot hold beside it
} LimitKind;

enum { LIMIT_N_KINDS = 6 };
extern const LimitKind limit_kinds[LIMIT_N_KINDS];

// "read 100 MiB/s, 2000 requests/s"; owned. `throttle` NULL: "none".
char *limits_text(const json_t *throttle);
// The same for a narrow column: "100 MiB/s 2.0k/s"; NULL: there are none.
char *limits_short_text(const json_t *throttle);
// Arguments of block_set_io_throttle that say the same of `id` as `throttle` (NULL: none); owned.
json_t *limits_arguments(const char *id, const json_t *throttle);
