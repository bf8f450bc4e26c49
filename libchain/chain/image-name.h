// SPDX-License-Identifier: LGPL-2.1-or-later
// What an image's name means: a path, a path behind "file:", or a json: description; and where a
// name recorded in an overlay leads. The same rules as QEMU's, so that both open the same files.
// Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct ImageName ImageName;
struct ImageName {
    char *path;
    const char *format;  // a driver's name, when the name says it; else NULL
    bool is_read_only;   // json "read-only": true at some level
    bool is_backing_cut; // json "backing": null: whatever the header says, there is nothing below
    ImageName *backing; // json "backing": what lies below, whatever the header says; owned, or NULL
    char **options;     // json: the driver's own: name, value, …, NULL; owned, or NULL
};

void image_name_clear(ImageName *name);

// Decodes `text`, recorded as backing name in the image at path `overlay` (NULL: given by a user).
// A relative path starts from the overlay's folder; one inside "file:" or json: from the working
// directory, as in QEMU. -ENOTSUP for protocols other than files, -EINVAL for what makes no sense;
// the sentence does not name the overlay.
int image_name_parse(const char *text, const char *overlay, ImageName *ret_name, GError **error);

// A driver's name for a recorded format, in which the names of QEMU's file drivers mean raw.
// -ENOTSUP for others.
int image_format_parse(const char *format, const char **ret_format, GError **error);

// Path of `name` in the folder of the file at `beside`.
char *image_name_beside(const char *beside, const char *name);
