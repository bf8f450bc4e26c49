// SPDX-License-Identifier: LGPL-2.1-or-later
// Images of the disk that guests write, in files of the simulation: qcow2 but for one that may be
// raw. What cannot be opened or made ends the program.
#pragma once

#include "guests.h"

enum { GUEST_IMAGE_PATH = 16 };

void guest_image_name(char path[GUEST_IMAGE_PATH], unsigned number); // of a layer

uint32_t guest_image_pick_cluster_bytes(Guests *g);
// `backing` is the path of what lies below, or NULL.
void guest_image_create(Fiber *self, const char *path, const char *backing, uint64_t size_bytes,
                        uint32_t cluster_bytes);
// Of the whole disk, with changes of some blocks; durable. Returns the size of its clusters.
uint32_t guest_image_make_layer(Fiber *self, Guests *g, const char *path, const char *backing);
void guest_image_make_raw(Fiber *self, Guests *g, const char *path); // at most one of them
void guest_image_fill_with_other(Fiber *self, Node *node);           // what no guest writes

// Owned. With what lies below it, or alone and writable.
Node *guest_image_open(Fiber *self, const Guests *g, const char *path, bool is_writable);
Node *guest_image_open_alone(Fiber *self, const Guests *g, const char *path);

// As guests_check_node().
void guest_image_check_content(Fiber *self, const Guests *g, const char *where, const char *path,
                               const Versions *least, const Versions *most);
// A qcow2 image.
void guest_image_check(Fiber *self, const Guests *g, const char *path, bool may_leak);
