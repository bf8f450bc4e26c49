// SPDX-License-Identifier: LGPL-2.1-or-later
// The nodes of remembered disks. A layer's node is called layer-N, N being its number, whatever
// disks stand on it; it is open as long as a disk or an export needs it. A disk holds its nodes in
// their places: commands that would put others there, or below them, are refused, and those of
// disks do it. Control loop; with the catalogue's lock and the graph lock, unless said otherwise.
#pragma once

#include "catalogue.h"
#include "daemon/exports.h"

typedef struct Daemon Daemon;

enum { LAYER_NODE_NAME_BYTES = 32 };
void disk_layer_node_name(const DiskLayer *layer, char name[LAYER_NODE_NAME_BYTES]);
// NULL: it is not open.
NamedNode *disk_layer_node(const Nodes *nodes, const DiskLayer *layer);
// Does it lie on another machine?
bool disk_layer_is_remote(const DiskLayer *layer);
// The file that a header's name of what lies below means, in an image at `file` (NULL: that a user
// means); owned.
char *disk_layer_resolve_name(Fiber *self, const char *file, const char *name);

// What an image says of itself, without what lies below it.
typedef struct ImageFacts {
    char *format;
    uint64_t size_bytes;
    char *backing_file, *backing_format; // resolved; NULL: nothing, or not recorded
} ImageFacts;
// `format` NULL: what the file says. Only reads, also while others write. The graph lock is given
// up while another machine is waited for.
int image_facts_read(Fiber *self, Daemon *daemon, const char *file, const char *format,
                     ImageFacts *ret_facts, GError **error);
void image_facts_clear(ImageFacts *facts);

// Opens a layer and what it stands on, as far as that is not open yet. Refused where a header names
// something else below than the catalogue does. `disk` is the one of which it is the head, or NULL.
int disk_layer_open(Fiber *self, Daemon *daemon, DiskLayer *layer, const Disk *disk,
                    NamedNode **ret_node, GError **error);
// Opens the layer as the head of `disk`, and nothing below it yet.
int disk_layer_open_alone(Fiber *self, Daemon *daemon, const DiskLayer *layer, const Disk *disk,
                          NamedNode **ret_node, GError **error);
// The same over what it stands on, which is open.
int disk_layer_open_over(Fiber *self, Daemon *daemon, const DiskLayer *layer, const Disk *disk,
                         NamedNode **ret_node, GError **error);
// Closes it, and what it stands on, as far as nobody uses it any more.
void disk_layer_close_unused(Fiber *self, Daemon *daemon, const DiskLayer *layer);

// Its nodes. What fails is `disk->problem`, too.
int disk_open(Fiber *self, Daemon *daemon, Disk *disk, GError **error);
// Starts those of its exports that are not served, if there is a server; what fails is logged.
void disk_serve(Fiber *self, Daemon *daemon, Disk *disk);
// The same for all that are open; takes both locks.
void disks_serve(Fiber *self, Daemon *daemon);
// Its exports are gone.
void disk_close(Fiber *self, Daemon *daemon, Disk *disk);
// Holds the nodes of the chain as it is now in their places, and no others.
void disk_hold(const Daemon *daemon, Disk *disk);
// Lets go of them, for a change of the chain by who calls disk_hold() then. Closes nothing.
void disk_let_go(Disk *disk);

int disk_export_start(Fiber *self, Daemon *daemon, Disk *disk, const DiskExport *export,
                      GError **error);
// NULL: it is not served. No lock needed.
Export *disk_export_served(const Daemon *daemon, const DiskExport *export);
// Is an export of that id none of a disk? A sentence if it is.
int disk_check_not_its_export(const Daemon *daemon, const char *id, GError **error);
// Disconnects whoever is there. Without the graph lock. Closes what only it used.
void disk_export_stop(Fiber *self, Daemon *daemon, const DiskExport *export);
