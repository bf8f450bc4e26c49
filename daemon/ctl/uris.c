// SPDX-License-Identifier: LGPL-2.1-or-later
#include "uris.h"

#include <stdio.h>

void uris_print(const Output *output, const json_t *described, const json_t *exports)
{
    size_t i, j;
    const json_t *export, *uri;
    if (output->format != OUTPUT_TABLE) {
        output_json(output, described);
        return;
    }
    json_array_foreach(exports, i, export)
    {
        json_array_foreach(json_object_get(export, "uris"), j, uri) puts(json_string_value(uri));
    }
}
