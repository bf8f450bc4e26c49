// SPDX-License-Identifier: LGPL-2.1-or-later
// The qcow2 driver. A Qcow2Image is one file with its refcounts, allocator, snapshot table and
// locks; a view (a Node) is one L1 table on it: the head, or an internal snapshot (read-only). All
// views of an image live on its file's loop and share its allocator and caches.
#pragma once

#include <glib.h>

#include "chain-core/driver.h"

typedef struct Qcow2Image Qcow2Image;

typedef struct Qcow2OpenOptions {
    bool read_only;
    bool shared;              // read-only, and another program may write it meanwhile
    bool is_inactive;         // the same, until it becomes active
    MapMemory *memory;        // borrowed
    const NodeEvents *events; // borrowed, outlives the image; NULL: nobody is told
} Qcow2OpenOptions;

extern const Driver qcow2_driver;

// Reads and checks the header; writes nothing. Takes `file` (also on failure). The file's locks are
// the caller's business, before this call. Returned with one reference.
int qcow2_image_open(Fiber *self, File *file, const Qcow2OpenOptions *options,
                     Qcow2Image **ret_image, GError **error);
Qcow2Image *qcow2_image_ref(Qcow2Image *image);
// The last reference writes back, closes the file.
void qcow2_image_unref_close(Fiber *self, Qcow2Image *image);

// What the header says; strings are borrowed. NULL where absent.
const char *qcow2_image_backing_name(const Qcow2Image *image);
const char *qcow2_image_backing_format(const Qcow2Image *image);
// Plain file name of the external data file from the header extension, or NULL if not used.
const char *qcow2_image_data_file_name(const Qcow2Image *image);
// Must be called before a view is made when the name above is not NULL. Takes `file`.
void qcow2_image_set_data_file(Qcow2Image *image, File *file);
File *qcow2_image_file(Qcow2Image *image);

// Has the image of `node`, a writable view, record another backing file, of that format; NULL:
// none. The graph stays as it is.
int qcow2_set_backing_name(Fiber *self, Node *node, const char *name, const char *format,
                           GError **error);

// A view on the head (`snapshot` NULL), or on an internal snapshot by id, then by name. Takes a
// reference on `image`. Only one writable head view at a time. The first view reads and checks the
// image's tables, and repairs a dirty image when writable; nothing is written before all checks
// passed.
int qcow2_view_new(Fiber *self, Qcow2Image *image, const char *snapshot, Node **ret_node,
                   GError **error);
// A read-only view on an internal snapshot of the image that `beside` (a view, the head mostly) is
// one of: on the same image object, also while the head is written. It reads below through the
// backing child of `beside`. The snapshot stays as long as the node is open.
int qcow2_snapshot_view_new(Fiber *self, Node *beside, const char *snapshot, Node **ret_node,
                            GError **error);
// The image of a view, borrowed; NULL: another driver's node.
Qcow2Image *qcow2_node_image(Node *node);
