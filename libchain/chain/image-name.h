// SPDX-License-Identifier: LGPL-2.1-or-later
// What an image's name means: a path, a path behind "file:", or a json: description; and where a
// name recorded in an overlay leads. The same rules as QEMU's, so that both open the same files.
// Pure; any thread.
#pragma once

#include "chain-core/node-config.h"

// Decodes `text`, recorded as backing name in the image at path `overlay` (NULL: given by a user).
// A relative path starts from the overlay's folder; one inside "file:" or json: from the working
// directory, as in QEMU. What it gives is a format (perhaps not known yet) over its file. -ENOTSUP
// for protocols other than files, -EINVAL for what makes no sense; the sentence does not name the
// overlay.
int image_name_parse(const char *text, const char *overlay, NodeConfig **ret_config,
                     GError **error);

// The driver of a recorded format, in which the names of QEMU's file drivers mean raw. -ENOTSUP for
// others.
int image_format_parse(const char *format, const Driver **ret_format, GError **error);

// Path of `name` in the folder of the file at `beside`.
char *image_name_beside(const char *beside, const char *name);
