// SPDX-License-Identifier: LGPL-2.1-or-later
// Which layer owns what of a disk, to be looked at: in a terminal, or as a page.
//
// A map is {name, size, part-size, layers: from the head down, each {node, title, filename, data,
// shown, parts}}: `parts` are the bytes that are seen of the layer in each part of the disk.
#pragma once

#include <jansson.h>

#include "output.h"

void map_view_print(const Output *output, const json_t *map);
// One HTML page with a picture in it (SVG), which refers to nothing else. Owned.
char *map_view_html(const json_t *map);
